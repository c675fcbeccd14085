"""The shell of this node's services and checks: keeps them on disk, runs checks, has the catalog follow."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from mesh_agent.agent.aliases import RemoteViews, of_node
from mesh_agent.agent.checks import Result
from mesh_agent.agent.definition import CheckDefinition, ServiceDefinition
from mesh_agent.agent.local_state import Kept, LocalState, Source, service_model
from mesh_agent.agent.monitor import Effect, Monitor, Probe, SavedResult
from mesh_agent.agent.probes.client import Probes
from mesh_agent.agent.records import Records
from mesh_agent.agent.storage.runner import Definitions, Storage, read_definitions
from mesh_agent.agent.sync.runner import AntiEntropy, Sync
from mesh_agent.catalog.reader import CatalogReader
from mesh_agent.clock import Clock
from mesh_agent.config.settings import AgentConfig
from mesh_agent.errors import InvalidRequest, MeshError, NotFound, StoreUnavailable, Unreachable
from mesh_agent.model import Check, Node, Service, Status, Topic
from mesh_agent.telemetry import Metrics

log = logging.getLogger(__name__)
T = TypeVar("T")

_SYNC_WAIT_S = 1.0
_PORTS = "sidecar_ports"


class _Result(msgspec.Struct):
    """A result of a check on disk; `at` is wall time, `boot` the life of the host that it was found in (empty: not known)."""

    id: str
    status: Status
    output: str
    at: float
    boot: str = ""


class LocalAgent:
    """This node's services and checks. `run` drives it; the methods below may be called by any handler of the same loop."""

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
        metrics: Metrics | None = None,
        *,
        boot_id: str = "",
    ) -> None:
        """`boot_id` is another one each time the host starts: with the host its services start anew, and results of before say nothing of them."""
        self.node = node
        self._boot_id = boot_id
        self._config = config
        self._catalog = catalog
        self._probes = probes
        self._storage = Storage(directory)
        self._clock = clock
        self._metrics = metrics or Metrics()
        self._state = LocalState((config.ports.sidecar_min, config.ports.sidecar_max))
        self._records = Records(node)
        self._kept: Kept = {}
        self._kept_ports: dict[str, int] = {}
        self._monitor = Monitor(self._state, node.name, config.checks, rng)
        self._entropy = AntiEntropy(
            node.name, catalog, sync, lambda: self._records.of(self._state), clock, rng, self._metrics
        )
        self._wake = asyncio.Event()
        self._armed_at = float("-inf")
        self._unsaved: set[str] = set()
        self._save = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []
        self._remote = RemoteViews(self._look_again)

    # reading

    def services(self) -> list[Service]:
        """Services of this node."""
        return self._records.services(self._state)

    def checks(self) -> list[Check]:
        """Checks of this node."""
        return self._state.check_models(self.node.name)

    def service(self, service_id: str) -> Service | None:
        """One service."""
        found = self._state.services.get(service_id)
        return None if found is None else service_model(found.definition, self.node.name)

    def definition(self, service_id: str) -> ServiceDefinition | None:
        """One service as it was registered, with its checks and its sidecar."""
        found = self._state.services.get(service_id)
        return None if found is None else found.definition

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

        def stop() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return stop

    # registering: each returns once the change is on disk and a sync was tried

    async def register_service(self, definition: ServiceDefinition, *, replace_existing_checks: bool = False) -> None:
        """Add or replace a service. InvalidRequest and StoreUnavailable leave everything as it was."""
        self._allow(definition.all_checks)
        await self._change(
            lambda state: state.register(definition, Source.API, replace_existing_checks=replace_existing_checks)
        )

    async def deregister_service(self, service_id: str) -> None:
        """Take a service away; NotFound for an unknown one."""
        await self._change(lambda state: state.deregister(service_id))

    async def register_check(self, definition: CheckDefinition) -> None:
        """Add or replace a check."""
        self._allow([definition])
        await self._change(lambda state: state.register_check(definition, Source.API))

    async def deregister_check(self, check_id: str) -> None:
        """Take a check away; NotFound for an unknown one."""
        await self._change(lambda state: state.deregister_check(check_id))

    async def update_ttl(self, check_id: str, status: Status, output: str) -> None:
        """A service reports its own health; NotFound for an unknown check, InvalidRequest for one that is not a TTL check."""
        self._monitor.update_ttl(check_id, status, output, self._clock.now())
        told = self._settle()
        if self._unsaved:
            await self._save_results()
        if told:
            await self._entropy.settled(_SYNC_WAIT_S)

    async def service_maintenance(self, service_id: str, *, enable: bool, reason: str) -> None:
        """Take a service out of service, or back; NotFound for an unknown one."""
        await self._change(lambda state: state.service_maintenance(service_id, enable=enable, reason=reason))

    async def node_maintenance(self, *, enable: bool, reason: str) -> None:
        """Take the node out of service, or back."""
        await self._change(lambda state: state.node_maintenance(enable=enable, reason=reason))

    async def reload(self) -> None:
        """Read services_dir again; InvalidRequest names a broken file and nothing changes."""
        await self._change(lambda state: state.load(*self._read_files()))

    async def follow_pods(self, services: Iterable[ServiceDefinition]) -> dict[str, str]:
        """Make these the services of this node's pods, and no others; returns why some could not be registered, by id.

        Pods are real whether or not the disk is full: what cannot be kept is registered all the same.
        """
        fresh = self._state.copy()
        refused = fresh.follow_pods(services)
        self._adopt(fresh)
        with self._forgiven("pods"):
            await self._persist()
        await self._entropy.settled(_SYNC_WAIT_S)
        return refused

    def _allow(self, definitions: Iterable[CheckDefinition]) -> None:
        if not self._config.checks.enable_script_checks and any(each.args for each in definitions):
            raise InvalidRequest(
                "Scripts are disabled on this agent; to enable, set checks.enable_script_checks = true in its settings"
            )

    async def _change(self, change: Callable[[LocalState], T]) -> None:
        """Make a change, or none: what it raises leaves everything as it was."""
        before, fresh = self._state, self._state.copy()
        change(fresh)
        self._adopt(fresh)
        try:
            await self._persist()
        except StoreUnavailable:
            if self._state is fresh:
                self._adopt(before)
            raise
        await self._entropy.settled(_SYNC_WAIT_S)

    def _adopt(self, state: LocalState) -> None:
        self._state = state
        self._monitor.adopt(state, self._clock.now())
        self._remote.keep_only({check.definition.alias_node.lower() for check in state.checks.values()})
        self._entropy.mark()
        self._settle()
        for listener in tuple(self._listeners):
            listener()

    # disk

    async def _persist(self) -> None:
        """Write what the API brought and is not on disk yet."""
        wanted, ports = self._state.kept(), dict(self._state.ports)
        changed: dict[tuple[str, str], object] = {
            at: each for at, each in wanted.items() if self._kept.get(at) is not each
        }
        changed |= dict.fromkeys(at for at in self._kept if at not in wanted)
        if ports != self._kept_ports:
            changed["", _PORTS] = ports
        self._kept, self._kept_ports = wanted, ports
        try:
            await self._storage.write(changed)
        except StoreUnavailable:
            for at in changed:  # what is there now is unknown: the next change writes it again, or removes it
                if at != ("", _PORTS):
                    self._kept[at] = _UNKNOWN
            self._kept_ports = {}
            raise

    async def _save_results(self) -> None:
        ids, self._unsaved = self._unsaved, set()
        at = self._clock.wall()
        values: dict[tuple[str, str], object] = {}
        for check_id in ids:
            check = self._state.checks.get(check_id)
            values["results", check_id] = check and _Result(check_id, check.status, check.output, at, self._boot_id)
        with self._forgiven("results of checks"):
            await self._storage.write(values, durable=False)

    @contextlib.contextmanager
    def _forgiven(self, what: str) -> Iterator[None]:
        """A full disk is no reason to stop."""
        try:
            yield
        except StoreUnavailable as error:
            log.error("%s %s", what, error)

    def restore(self) -> None:
        """Take over what an earlier run kept on disk; files of definitions are read. Call before `run`."""
        state, now = self._state.copy(), self._clock.now()
        state.ports = self._storage.read_one(_PORTS, dict[str, int]) or {}
        services = self._storage.read("services", ServiceDefinition)
        checks = self._storage.read("checks", CheckDefinition)
        for definition in services:
            state = _tolerant(
                state,
                f"service {definition.service_id}",
                partial(LocalState.register, definition=definition, source=Source.API),
            )
        pods = self._storage.read("pods", ServiceDefinition)
        if self._config.kubernetes.api:  # they stay until the API server has said which are gone
            state.follow_pods(pods)
        state = _tolerant(state, "services_dir", lambda s: s.load(*self._read_files()))
        for check in checks:  # last, as they may be of services that files define
            state = _tolerant(
                state, f"check {check.id}", partial(LocalState.register_check, definition=check, source=Source.API)
            )
        wanted = state.kept()
        found = [("services", each.service_id) for each in services if each.service_id in state.services]
        found += [("pods", each.service_id) for each in pods]
        found += [("checks", each.id) for each in checks if each.id in state.checks]
        self._kept = {at: wanted.get(at, _UNKNOWN) for at in found}  # what a file has taken over since goes from disk
        self._adopt(state)
        results = self._storage.read("results", _Result)
        saved = {
            each.id: SavedResult(each.status, each.output, each.at)
            for each in results
            if each.boot in ("", self._boot_id)
        }
        self._monitor.resume(saved, now, self._clock.wall())
        self._settle()
        self._unsaved = {each.id for each in results if each.id not in state.checks}

    def _read_files(self) -> Definitions:
        return read_definitions(self._config.services_dir, self._allow)

    # running

    def leave(self) -> None:
        """This node leaves the mesh: the catalog hears nothing of it any more."""
        self._entropy.fall_silent()

    async def run(self) -> None:
        """Run checks and keep the catalog in step, for ever."""
        try:
            with self._forgiven("registrations"):
                await self._persist()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._entropy.run())
                group.create_task(self._run_checks(group))
                group.create_task(self._run_saves())
        finally:
            self._remote.keep_only(set())
            self._storage.close()

    async def _run_saves(self) -> None:
        while True:
            await self._save.wait()
            self._save.clear()
            if self._unsaved:
                await self._save_results()

    async def _run_checks(self, group: asyncio.TaskGroup) -> None:
        while True:
            self._wake.clear()
            for effect in self._monitor.wake(self._clock.now()):
                self._perform(effect, group)
            self._settle()
            at = self._monitor.deadline()
            self._armed_at = float("inf") if at is None else at
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if at is None else max(0.0, at - self._clock.now())):
                    await self._wake.wait()

    def _perform(self, effect: Effect, group: asyncio.TaskGroup) -> None:
        if isinstance(effect, Probe):
            group.create_task(self._probe(effect.definition))
            return
        log.warning(
            "service %s is taken away: check %s has been critical for too long", effect.service_id, effect.check_id
        )
        group.create_task(self._remove(effect.service_id))

    async def _probe(self, definition: CheckDefinition) -> None:
        if definition.kind == "alias":
            result = await self._probe_node(definition)
        else:
            result = await self._probes.run(definition)
        self._metrics.count("mesh_agent_check_runs_total", kind=definition.kind, status=result.status.value)
        self._monitor.report(definition, result, self._clock.now())
        self._settle()

    async def _probe_node(self, definition: CheckDefinition) -> Result:
        """An alias check of another node: what the catalog says, at once when that changes."""
        topic = Topic(self._catalog.datacenter, "node", definition.alias_node.lower())
        try:
            view = await self._catalog.ensure(topic, 5.0)
        except Unreachable as error:
            return Result(Status.CRITICAL, f"Node {definition.alias_node} is not known: {error}")
        if definition.id in self._state.checks:
            self._remote.follow(topic, view)
        return of_node(view, definition)

    def _look_again(self, topic: Topic) -> None:
        for check_id, check in self._state.checks.items():
            if check.definition.alias_node.lower() == topic.name:
                self._monitor.look_again(check_id, self._clock.now())
        self._rearm()

    async def _remove(self, service_id: str) -> None:
        with self._forgiven(f"that service {service_id} is gone"), contextlib.suppress(NotFound):
            await self.deregister_service(service_id)

    def _settle(self) -> bool:
        """Pass on what the monitor has to say; whether the catalog should hear of it."""
        changes = self._monitor.drain()
        for check_id, status in changes.statuses.items():
            log.info("check %s is %s now", check_id, status.value)
        if changes.keep:
            self._unsaved |= changes.keep
            self._save.set()
        if changes.tell:
            self._entropy.mark()
        self._rearm()
        return changes.tell

    def _rearm(self) -> None:
        """Wake the checks if something is due earlier than they sleep."""
        at = self._monitor.deadline()
        if at is not None and at < self._armed_at:
            self._wake.set()


_UNKNOWN = CheckDefinition()
"""Stands for a file whose content is not known."""


def _tolerant(state: LocalState, what: str, change: Callable[[LocalState], object]) -> LocalState:
    """One broken registration on disk does not take the others with it."""
    fresh = state.copy()
    try:
        change(fresh)
    except MeshError as error:
        log.error("%s of an earlier run is left out: %s", what, error)
        return state
    return fresh
