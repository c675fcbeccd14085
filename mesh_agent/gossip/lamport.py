"""Lamport clocks and the rings that remember what was seen. Pure. Source: Lamport, "Time, Clocks, and the Ordering of Events" (1978)."""

from typing import Generic, TypeVar

T = TypeVar("T")


class LamportClock:
    """Counts events; starts at 1 as serf's does."""

    def __init__(self) -> None:
        self.time = 1

    def stamp(self) -> int:
        """The time of a new event of our own: one for each, or the rings that remember events would hold half as many."""
        self.time += 1
        return self.time - 1

    def witness(self, other: int) -> None:
        """Somebody else is at `other`: never fall behind it."""
        if other >= self.time:
            self.time = other + 1


class SeenRing(Generic[T]):
    """Remembers the items of the last `size` Lamport times, to tell old news from new."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._slots: list[tuple[int, list[T]] | None] = [None] * size
        self.oldest = 0

    def add(self, lamport: int, item: T, current: int) -> bool:
        """Whether `item` is new; what is older than the ring, or than `oldest`, counts as seen."""
        if lamport < self.oldest or (current > self._size and lamport < current - self._size):
            return False
        slot = self._slots[lamport % self._size]
        if slot is None or slot[0] < lamport:
            self._slots[lamport % self._size] = (lamport, [item])
            return True
        if slot[0] > lamport or item in slot[1]:
            return False
        slot[1].append(item)
        return True

    def items(self) -> list[tuple[int, tuple[T, ...]]]:
        """Everything remembered, by Lamport time of its slot."""
        return [(slot[0], tuple(slot[1])) for slot in self._slots if slot is not None]
