"""The shell of the local state: runs checks, keeps registrations on disk, and makes the catalog follow (anti-entropy)."""

import asyncio
import contextlib
import heapq
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import quote, unquote

import msgspec

from mesh_agent.agent import consul_json
from mesh_agent.agent.checks import Result, Streak, expired, removal_due, shortened
from mesh_agent.agent.definition import CheckDefinition, ServiceDefinition
from mesh_agent.agent.local_state import NODE_MAINTENANCE, CheckState, LocalState, Source, service_model
from mesh_agent.agent.probes.client import Probes
from mesh_agent.agent.reconcile import diff
from mesh_agent.catalog.reader import CatalogReader
from mesh_agent.catalog.view import View
from mesh_agent.clock import Clock
from mesh_agent.config.settings import AgentConfig
from mesh_agent.errors import InvalidRequest, MeshError
from mesh_agent.model import Check, Node, Service, Status, Topic

log = logging.getLogger(__name__)
T = TypeVar("T")

Sync = Callable[[dict[str, bytes], list[str]], Awaitable[None]]
"""Writes (puts, deletes) of this node's records to the catalog; raises MeshError if it could not."""

_SYNC_WAIT_S = 1.0
_SYNC_EVERY_S = 60.0
_SYNC_RETRY_S = (0.5, 30.0)
_SYNC_CHUNK = 1024
_MAX_RUNNING = 64


class _Saved(msgspec.Struct):
    """Results of checks on disk."""

    statuses: dict[str, tuple[Status, str]]


class _Due(NamedTuple):
    """An entry of the heap of checks."""

    at: float
    order: int
    check_id: str
    definition: CheckDefinition


