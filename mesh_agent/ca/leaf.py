"""When a leaf is renewed. Pure."""

import random

from mesh_agent.ca.issue import Validity

_EARLIEST, _LATEST = 0.33, 0.5
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0


def renewal_at(validity: Validity, rng: random.Random) -> float:
    """When to renew (seconds since the epoch): between a third and half of its life, spread so that a fleet does not renew at once."""
    life = validity.not_after - validity.not_before
    return validity.not_before + life * rng.uniform(_EARLIEST, _LATEST)


def retry_after_s(failures: int, rng: random.Random) -> float:
    """How long to wait after the n-th failed renewal in a row: doubling, with jitter; the old leaf is served meanwhile."""
    return float(min(_LAST_RETRY_S, _FIRST_RETRY_S * 2 ** min(failures, 10)) * rng.uniform(0.5, 1.0))


def usable(validity: Validity, now: float) -> bool:
    """Whether a leaf still has life in it."""
    return validity.not_before <= now < validity.not_after
