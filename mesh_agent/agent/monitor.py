"""The checks of this node as a machine: which one is to be looked at when, what a result means, what follows from it. Pure.

Theory of operation. Every check has at most one of these planned at a time, all in one heap:
  run     look at something (`Probe`): first within a spread of at most its interval, then an interval after each report
  expire  a TTL check that is not updated until then turns critical
  remove  a check that is critical since too long takes its service with it (`Remove`)
  tell    an output that changed while the status did not is told to the catalog at leisure
A result counts once enough of its kind came in a row (`checks.believed`). A new status is told to the catalog at once, and alias checks of what it is
about are decided again in the same step. The registrations themselves belong to `LocalState`; after a change of them comes `adopt`.
"""

from collections import deque
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from mesh_agent.agent.aliases import LocalAliases
from mesh_agent.agent.checks import Result, believed, expired, interval_s, removal_s, shortened
from mesh_agent.agent.definition import CheckDefinition
from mesh_agent.agent.local_state import CheckState, LocalState
from mesh_agent.agent.schedule import Schedule
from mesh_agent.config.settings import ChecksConfig
from mesh_agent.errors import InvalidRequest
from mesh_agent.model import Status

_MAX_RUNNING = 64
_FIRST_RUNS_PER_S = 20.0
_REMOTE_ALIAS_S = 60.0
_REMOTE_ALIAS_RETRY_S = 5.0
_KEEP_TTL_AFTER = 0.5
"""An unchanged TTL check is written to disk again after this part of its TTL."""
_PASSIVE = ("", "maintenance", "kubernetes-readiness")


@dataclass(frozen=True, slots=True)
class Probe:
    """Effect: run the check once and `report` what it found."""

    definition: CheckDefinition


@dataclass(frozen=True, slots=True)
class Remove:
    """Effect: take the service away, its check was critical for too long."""

    service_id: str
    check_id: str


Effect = Probe | Remove


class SavedResult(NamedTuple):
    """A result that outlives a restart; `at` is wall time."""

    status: Status
    output: str
    at: float


@dataclass(slots=True)
class Changes:
    """What happened since it was asked last: whether the catalog should hear, new statuses, and ids of checks whose result belongs on disk."""

    tell: bool
    statuses: dict[str, Status]
    keep: set[str]