class LocalAgent:
    """This node's services and checks. One task (`run`) drives it; the methods below may be called by any handler of the same loop."""

    def __init__(
        self,
        config: AgentConfig,
        node: Node,
        catalog: CatalogReader,
        sync: Sync,
        probes: Probes,
        directory: Path,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.node = node
        self._config = config
        self._catalog = catalog
        self._write = sync
        self._probes = probes
        self._files = _Files(directory)
        self._clock, self._rng = clock, rng
        self._state = LocalState((config.ports.sidecar_min, config.ports.sidecar_max))
        self._streaks: dict[str, Streak] = {}
        self._critical_since: dict[str, float] = {}
        self._told_at: dict[str, float] = {}
        self._due: list[_Due] = []
        self._order = 0
        self._wake_checks = asyncio.Event()
        self._wake_sync = asyncio.Event()
        self._synced = asyncio.Condition()
        self._dirty, self._attempted = 1, 0
        self._running: set[str] = set()
        self._statuses_changed = False
        self._listeners: list[Callable[[], None]] = []
        self._listened: View | None = None
        self._stop_listening: Callable[[], None] = lambda: None

    # reading

    def services(self) -> list[Service]:
        """Services of this node."""
        return self._state.service_models(self.node.name)

    def checks(self) -> list[Check]:
        """Checks of this node."""
        return self._state.check_models(self.node.name)

    def service(self, service_id: str) -> Service | None:
        """One service."""
        found = self._state.services.get(service_id)
        return None if found is None else service_model(found.definition, self.node.name)

    def proxy(self, service_id: str) -> Service | None:
        """One service if it is a sidecar proxy."""
        found = self.service(service_id)
        return found if found is not None and found.kind == "connect-proxy" else None

    def runs_service(self, name: str) -> bool:
        """Whether an instance of service `name` is registered here."""
        return any(registered.definition.name == name for registered in self._state.services.values())

    def service_health(self, service_id: str) -> tuple[Status, list[Check]]:
        """Worst status of a service, and the checks that bear on it."""
        status, states = self._state.health(service_id)
        return status, [self._state.check_model(state, self.node.name) for state in states]

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener()` after each change of the registrations; the returned function stops that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    # registering

    async def register_service(self, definition: ServiceDefinition, *, replace_existing_checks: bool = False) -> None:
        """Add or replace a service. Returns once it is on disk and a sync was tried."""
        self._allow([*definition.checks, *(definition.sidecar.checks if definition.sidecar else ())])
        self._register(definition, Source.API, replace_existing_checks)
        await self._changed()

    def _register(self, definition: ServiceDefinition, source: Source, replace: bool = False) -> None:
        complete = self._state.register(definition, source, replace_existing_checks=replace)
        if source is Source.API:
            self._files.put("services", complete.service_id, complete)
        self._schedule_new()

    async def deregister_service(self, service_id: str) -> None:
        """Take a service away; NotFound for an unknown one."""
        self._state.deregister(service_id)
        self._files.remove("services", service_id)
        self._forget_orphans()
        await self._changed()

    async def register_check(self, definition: CheckDefinition) -> None:
        """Add or replace a check."""
        self._allow([definition])
        check_id = self._state.register_check(definition, Source.API)
        self._files.put("checks", check_id, self._state.check(check_id).definition)
        self._schedule_new()
        await self._changed()

    async def deregister_check(self, check_id: str) -> None:
        """Take a check away; NotFound for an unknown one."""
        self._state.deregister_check(check_id)
        self._files.remove("checks", check_id)
        await self._changed()

    async def update_ttl(self, check_id: str, status: Status, output: str) -> None:
        """A service reports its own health; NotFound for an unknown check, InvalidRequest for one that is not a TTL check."""
        state = self._state.check(check_id)
        if state.definition.kind != "ttl":
            raise InvalidRequest(f'CheckID "{check_id}" is not a TTL check')
        self._take(check_id, state, Result(status, output))
        self._schedule(check_id, state.definition, state.definition.ttl_s)
        if self._dirty > self._attempted:
            await self._wait_for_sync()

    async def service_maintenance(self, service_id: str, *, enable: bool, reason: str) -> None:
        """Take a service out of service, or back; NotFound for an unknown one."""
        self._state.service_maintenance(service_id, enable=enable, reason=reason)
        self._keep_maintenance("_service_maintenance:" + service_id, enable)
        await self._changed()

    async def node_maintenance(self, *, enable: bool, reason: str) -> None:
        """Take the node out of service, or back."""
        self._state.node_maintenance(enable=enable, reason=reason)
        self._keep_maintenance(NODE_MAINTENANCE, enable)
        await self._changed()

    def _keep_maintenance(self, check_id: str, enable: bool) -> None:
        if enable:
            self._files.put("checks", check_id, self._state.check(check_id).definition)
        else:
            self._files.remove("checks", check_id)

    def _allow(self, definitions: list[CheckDefinition]) -> None:
        if not self._config.checks.enable_script_checks and any(each.args for each in definitions):
            raise InvalidRequest(
                "Scripts are disabled on this agent; to enable, set checks.enable_script_checks = true in its settings"
            )

    def _forget_orphans(self) -> None:
        for check_id in self._files.names("checks"):
            if check_id not in self._state.checks:
                self._files.remove("checks", check_id)

    # files of definitions

    async def reload(self) -> None:
        """Read services_dir again; InvalidRequest names a broken file and nothing changes."""
        self._load_files()
        await self._changed()

    def _load_files(self) -> None:
        services: list[ServiceDefinition] = []
        found: list[CheckDefinition] = []
        if self._config.services_dir:
            for path in sorted(Path(self._config.services_dir).glob("*.json")):
                try:
                    more, alone = consul_json.file(msgspec.json.decode(path.read_bytes()), path.name)
                    self._allow([each for service in more for each in service.checks] + alone)
                except (OSError, msgspec.DecodeError, MeshError) as error:
                    raise InvalidRequest(f"{path}: {error}") from error
                services += more
                found += alone
        wanted = {each.service_id for each in services}
        old_services, old_checks = self._state.ids_of(Source.FILE)
        sidecars = {f"{service_id}-sidecar-proxy" for service_id in wanted}
        for service_id in old_services:
            if service_id not in wanted | sidecars and service_id in self._state.services:
                self._state.deregister(service_id)
        for check_id in old_checks:
            if check_id not in {each.id or each.name for each in found} and check_id in self._state.checks:
                self._state.deregister_check(check_id)
        for service in services:
            self._register(service, Source.FILE)
        for each in found:
            self._state.register_check(each, Source.FILE)
        self._schedule_new()

    def restore(self) -> None:
        """Take over what an earlier run kept on disk; files of definitions are read. Call before `run`."""
        for definition in self._files.read("services", ServiceDefinition):
            with self._tolerated(f"service {definition.service_id}"):
                self._state.register(definition, Source.API)
        for check in self._files.read("checks", CheckDefinition):
            with self._tolerated(f"check {check.id}"):
                self._state.register_check(check, Source.API)
        with self._tolerated("services_dir"):
            self._load_files()
        for check_id, (status, output) in self._files.statuses().items():
            state = self._state.checks.get(check_id)
            if state is not None:
                state.status, state.output, state.synced_output = status, output, output
        self._schedule_new()

    @contextlib.contextmanager
    def _tolerated(self, what: str) -> Iterator[None]:
        """One broken registration on disk does not take the others with it."""
        try:
            yield
        except MeshError as error:
            log.error("%s of an earlier run is left out: %s", what, error)

    # running

    async def run(self) -> None:
        """Run checks and keep the catalog in step, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run_sync())
            group.create_task(self._run_checks(group))

    # checks

    def _schedule_new(self) -> None:
        """Plan the first run of every check that has none; spread, so that a restart is no burst."""
        planned = {due.check_id: due.definition for due in self._due}
        for check_id, state in self._state.checks.items():
            definition = state.definition
            if planned.get(check_id) == definition or check_id in self._running:
                continue
            self._streaks[check_id] = Streak()
            if state.status is Status.CRITICAL:
                self._critical_since.setdefault(check_id, self._clock.now())
            first_s = (
                definition.ttl_s if definition.kind == "ttl" else self._rng.uniform(0, min(1.0, self._every(state)))
            )
            self._schedule(check_id, definition, first_s)

    def _every(self, state: CheckState) -> float:
        return state.definition.interval_s or 1.0

    def _schedule(self, check_id: str, definition: CheckDefinition, delay_s: float) -> None:
        if not definition.kind:
            return
        self._order += 1
        if definition.kind == "ttl":  # an update moves the deadline: the earlier entry is stale
            self._due = [due for due in self._due if due.check_id != check_id]
            heapq.heapify(self._due)
        heapq.heappush(self._due, _Due(self._clock.now() + delay_s, self._order, check_id, definition))
        self._wake_checks.set()

    async def _run_checks(self, group: asyncio.TaskGroup) -> None:
        while True:
            self._wake_checks.clear()
            wait_s = max(0.0, self._due[0].at - self._clock.now()) if self._due else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake_checks.wait()
                continue
            now = self._clock.now()
            while self._due and self._due[0].at <= now:
                due = heapq.heappop(self._due)
                state = self._state.checks.get(due.check_id)
                if state is None or state.definition != due.definition:
                    continue
                if len(self._running) >= _MAX_RUNNING:
                    self._schedule(due.check_id, due.definition, 0.1)
                    break
                await self._check(group, due, state)

    async def _check(self, group: asyncio.TaskGroup, due: _Due, state: CheckState) -> None:
        kind = due.definition.kind
        if kind == "ttl":
            if state.status is not Status.CRITICAL:
                result = Result(Status.CRITICAL, expired(due.definition.ttl_s))
                self._take(due.check_id, state, result)
            self._remove_if_due(due.check_id, state)
            if due.definition.deregister_after_s and due.check_id in self._state.checks:
                self._schedule(due.check_id, due.definition, 5.0)
        elif kind == "alias":
            self._take(due.check_id, state, self._alias(due.definition))
            self._schedule(due.check_id, due.definition, 1.0)
        else:
            self._running.add(due.check_id)
            group.create_task(self._probe(due, state))

    async def _probe(self, due: _Due, state: CheckState) -> None:
        try:
            result = await self._probes.run(due.definition)
        finally:
            self._running.discard(due.check_id)
        if self._state.checks.get(due.check_id) is not state or state.definition != due.definition:
            self._schedule_new()
            return
        self._take(due.check_id, state, result)
        self._remove_if_due(due.check_id, state)
        if due.check_id in self._state.checks:
            self._schedule(due.check_id, due.definition, due.definition.interval_s)

    def _alias(self, definition: CheckDefinition) -> Result:
        """The health of something else."""
        if definition.alias_service and definition.alias_node in ("", self.node.name):
            if definition.alias_service not in self._state.services:
                text = f"Service {definition.alias_service} could not be found on node {self.node.name}"
                return Result(Status.CRITICAL, text)
            status, _ = self._state.health(definition.alias_service)
            return Result(status, "All checks passing." if status is Status.PASSING else "Aliased service is not well.")
        topic = Topic(self._config.datacenter, "node", definition.alias_node)
        view = self._catalog.view(topic)
        node = None if view is None else view.node(definition.alias_node)
        if view is None or node is None:
            return Result(Status.CRITICAL, f"Node {definition.alias_node} could not be found")
        found = view.checks_of(node.name).values()
        relevant = [c for c in found if c.service_id in ("", definition.alias_service)]
        worst = max((c.status for c in relevant), key=lambda s: s.severity, default=Status.PASSING)
        return Result(worst, "All checks passing." if worst is Status.PASSING else "Aliased node is not well.")

    def _take(self, check_id: str, state: CheckState, result: Result) -> None:
        """A result of a check."""
        streak = self._streaks.setdefault(check_id, Streak())
        status = result.status
        if state.definition.kind not in ("ttl", "alias"):
            status = streak.decide(state.definition, result, state.status)
        now = self._clock.now()
        tell = now - self._told_at.get(check_id, float("-inf")) >= self._config.checks.update_interval_s
        before = state.status
        output = shortened(result.output, self._config.checks.output_max_bytes)
        if state.set(status, output, tell=tell):
            self._told_at[check_id] = now
            self._mark()
        if status is Status.CRITICAL:
            self._critical_since.setdefault(check_id, now)
        else:
            self._critical_since.pop(check_id, None)
        if before is not status:
            self._statuses_changed = True
            self._follow_aliases(state.definition.service_id)
            log.info("check %s is %s now", check_id, status.value)

    def _follow_aliases(self, service_id: str) -> None:
        """What stands for the service follows at once."""
        for check_id, state in tuple(self._state.checks.items()):
            if state.definition.kind == "alias" and state.definition.alias_service == service_id and service_id:
                self._take(check_id, state, self._alias(state.definition))

    def _remove_if_due(self, check_id: str, state: CheckState) -> None:
        due = removal_due(state.definition, self._critical_since.get(check_id))
        if due is None or state.status is not Status.CRITICAL or self._clock.now() < due:
            return
        service_id = state.definition.service_id
        log.warning("service %s is taken away: check %s has been critical for too long", service_id, check_id)
        self._state.deregister(service_id)
        self._files.remove("services", service_id)
        self._mark()
        for listener in tuple(self._listeners):
            listener()

    # anti-entropy

    def _mark(self) -> None:
        self._dirty += 1
        self._wake_sync.set()

    async def _changed(self) -> None:
        """After a change of registrations: tell listeners, try to sync."""
        self._mark()
        for listener in tuple(self._listeners):
            listener()
        await self._wait_for_sync()

    async def _wait_for_sync(self) -> None:
        wanted = self._dirty
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SYNC_WAIT_S), self._synced:
                await self._synced.wait_for(lambda: self._attempted >= wanted)

    async def _run_sync(self) -> None:
        topic = Topic(self._config.datacenter, "node", self.node.name)
        failures = 0
        while True:
            self._wake_sync.clear()
            seen = self._dirty
            try:
                await self._sync(topic)
                failures = 0
            except MeshError as error:
                failures += 1
                log.log(
                    logging.WARNING if failures == 1 else logging.DEBUG, "registrations could not be synced: %s", error
                )
            if self._statuses_changed:
                self._statuses_changed = False
                self._files.save_statuses({cid: (s.status, s.output) for cid, s in self._state.checks.items()})
            async with self._synced:
                self._attempted = seen
                self._synced.notify_all()
            first_s, last_s = _SYNC_RETRY_S
            wait_s = min(last_s, first_s * 2 ** min(failures - 1, 10)) if failures else _SYNC_EVERY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s * self._rng.uniform(0.75, 1.25)):
                    await self._wake_sync.wait()

    async def _sync(self, topic: Topic) -> None:
        view = await self._catalog.ensure(topic, timeout_s=5.0)
        if view is not self._listened:  # somebody else may change what the catalog says of this node: look again then
            self._stop_listening()
            self._listened = view
            self._stop_listening = view.listen(topic, lambda _: self._wake_sync.set())
        held = {key: record.value for key, record in view.records(topic).items()}
        puts, deletes = diff(self._state.records(self.node), held, self.node.name)
        while puts or deletes:
            part = dict(list(puts.items())[:_SYNC_CHUNK])
            await self._write(part, deletes[:_SYNC_CHUNK])
            puts = {key: value for key, value in puts.items() if key not in part}
            deletes = deletes[_SYNC_CHUNK:]


class _Files:
    """Registrations on disk: a file for each, replaced in one step."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, kind: str, name: str, value: ServiceDefinition | CheckDefinition) -> None:
        self._write(self._path(kind, name), msgspec.json.encode(value))

    def remove(self, kind: str, name: str) -> None:
        self._path(kind, name).unlink(missing_ok=True)

    def names(self, kind: str) -> list[str]:
        return [unquote(path.stem) for path in sorted((self._directory / kind).glob("*.json"))]

    def read(self, kind: str, kind_type: type[T]) -> list[T]:
        found: list[T] = []
        for path in sorted((self._directory / kind).glob("*.json")):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=kind_type))
            except (OSError, msgspec.MsgspecError) as error:
                log.error("%s cannot be read and is left out: %s", path, error)
        return found

    def statuses(self) -> dict[str, tuple[Status, str]]:
        try:
            return msgspec.json.decode((self._directory / "statuses.json").read_bytes(), type=_Saved).statuses
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("results of an earlier run cannot be read: %s", error)
            return {}

    def save_statuses(self, statuses: dict[str, tuple[Status, str]]) -> None:
        self._write(self._directory / "statuses.json", msgspec.json.encode(_Saved(statuses)))

    def _path(self, kind: str, name: str) -> Path:
        return self._directory / kind / f"{quote(name, safe='')}.json"

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fresh = path.with_name(path.name + ".new")
        fresh.write_bytes(content)
        fresh.replace(path)
