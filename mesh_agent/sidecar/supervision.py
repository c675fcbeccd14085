"""When Envoy is started again after it has ended. Pure."""

_FIRST_S, _LAST_S = 0.5, 30.0
_STABLE_S = 60.0


class Restarts:
    """Pauses between starts: doubling while it keeps failing, from the beginning again after it ran for a while."""

    def __init__(self) -> None:
        self._failures = 0

    def after(self, ran_s: float) -> float:
        """How long to wait, in seconds, after a run of `ran_s` seconds."""
        self._failures = 0 if ran_s >= _STABLE_S else self._failures
        pause_s = min(_LAST_S, _FIRST_S * 2.0 ** min(self._failures, 10))
        self._failures += 1
        return pause_s
