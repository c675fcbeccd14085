"""Intentions of a TCP service as filter chains of the internal listener: one for each source that is allowed. Pure.

A connection is judged once, by the peer's SPIFFE ID, when it begins. Afterwards a chain stands for its source: Envoy closes the connections of a chain
that is taken away and leaves those of the others alone, however the list that picks among them changes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue
from xds.type.matcher.v3.matcher_pb2 import Matcher

from mesh_agent.catalog.intentions import ANY, matching
from mesh_agent.model import Action, Intention
from mesh_agent.xds.naming import identity_pattern
from mesh_agent.xds.policy import extension, field_matcher

_REFUSED = "refused"
"""No chain has this name: a connection that is matched to it is closed."""


@dataclass(frozen=True, slots=True)
class Admission:
    """(pattern of the peer's SPIFFE ID, chain) in the order in which they decide; `otherwise` is the chain of all others."""

    rules: tuple[tuple[str, str], ...]
    otherwise: str

    @classmethod
    def of(
        cls, intentions: Iterable[Intention], service: str, trust_domain: str, *, default_allow: bool
    ) -> "Admission":
        """What the intentions mean for connections to `service`."""
        rules: list[tuple[str, str]] = []
        otherwise = _chain(ANY, default_allow)
        for each in matching(intentions, destination=service):
            chain = _chain(each.source, each.action is Action.ALLOW)
            if each.source == ANY:
                otherwise = chain
                break
            rules.append((identity_pattern(each.source, trust_domain), chain))
        return cls(tuple(rules), otherwise)

    @property
    def chains(self) -> tuple[str, ...]:
        """Names of the chains that must exist, each once."""
        named = dict.fromkeys([*(chain for _, chain in self.rules), self.otherwise])
        return tuple(sorted(name for name in named if name != _REFUSED))

    def matcher(self, peer: Message) -> Matcher:
        """The listener's matcher; `peer` is the input that yields the SPIFFE ID."""
        source = extension("peer", peer)
        found = Matcher(on_no_match=_to(self.otherwise))
        if self.rules:
            matchers = [field_matcher(source, pattern, _to(chain)) for pattern, chain in self.rules]
            found.matcher_list.CopyFrom(Matcher.MatcherList(matchers=matchers))
        return found


def _chain(source: str, allowed: bool) -> str:
    return f"allow:{source}" if allowed else _REFUSED


def _to(chain: str) -> Matcher.OnMatch:
    return Matcher.OnMatch(action=extension("chain", StringValue(value=chain)))
