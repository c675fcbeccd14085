"""All timers of a machine, in one heap: the shell owns one alarm for the first of them. Pure."""

import heapq
from collections.abc import Callable


class Timers:
    """Calls that are due some time; at the same instant in the order in which they were made."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = 0

    def after(self, now: float, delay_s: float, call: Callable[[float], None]) -> None:
        """Call `call(now)` once `delay_s` has passed."""
        self.at(now + delay_s, call)

    def at(self, when: float, call: Callable[[float], None]) -> None:
        """Call `call(now)` at an instant."""
        self._order += 1
        heapq.heappush(self._heap, (when, self._order, call))

    def deadline(self) -> float | None:
        """When the next one is due."""
        return self._heap[0][0] if self._heap else None

    def fire(self, now: float) -> None:
        """Do everything that is due, also what becomes due by it."""
        while self._heap and self._heap[0][0] <= now:
            _, _, call = heapq.heappop(self._heap)
            call(now)

    def postpone(self, by_s: float) -> None:
        """All of them later."""
        self._heap = [(when + by_s, order, call) for when, order, call in self._heap]
