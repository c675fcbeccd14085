"""Which intention decides about a connection: the most specific one, destination before source (Consul's precedence). Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from mesh_agent.model import Action, Intention

ANY = "*"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a connection is allowed, and the intention that says so; None when it is the default."""

    allowed: bool
    intention: Intention | None


def ordered(intentions: Iterable[Intention]) -> list[Intention]:
    """The most specific first, then by name."""
    return sorted(intentions, key=lambda each: (-each.precedence, each.destination, each.source))


def matching(intentions: Iterable[Intention], *, destination: str = "", source: str = "") -> list[Intention]:
    """Intentions that bear on a destination, or on a source, in the order in which they decide."""
    return ordered(
        each
        for each in intentions
        if (not destination or each.destination in (destination, ANY)) and (not source or each.source in (source, ANY))
    )


def decide(intentions: Iterable[Intention], source: str, destination: str, *, default_allow: bool) -> Decision:
    """Whether `source` may talk to `destination`."""
    found = matching(intentions, destination=destination, source=source)
    if not found:
        return Decision(default_allow, None)
    return Decision(found[0].action is Action.ALLOW, found[0])
