"""Time as an argument: everything that waits or stamps takes a Clock."""

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings of time, both in seconds."""

    def now(self) -> float:
        """Monotonic seconds, for intervals; its zero means nothing."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch (UTC), for certificates and timestamps."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since the epoch."""
        return time.time()


class ManualClock:
    """A clock that moves when told to: for tests and simulations."""

    def __init__(self, *, now: float = 0.0, wall: float = 1_700_000_000.0) -> None:
        self._now = now
        self._wall = wall

    def now(self) -> float:
        """Monotonic seconds."""
        return self._now

    def wall(self) -> float:
        """Seconds since the epoch."""
        return self._wall

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on both readings."""
        self._now += seconds
        self._wall += seconds
