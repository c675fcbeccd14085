"""What is due when: one heap for everything that a machine waits for. Pure."""

import heapq
from itertools import count
from typing import Generic, TypeVar

K = TypeVar("K")

_SLACK = 64


class Schedule(Generic[K]):
    """One instant for each key; planning a key again moves it. Instants are monotonic seconds.

    Moving leaves the old entry in the heap until it surfaces; when those outnumber the live ones the heap is built anew, so that a TTL check
    that is refreshed a thousand times before it would expire costs no memory.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        self._live: dict[K, tuple[float, int]] = {}
        self._order = count()

    def plan(self, key: K, at: float) -> None:
        """Make `key` due at `at`, and at no other time."""
        order = next(self._order)
        self._live[key] = (at, order)
        heapq.heappush(self._heap, (at, order, key))
        if len(self._heap) > 2 * len(self._live) + _SLACK:
            self._heap = [(at, order, key) for key, (at, order) in self._live.items()]
            heapq.heapify(self._heap)

    def cancel(self, key: K) -> None:
        """Forget `key`."""
        self._live.pop(key, None)

    def __contains__(self, key: K) -> bool:
        return key in self._live

    def __len__(self) -> int:
        return len(self._live)

    def deadline(self) -> float | None:
        """When the next key is due; None if nothing is planned."""
        while self._heap and not self._is_live(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self, now: float) -> K | None:
        """Take out the key that is due first; None if none is."""
        at = self.deadline()
        if at is None or at > now:
            return None
        _, _, key = heapq.heappop(self._heap)
        del self._live[key]
        return key

    def _is_live(self, entry: tuple[float, int, K]) -> bool:
        at, order, key = entry
        return self._live.get(key) == (at, order)