class Monitor:
    """See the module's text. `now` is monotonic seconds everywhere."""

    def __init__(self, state: LocalState, node: str, config: ChecksConfig, rng: Random) -> None:
        self._state, self._node, self._config, self._rng = state, node, config, rng
        self._aliases = LocalAliases(state, node)
        self._adopted: dict[str, CheckDefinition] = {}
        self._schedule: Schedule[tuple[str, str]] = Schedule()
        self._waiting: deque[str] = deque()
        self._running = 0
        self._changes = Changes(False, {}, set())

    # inputs

    def adopt(self, state: LocalState, now: float) -> None:
        """Go on with changed registrations: plan what is new, forget what is gone."""
        self._state = state
        self._aliases = LocalAliases(state, self._node)
        for check_id in [known for known in self._adopted if known not in state.checks]:
            self._forget(check_id)
        fresh = [
            check for check_id, check in state.checks.items() if self._adopted.get(check_id) is not check.definition
        ]
        for check in fresh:
            self._adopted[check.definition.id] = check.definition
            self._begin(check, now, spread_s=max(1.0, len(fresh) / _FIRST_RUNS_PER_S))
        for check_id in self._aliases.ids():
            self._decide_alias(check_id, now)

    def resume(self, saved: dict[str, SavedResult], now: float, wall: float) -> None:
        """Take over results of before a restart. A TTL check that must have expired since then has."""
        for check_id, result in saved.items():
            check = self._state.checks.get(check_id)
            if check is None or check.definition.kind in _PASSIVE:
                continue
            self._set(check, result.status, result.output, now)
            if check.definition.kind == "ttl":
                left_s = result.at + (1 + _KEEP_TTL_AFTER) * check.definition.ttl_s - wall
                self._schedule.plan(("expire", check_id), now + min(left_s, check.definition.ttl_s))
        for check_id in self._aliases.ids():
            self._decide_alias(check_id, now)

    def wake(self, now: float) -> list[Effect]:
        """Do what is due; call again at `deadline()`."""
        effects: list[Effect] = []
        while (due := self._schedule.pop(now)) is not None:
            what, check_id = due
            check = self._state.checks.get(check_id)
            if check is None:
                continue
            if what == "run":
                self._waiting.append(check_id)
            elif what == "expire":
                self._expire(check, now)
            elif what == "tell":
                self._tell(check, now)
            else:
                effects.append(Remove(check.definition.service_id, check_id))
        while self._waiting and self._running < _MAX_RUNNING:
            check = self._state.checks.get(self._waiting.popleft())
            if check is not None:
                self._running += 1
                effects.append(Probe(check.definition))
        return effects

    def deadline(self) -> float | None:
        """When to call `wake`; None: after the next input."""
        if self._waiting and self._running < _MAX_RUNNING:
            return float("-inf")
        return self._schedule.deadline()

    def report(self, definition: CheckDefinition, result: Result, now: float) -> None:
        """A `Probe` is done. The result of a check that has changed in the meantime is dropped."""
        self._running -= 1
        check = self._state.checks.get(definition.id)
        if check is None or check.definition != definition:
            return
        if believed(check, definition, result):
            self._take(check, result, now)
        delay_s = interval_s(definition)
        if definition.kind == "alias":
            delay_s = _REMOTE_ALIAS_S if result.status is not Status.CRITICAL else _REMOTE_ALIAS_RETRY_S
        self._schedule.plan(("run", definition.id), now + delay_s)

    def look_again(self, check_id: str, now: float) -> None:
        """Run a check now: what it looks at has changed."""
        if ("run", check_id) in self._schedule:
            self._schedule.plan(("run", check_id), now)

    def update_ttl(self, check_id: str, status: Status, output: str, now: float) -> None:
        """A service reports its own health; NotFound for an unknown check, InvalidRequest for one that is no TTL check."""
        check = self._state.check(check_id)
        if check.definition.kind != "ttl":
            raise InvalidRequest(f'CheckID "{check_id}" does not have associated TTL')
        self._schedule.plan(("expire", check_id), now + check.definition.ttl_s)
        self._take(check, Result(status, output), now)
        if now - check.saved_at > _KEEP_TTL_AFTER * check.definition.ttl_s:
            self._keep(check, now)

    def drain(self) -> Changes:
        """What happened since the last call."""
        changes, self._changes = self._changes, Changes(False, {}, set())
        return changes

    # checks that come and go

    def _begin(self, check: CheckState, now: float, spread_s: float) -> None:
        definition = check.definition
        self._plan_removal(check, now)
        for what in ("run", "expire"):
            self._schedule.cancel((what, definition.id))
        if definition.kind == "ttl":
            self._schedule.plan(("expire", definition.id), now + definition.ttl_s)
        elif definition.kind not in _PASSIVE and not self._aliases.is_local(definition):
            at = now + self._rng.uniform(0.0, min(interval_s(definition), spread_s))
            self._schedule.plan(("run", definition.id), at)

    def _forget(self, check_id: str) -> None:
        del self._adopted[check_id]
        for what in ("run", "expire", "remove", "tell"):
            self._schedule.cancel((what, check_id))
        self._changes.keep.add(check_id)

    def _plan_removal(self, check: CheckState, now: float) -> None:
        if check.status is not Status.CRITICAL:
            check.critical_since = None
            self._schedule.cancel(("remove", check.definition.id))
            return
        if check.critical_since is None:
            check.critical_since = now
        after_s = removal_s(check.definition)
        if after_s is not None:
            self._schedule.plan(("remove", check.definition.id), check.critical_since + after_s)
        else:
            self._schedule.cancel(("remove", check.definition.id))

    # results

    def _expire(self, check: CheckState, now: float) -> None:
        if check.status is not Status.CRITICAL:
            self._take(check, Result(Status.CRITICAL, expired(check.output)), now)

    def _take(self, check: CheckState, result: Result, now: float) -> None:
        changed = result.status is not check.status
        self._set(check, result.status, self._fitting(check.definition, result.output), now)
        if changed:
            for check_id in self._aliases.affected(check.definition.service_id):
                self._decide_alias(check_id, now)

    def _decide_alias(self, check_id: str, now: float) -> None:
        check = self._state.checks[check_id]
        result = self._aliases.result(check.definition)
        self._set(check, result.status, self._fitting(check.definition, result.output), now)

    def _fitting(self, definition: CheckDefinition, output: str) -> str:
        limit = self._config.output_max_bytes
        return shortened(output, min(definition.output_max_bytes or limit, limit))

    def _set(self, check: CheckState, status: Status, output: str, now: float) -> None:
        check_id = check.definition.id
        if status is check.status:
            check.output = output
            if output != check.synced_output and ("tell", check_id) not in self._schedule:
                at = check.told_at + self._config.update_interval_s
                if at <= now:
                    self._tell(check, now)
                else:
                    self._schedule.plan(("tell", check_id), at)
            return
        check.status, check.output = status, output
        self._changes.statuses[check_id] = status
        self._plan_removal(check, now)
        self._keep(check, now)
        self._tell(check, now)

    def _tell(self, check: CheckState, now: float) -> None:
        """Let the catalog know."""
        self._schedule.cancel(("tell", check.definition.id))
        check.synced_output, check.told_at = check.output, now
        self._changes.tell = True

    def _keep(self, check: CheckState, now: float) -> None:
        check.saved_at = now
        self._changes.keep.add(check.definition.id)
