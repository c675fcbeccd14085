"""Intentions of a TCP service as filter chains of the internal listener: one for each source that is allowed. Pure.

A connection is judged once, by the peer's SPIFFE ID, when it begins. Afterwards a chain stands for its source: Envoy closes the connections of a chain
that is taken away and leaves those of the others alone, however the list that picks among them changes.

Sources that an intention does not name come in by a wildcard (or by default). Nobody knows them beforehand, so they share chains, and a chain must
go when one of them is denied. To hit few others there is one shared chain for each last character of the name, and it is named after
the sources that it excludes: it is replaced when those change, and only then.
"""

import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue
from xds.type.matcher.v3.matcher_pb2 import Matcher

from mesh_agent.catalog.intentions import ANY, matching
from mesh_agent.model import Action, Intention
from mesh_agent.xds.naming import identity_pattern
from mesh_agent.xds.policy import extension, field_matcher

REFUSED = "refused"
"""No chain has this name: a connection that is matched to it is closed."""

_LAST_CHARACTERS = string.ascii_lowercase + string.digits


@dataclass(frozen=True, slots=True)
class Admission:
    """(pattern of the peer's SPIFFE ID, chain) in the order in which they decide; who matches none is refused."""

    rules: tuple[tuple[str, str], ...]

    @classmethod
    def of(
        cls, intentions: Iterable[Intention], service: str, trust_domain: str, *, default_allow: bool
    ) -> "Admission":
        """What the intentions mean for connections to `service`."""
        named: dict[str, bool] = {}
        others = default_allow
        for each in matching(intentions, destination=service):
            if each.source == ANY:
                others = each.action is Action.ALLOW
                break
            named.setdefault(each.source, each.action is Action.ALLOW)
        rules = [
            (identity_pattern(source, trust_domain), f"allow:{source}" if allowed else REFUSED)
            for source, allowed in named.items()
        ]
        if others:
            rules += _shared(trust_domain, [source for source, allowed in named.items() if not allowed])
        return cls(tuple(rules))

    @property
    def chains(self) -> tuple[str, ...]:
        """Names of the chains that must exist, each once."""
        return tuple(sorted({chain for _, chain in self.rules if chain != REFUSED}))

    def matcher(self, peer: Message) -> Matcher:
        """The listener's matcher; `peer` is the input that yields the SPIFFE ID."""
        source = extension("peer", peer)
        found = Matcher(on_no_match=_to(REFUSED))
        if self.rules:
            matchers = [field_matcher(source, pattern, _to(chain)) for pattern, chain in self.rules]
            found.matcher_list.CopyFrom(Matcher.MatcherList(matchers=matchers))
        return found


def _shared(trust_domain: str, excluded: Iterable[str]) -> Iterator[tuple[str, str]]:
    by_last: dict[str, list[str]] = {}
    for source in sorted(excluded):
        last = source[-1] if source[-1] in _LAST_CHARACTERS else ""
        by_last.setdefault(last, []).append(source)
    anybody = identity_pattern(ANY, trust_domain)
    for last in (*_LAST_CHARACTERS, ""):
        pattern = anybody.removesuffix("+") + f"*{last}" if last else anybody
        yield pattern, f"allow:*{last}" + "".join(f"!{source}" for source in by_last.get(last, ()))


def _to(chain: str) -> Matcher.OnMatch:
    return Matcher.OnMatch(action=extension("chain", StringValue(value=chain)))
