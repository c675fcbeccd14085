"""Updates that wait to be gossiped: each is sent a bounded number of times, the least sent first. Pure."""

import math
from dataclasses import dataclass


@dataclass(slots=True)
class _Entry:
    name: str
    message: bytes
    order: int
    sent: int = 0


class Broadcasts:
    """A queue; a newer message of the same name replaces the one that waits."""

    def __init__(self, retransmit_mult: int, *, limit: int = 8192) -> None:
        self._mult = retransmit_mult
        self._limit = limit
        self._entries: list[_Entry] = []
        self._by_name: dict[str, _Entry] = {}
        self._order = 0

    def __len__(self) -> int:
        return len(self._entries)

    def queue(self, name: str, message: bytes) -> None:
        """Spread `message`; `name` is '' for messages that replace nothing."""
        self._order += 1
        entry = _Entry(name, message, self._order)
        if name:
            old = self._by_name.get(name)
            if old is not None:
                self._entries.remove(old)
            self._by_name[name] = entry
        self._entries.append(entry)
        if len(self._entries) > self._limit:
            self._forget(max(self._entries, key=lambda waiting: (waiting.sent, -waiting.order)))

    def waits(self, name: str) -> bool:
        """Whether a message of that name is still to be sent."""
        return name in self._by_name

    def take(self, overhead: int, budget: int, members: int) -> list[bytes]:
        """Messages that fit into `budget` bytes with `overhead` bytes each; `members` counts the pool."""
        if not self._entries:
            return []
        limit = self._mult * max(1, math.ceil(math.log10(members + 1)))
        # Fewest transmissions first; larger first within a tier, so that big ones are not starved; then the newest.
        self._entries.sort(key=lambda entry: (entry.sent, -len(entry.message), -entry.order))
        taken: list[bytes] = []
        done: list[_Entry] = []
        for entry in self._entries:
            size = overhead + len(entry.message)
            if size > budget:
                continue
            budget -= size
            taken.append(entry.message)
            entry.sent += 1
            if entry.sent >= limit:
                done.append(entry)
        for entry in done:
            self._forget(entry)
        return taken

    def _forget(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        if self._by_name.get(entry.name) is entry:
            del self._by_name[entry.name]
