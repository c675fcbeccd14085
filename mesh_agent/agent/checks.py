"""Decisions about checks: when a result counts, and when a service that stays critical is taken away. Pure."""

from dataclasses import dataclass

from mesh_agent.agent.consul_json import deregister_after
from mesh_agent.agent.definition import CheckDefinition
from mesh_agent.model import Status


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of a check found."""

    status: Status
    output: str


@dataclass(slots=True)
class Streak:
    """How many results in a row said the same: a check may want several before it believes them."""

    passing: int = 0
    failing: int = 0

    def decide(self, definition: CheckDefinition, result: Result, current: Status) -> Status:
        """The status that holds after `result`."""
        if result.status is Status.CRITICAL:
            self.failing, self.passing = self.failing + 1, 0
            return Status.CRITICAL if self.failing >= max(1, definition.failures_before_critical) else current
        self.passing, self.failing = self.passing + 1, 0
        return result.status if self.passing >= max(1, definition.success_before_passing) else current


def expired(ttl_s: float) -> str:
    """Output of a TTL check that nobody has updated."""
    return f"TTL expired (no update within {ttl_s:g} s)"


def removal_due(definition: CheckDefinition, critical_since: float | None) -> float | None:
    """When the check's service is to be taken away, if it stays critical; None: never."""
    after_s = deregister_after(definition.deregister_after_s)
    if not after_s or critical_since is None or not definition.service_id:
        return None
    return critical_since + after_s


def shortened(output: str, limit: int) -> str:
    """Output of at most `limit` bytes."""
    raw = output.encode()
    if len(raw) <= limit:
        return output
    return raw[:limit].decode("utf-8", "ignore") + f"\n... ({len(raw) - limit} bytes more)"


def http_status(code: int) -> Status:
    """Consul's reading of an HTTP status."""
    if 200 <= code < 300:
        return Status.PASSING
    return Status.WARNING if code == 429 else Status.CRITICAL
