"""Hybrid logical clock: timestamps that order changes of several datacenters without a coordinator.

Source: Kulkarni et al., "Logical Physical Clocks" (2014). A timestamp is (wall milliseconds, counter, origin datacenter);
tuples compare as the order of events, and the origin breaks ties.
"""

from typing import NamedTuple

MAX_AHEAD_MS = 60_000
"""A remote timestamp further ahead of our wall clock than this does not move our clock (a broken remote clock)."""


class Timestamp(NamedTuple):
    """When a federated object was changed: compare with < and >."""

    wall_ms: int
    counter: int
    origin: str


class HybridClock:
    """Issues timestamps that are larger than every timestamp issued or observed before."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._wall_ms = 0
        self._counter = 0

    def tick(self, wall: float) -> Timestamp:
        """Stamp a local change; `wall` is seconds since the epoch."""
        wall_ms = int(wall * 1000)
        if wall_ms > self._wall_ms:
            self._wall_ms, self._counter = wall_ms, 0
        else:
            self._counter += 1
        return Timestamp(self._wall_ms, self._counter, self._origin)

    def observe(self, stamp: Timestamp, wall: float) -> None:
        """Take note of a remote timestamp, so that later local ones are larger."""
        if stamp.wall_ms > int(wall * 1000) + MAX_AHEAD_MS:
            return
        if (stamp.wall_ms, stamp.counter) > (self._wall_ms, self._counter):
            self._wall_ms, self._counter = stamp.wall_ms, stamp.counter
