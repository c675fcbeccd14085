"""How long a suspect has to defend itself: Lifeguard's suspicion, which shortens as independent accusers confirm it. Pure."""

import math

from mesh_agent.gossip.config import GossipConfig


class Suspicion:
    """One suspicion of one node."""

    def __init__(self, accuser: str, members: int, config: GossipConfig, now: float) -> None:
        """`members` counts the pool, self included."""
        scale = max(1.0, math.log10(max(1, members)))
        self._min_s = config.suspicion_mult * scale * config.probe_interval_s
        wanted = config.suspicion_mult - 2
        self._wanted = wanted if members - 2 >= wanted else 0
        self._max_s = self._min_s * config.suspicion_max_mult if self._wanted > 0 else self._min_s
        self._started_at = now
        # The first accuser never confirms itself: gossip brings its own message back to us.
        self._accusers = {accuser}

    def confirm(self, accuser: str) -> bool:
        """Count an accuser; whether it is a new one that should be passed on."""
        if len(self._accusers) - 1 >= self._wanted or accuser in self._accusers:
            return False
        self._accusers.add(accuser)
        return True

    def postpone(self, by_s: float) -> None:
        """Time in which we could not have heard the node does not count."""
        self._started_at += by_s

    @property
    def ends_at(self) -> float:
        """When the node counts as dead."""
        if self._wanted == 0:
            return self._started_at + self._min_s
        confirmed = len(self._accusers) - 1
        shrunk = self._max_s - (self._max_s - self._min_s) * math.log(confirmed + 1) / math.log(self._wanted + 1)
        return self._started_at + max(self._min_s, math.floor(shrunk * 1000) / 1000)
