"""Small decisions about results of checks: when one counts, and what is said of it. Pure."""

from dataclasses import dataclass
from typing import Protocol

from mesh_agent.agent.definition import CheckDefinition
from mesh_agent.model import Status

_MIN_INTERVAL_S = 1.0
_MIN_REMOVAL_S = 60.0
_NOT_WHOLE = "Captured {kept} of {all} bytes\n...\n"


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of a check found."""

    status: Status
    output: str


class Streaks(Protocol):
    """How many results in a row said the same: a check may want several before it believes them."""

    passing: int
    failing: int


def believed(streaks: Streaks, definition: CheckDefinition, result: Result) -> bool:
    """Count a result; whether there were enough of its kind in a row for it to hold (a warning counts as a success)."""
    if result.status is Status.CRITICAL:
        streaks.failing, streaks.passing = streaks.failing + 1, 0
        return streaks.failing >= definition.failures_before_critical
    streaks.passing, streaks.failing = streaks.passing + 1, 0
    return streaks.passing >= definition.success_before_passing


def interval_s(definition: CheckDefinition) -> float:
    """Seconds between two runs; Consul's lower bound applies."""
    return max(_MIN_INTERVAL_S, definition.interval_s)


def removal_s(definition: CheckDefinition) -> float | None:
    """After how many critical seconds the check's service is taken away (Consul's lower bound is a minute); None: never."""
    if definition.deregister_after_s <= 0 or not definition.service_id:
        return None
    return max(_MIN_REMOVAL_S, definition.deregister_after_s)


def expired(last_output: str) -> str:
    """Output of a TTL check that nobody has updated in time."""
    return f"TTL expired (last output before timeout follows): {last_output}" if last_output else "TTL expired"


def shortened(output: str, limit: int) -> str:
    """Output of at most `limit` bytes: its end, for that is where programs say what went wrong."""
    raw = output.encode("utf-8", "replace")
    if len(raw) <= limit:
        return output
    head = _NOT_WHOLE.format(kept=limit, all=len(raw))
    room = limit - len(head)
    if room <= 0:
        return raw[:limit].decode("utf-8", "ignore")
    return _NOT_WHOLE.format(kept=room, all=len(raw)) + raw[-room:].decode("utf-8", "ignore")


def http_status(code: int) -> Status:
    """Consul's reading of an HTTP status."""
    if 200 <= code < 300:
        return Status.PASSING
    return Status.WARNING if code == 429 else Status.CRITICAL
