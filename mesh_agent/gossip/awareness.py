"""Lifeguard's local health: a node that fails at its own probes suspects itself first and waits longer. Pure."""


class Awareness:
    """A score from 0 (healthy) to `maximum` - 1."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self.score = 0

    def apply(self, delta: int) -> None:
        """Move the score, within its bounds."""
        self.score = max(0, min(self._maximum - 1, self.score + delta))

    def scale(self, seconds: float) -> float:
        """A timeout as long as the score asks for."""
        return seconds * (self.score + 1)
