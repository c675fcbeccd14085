"""Runs the controllers: the one replica that holds the lease follows cluster and mesh, and lets each area have a round whenever something changed."""

import asyncio
import logging
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec

from mesh_agent.clock import Clock
from mesh_agent.controllers.client import Mesh
from mesh_agent.controllers.lease import Election
from mesh_agent.controllers.rounds.runner import Areas, Worker
from mesh_agent.controllers.server import Operations
from mesh_agent.controllers.settings import Settings
from mesh_agent.errors import MeshError, NotFound, StoreConflict
from mesh_agent.kubernetes.client import KubernetesApi
from mesh_agent.telemetry import Metrics

log = logging.getLogger(__name__)
_RETRY_S = (0.2, 30.0)
_LEASE = "mesh-controllers"


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
            areas = Areas(settings, self._cluster, self._mesh, self._clock, self._rng, group, self._election_holds)
            for area, worker in areas.made(lambda: Worker(self.metrics, self._clock, self._rng, settings.resync_s)):
                self._workers[area.name] = worker
                group.create_task(worker.run(area))

    def _election_holds(self) -> bool:
        return self._election.leading and not self._election.must_stop(self._clock.now())

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
