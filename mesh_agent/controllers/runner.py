"""Runs the controllers: the one replica that holds the lease follows cluster and mesh, and lets each area have a round whenever something changed."""

import asyncio
import logging
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import msgspec

from mesh_agent.clock import Clock
from mesh_agent.controllers import to_mesh
from mesh_agent.controllers.areas import Area, BundleArea, ToKubernetesArea, ToMeshArea
from mesh_agent.controllers.client import Followed, Mesh
from mesh_agent.controllers.config_sync import KINDS, collection
from mesh_agent.controllers.entries import EntriesArea
from mesh_agent.controllers.lease import Election
from mesh_agent.controllers.objects import Json, address_of, without_history
from mesh_agent.controllers.server import Operations
from mesh_agent.controllers.settings import Settings
from mesh_agent.errors import MeshError, NotFound, StoreConflict
from mesh_agent.injector.names import CA_CONFIG_MAP
from mesh_agent.kubernetes.annotations import INJECTED
from mesh_agent.kubernetes.client import KubernetesApi
from mesh_agent.kubernetes.runner import Mirror
from mesh_agent.telemetry import Metrics

log = logging.getLogger(__name__)
_RETRY_S = (0.2, 30.0)
_PAUSE_S = 0.05
"""Between two rounds of an area, so that a burst of changes is one round."""
_REST = 2.0
"""Nor more than a third of the time in rounds, however large the cluster and however busy."""
_LEASE = "mesh-controllers"


class Worker:
    """Lets one area have its rounds."""

    def __init__(self, metrics: Metrics, clock: Clock, rng: random.Random, resync_s: float) -> None:
        self.awaits: list[str] = ["its first look"]
        self._metrics, self._clock, self._rng, self._resync_s = metrics, clock, rng, resync_s
        self._woken = asyncio.Event()
        self._problems: frozenset[str] = frozenset()

    def wake(self) -> None:
        """Something changed."""
        self._woken.set()

    async def run(self, area: Area) -> None:
        """Rounds, for ever; a failed one is repeated, ever more slowly, up to half a minute."""
        failures = 0
        while True:
            self._woken.clear()
            self.awaits = area.awaits()
            began = self._clock.now()
            if not self.awaits:
                failures = 0 if await self._round(area) else failures + 1
            took_s = self._clock.now() - began
            if failures:
                pause_s = min(_RETRY_S[1], _RETRY_S[0] * 2 ** min(failures, 10)) * (0.5 + self._rng.random() / 2)
                await asyncio.sleep(pause_s)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(self._resync_s):
                    await self._woken.wait()
            await asyncio.sleep(max(_PAUSE_S, took_s * _REST))

    async def _round(self, area: Area) -> bool:
        try:
            report = await area.round()
        except StoreConflict as error:
            log.info("%s: looks again: %s", area.name, error)
            self._metrics.count("mesh_controllers_rounds_total", area=area.name, result="conflict")
            return False
        except MeshError as error:
            log.warning("%s: trying again: %s", area.name, error)
            self._metrics.count("mesh_controllers_rounds_total", area=area.name, result="failed")
            return False
        for text in report.done:
            log.info("%s: %s", area.name, text)
        problems = frozenset(report.problems)
        for text in sorted(problems - self._problems):
            log.warning("%s: %s", area.name, text)
        self._problems = problems
        self._metrics.count("mesh_controllers_rounds_total", area=area.name, result="done")
        self._metrics.count("mesh_controllers_changes_total", len(report.done), area=area.name)
        self._metrics.gauge("mesh_controllers_problems", len(problems), area=area.name)
        return True


