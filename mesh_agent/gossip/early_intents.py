"""Intents of members that are not known yet: gossip may bring the news of a member's leave before the member. Pure."""

from dataclasses import dataclass

_MOST = 8192


@dataclass(frozen=True, slots=True)
class Intent:
    """What a member means to do, and when we heard of it."""

    leaves: bool
    lamport: int
    heard_at: float


class EarlyIntents:
    """The newest intent of each unknown member; a stranger who makes up names cannot fill more than a bounded room."""

    def __init__(self) -> None:
        self._intents: dict[str, Intent] = {}

    def add(self, name: str, intent: Intent) -> bool:
        """Whether it is news."""
        before = self._intents.get(name)
        if before is not None and before.lamport >= intent.lamport:
            return False
        if before is None and len(self._intents) >= _MOST:
            return False
        self._intents[name] = intent
        return True

    def take(self, name: str) -> Intent | None:
        """The intent of a member that has become known."""
        return self._intents.pop(name, None)

    def forget_before(self, instant: float) -> None:
        """Drop what was heard before."""
        self._intents = {name: intent for name, intent in self._intents.items() if intent.heard_at > instant}
