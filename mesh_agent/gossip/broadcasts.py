"""Updates that wait to be gossiped: each is sent a bounded number of times, the least sent first. Pure.

The queue is kept in the order in which it is sent, (times sent, larger first, newer first), so that taking what fits into a packet costs no more
when thousands of updates wait than when a few do.
"""

import math
from bisect import bisect_left, insort
from dataclasses import dataclass

_Rank = tuple[int, int, int]


@dataclass(slots=True)
class _Entry:
    name: str
    message: bytes
    rank: _Rank


class Broadcasts:
    """A queue; a newer message of the same name replaces the one that waits."""

    def __init__(self, retransmit_mult: int, *, limit: int = 8192, largest_bytes: int = 1300) -> None:
        """At most `limit` messages wait; one of more than `largest_bytes` would not fit into any packet and is not taken."""
        self._mult = retransmit_mult
        self._limit = limit
        self._largest_bytes = largest_bytes
        self._ranks: list[_Rank] = []
        self._entries: dict[_Rank, _Entry] = {}
        self._by_name: dict[str, _Entry] = {}
        self._order = 0

    def __len__(self) -> int:
        return len(self._ranks)

    def queue(self, name: str, message: bytes) -> bool:
        """Spread `message`; `name` is '' for messages that replace nothing. False if it is too large. A full queue drops what was sent most often."""
        old = self._by_name.get(name)
        if old is not None:
            self._forget(old)
        if len(message) > self._largest_bytes:
            return False
        self._order += 1
        entry = _Entry(name, message, (0, -len(message), -self._order))
        if name:
            self._by_name[name] = entry
        self._put(entry)
        if len(self._ranks) > self._limit:
            self._forget(self._entries[self._ranks[-1]])
        return True

    def waits(self, name: str) -> bool:
        """Whether a message of that name is still to be sent."""
        return name in self._by_name

    def take(self, overhead: int, budget: int, members: int) -> list[bytes]:
        """Messages that fit into `budget` bytes with `overhead` bytes each; `members` counts the pool."""
        taken: list[_Entry] = []
        at = 0
        while at < len(self._ranks) and budget > overhead:
            sent, negative_size, _ = rank = self._ranks[at]
            if (
                overhead - negative_size > budget
            ):  # on to the first as often sent that fits, or else to the more often sent
                at = bisect_left(self._ranks, (sent, overhead - budget, -self._order), at + 1)
                continue
            taken.append(self._entries[rank])
            budget -= overhead - negative_size
            at += 1
        if taken:
            self._sent(taken, self._mult * max(1, math.ceil(math.log10(members + 1))))
        return [entry.message for entry in taken]

    def _sent(self, entries: list[_Entry], limit: int) -> None:
        for entry in entries:
            sent, size, order = entry.rank
            self._forget(entry)
            if sent + 1 < limit:
                entry.rank = (sent + 1, size, order)
                self._put(entry)
                if entry.name:
                    self._by_name[entry.name] = entry

    def _put(self, entry: _Entry) -> None:
        insort(self._ranks, entry.rank)
        self._entries[entry.rank] = entry

    def _forget(self, entry: _Entry) -> None:
        del self._ranks[bisect_left(self._ranks, entry.rank)]
        del self._entries[entry.rank]
        if self._by_name.get(entry.name) is entry:
            del self._by_name[entry.name]