class Controllers:
    """The process of `mesh controllers`."""

    def __init__(
        self, settings: Settings, cluster: KubernetesApi, mesh: Mesh, clock: Clock, rng: random.Random
    ) -> None:
        self.metrics = Metrics()
        self._settings, self._cluster, self._mesh = settings, cluster, mesh
        self._clock, self._rng = clock, rng
        self._election = Election(_LEASE, settings.namespace, settings.identity, settings.lease_s)
        self._workers: dict[str, Worker] = {}
        self._work: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._ended = asyncio.Event()
        _describe(self.metrics)
        self.metrics.collect(lambda: [("mesh_controllers_leading", {}, float(self._election.leading))])

    def missing(self) -> list[str]:
        """What keeps this replica from being ready; a replica that waits for the lease is."""
        if not self._election.leading:
            return [] if self._election.holder else ["a look at the lease"]
        if not self._workers:
            return ["the node's agent"]
        return [f"{name} waits for {', '.join(each.awaits)}" for name, each in self._workers.items() if each.awaits]

    async def run(self, stopping: asyncio.Event) -> None:
        """Until `stopping`; then the lease is given back."""
        try:
            while not stopping.is_set() and not self._ended.is_set():
                await self._elect()
                await self._follow_election()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.lease_s / 8):
                        await _any(stopping, self._ended)
        finally:
            await self._end_work()
            await self._release()
        if self._failure is not None:
            raise self._failure

    # the lease

    async def _elect(self) -> None:
        election, now = self._election, self._clock.now()
        try:
            async with asyncio.timeout(self._settings.lease_s / 4):
                lease = await self._lease()
                wanted = election.next(lease, now, self._clock.wall())
                if wanted is None:
                    return
                path = election.path if lease is None else f"{election.path}/{election.name}"
                await self._cluster.request("POST" if lease is None else "PUT", path, wanted)
                election.written(now)
                return
        except StoreConflict:
            log.info("another replica was faster with the lease")
            election.lost()
        except (MeshError, TimeoutError) as error:
            log.warning("the lease cannot be had: %s", error or "no answer in time")
        if election.must_stop(self._clock.now()):
            log.error("the lease could not be renewed in time; this replica stops working")
            election.lost()

    async def _lease(self) -> dict[str, object] | None:
        try:
            return await self._cluster.request("GET", f"{self._election.path}/{self._election.name}")
        except NotFound:
            return None

    async def _follow_election(self) -> None:
        if self._election.leading and self._work is None:
            log.info("this replica works: it holds the lease")
            self._work = asyncio.create_task(self._run_areas())
            self._work.add_done_callback(self._work_ended)
        elif not self._election.leading and self._work is not None:
            log.info("this replica waits: %s holds the lease", self._election.holder or "another one")
            await self._end_work()

    def _work_ended(self, work: asyncio.Task[None]) -> None:
        if not work.cancelled() and work.exception() is not None:
            self._failure = work.exception()
            self._ended.set()

    async def _end_work(self) -> None:
        if self._work is not None:
            self._work.cancel()
            with suppress(asyncio.CancelledError, Exception):  # an exception of it was kept by `_work_ended`
                await self._work
        self._work, self._workers = None, {}

    async def _release(self) -> None:
        if not self._election.leading:
            return
        try:
            async with asyncio.timeout(2.0):
                lease = await self._lease()
                if lease is not None and self._election.is_ours(lease):
                    path = f"{self._election.path}/{self._election.name}"
                    await self._cluster.request("PUT", path, self._election.released(lease))
        except (MeshError, TimeoutError) as error:
            log.warning("the lease could not be given back; it runs out: %s", error)
        self._election.lost()

    # the work

    async def _run_areas(self) -> None:
        settings = await self._settled()
        async with asyncio.TaskGroup() as group:
            self._workers = {}
            for area, worker in _Areas(settings, self._cluster, self._mesh, self._clock, self._rng, group).made(
                lambda: Worker(self.metrics, self._clock, self._rng, settings.resync_s)
            ):
                self._workers[area.name] = worker
                group.create_task(worker.run(area))

    async def _settled(self) -> Settings:
        """The settings with what only the agent knows; asks until it answers."""
        pause_s, longest_s = _RETRY_S
        while True:
            try:
                found = await self._mesh.get("/v1/agent/self")
                own = str(found["Config"]["Datacenter"])
                return msgspec.structs.replace(self._settings, datacenter=own, cluster=self._settings.cluster or own)
            except MeshError as error:
                log.warning("waiting for the node's agent: %s", error)
            await asyncio.sleep(pause_s)
            pause_s = min(longest_s, pause_s * 2)


class _Areas:
    """Makes the areas and starts what they look at."""

    def __init__(
        self,
        settings: Settings,
        cluster: KubernetesApi,
        mesh: Mesh,
        clock: Clock,
        rng: random.Random,
        group: asyncio.TaskGroup,
    ) -> None:
        self._settings, self._cluster, self._mesh = settings, cluster, mesh
        self._clock, self._rng, self._group = clock, rng, group

    def made(self, worker: Callable[[], Worker]) -> Iterator[tuple[Area, Worker]]:
        """The areas that the settings want, each with its worker."""
        settings = self._settings
        makers = [self._bundle, self._entries]
        makers += [self._to_mesh] if settings.to_mesh.enabled else []
        makers += [self._to_kubernetes] if settings.to_kubernetes.enabled else []
        for make in makers:
            own = worker()
            yield make(own), own

    def _mirror(
        self, path: str, worker: Worker, keep: Callable[[Json], Json] = without_history, **query: str
    ) -> Mirror:
        found = Mirror(self._cluster, path, query, worker.wake, self._rng, keep)
        self._group.create_task(found.run())
        return found

    def _followed(self, path: str, worker: Worker, **query: str) -> Followed:
        found = Followed(self._mesh, path, worker.wake, self._rng, **query)
        self._group.create_task(found.run())
        return found

    def _bundle(self, worker: Worker) -> Area:
        return BundleArea(
            self._cluster,
            self._mirror("/api/v1/namespaces", worker),
            self._mirror("/api/v1/pods", worker, address_of, labelSelector=f"{INJECTED}=true"),
            self._mirror("/api/v1/configmaps", worker, fieldSelector=f"metadata.name={CA_CONFIG_MAP}"),
            self._followed("/v1/connect/ca/roots", worker),
            self._settings,
        )

    def _entries(self, worker: Worker) -> Area:
        for kind in KINDS:  # so that what others do to an entry is noticed
            self._followed(f"/v1/config/{kind.entry}", worker)
        resources = {kind.plural: self._mirror(collection(kind), worker) for kind in KINDS}
        return EntriesArea(self._cluster, self._mesh, resources, self._settings, self._clock.wall)

    def _to_mesh(self, worker: Worker) -> Area:
        self._followed(f"/v1/catalog/node-services/{to_mesh.node_of(self._settings.cluster)['Node']}", worker)
        return ToMeshArea(
            self._mesh,
            self._mirror("/api/v1/services", worker),
            self._mirror("/apis/discovery.k8s.io/v1/endpointslices", worker),
            self._mirror("/api/v1/nodes", worker),
            self._settings,
        )

    def _to_kubernetes(self, worker: Worker) -> Area:
        settings = self._settings.to_kubernetes
        known = {
            datacenter: self._followed("/v1/catalog/services", worker, dc=datacenter)
            for datacenter in dict.fromkeys((self._settings.datacenter, *settings.datacenters))
        }
        services = self._mirror(f"/api/v1/namespaces/{settings.namespace}/services", worker)
        return ToKubernetesArea(self._cluster, services, known, self._settings)


async def _any(*events: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(each.wait()) for each in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()


def _describe(metrics: Metrics) -> None:
    metrics.describe("mesh_controllers_leading", "Whether this replica holds the lease.")
    metrics.describe("mesh_controllers_rounds_total", "Looks at cluster and mesh, by area and result.")
    metrics.describe("mesh_controllers_changes_total", "Objects, instances and entries that were changed, by area.")
    metrics.describe("mesh_controllers_problems", "What trying again will not remove, by area; the log names it.")


async def serve(
    controllers: Controllers, operations: Operations, port: int, host: str, closing: Callable[[], Awaitable[None]]
) -> None:
    """Run until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await operations.start(port, host)
    try:
        await controllers.run(stopping)
    finally:
        await operations.stop()
        await closing()
