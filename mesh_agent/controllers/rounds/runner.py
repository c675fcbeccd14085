"""Rounds: what each area looks at, and when it looks again."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import suppress

from mesh_agent.clock import Clock
from mesh_agent.controllers import to_mesh
from mesh_agent.controllers.areas import Area, BundleArea, ToKubernetesArea, ToMeshArea
from mesh_agent.controllers.client import Followed, Mesh
from mesh_agent.controllers.config_sync import KINDS, collection
from mesh_agent.controllers.entries import EntriesArea
from mesh_agent.controllers.fence import FencedCluster, FencedMesh
from mesh_agent.controllers.objects import Json, address_of, without_history
from mesh_agent.controllers.settings import Settings
from mesh_agent.errors import MeshError, StoreConflict
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


class Areas:
    """Makes the areas and starts what they look at."""

    def __init__(
        self,
        settings: Settings,
        cluster: KubernetesApi,
        mesh: Mesh,
        clock: Clock,
        rng: random.Random,
        group: asyncio.TaskGroup,
        may_write: Callable[[], bool],
    ) -> None:
        """`may_write()`: whether this replica holds the lease at this very moment."""
        self._settings, self._cluster, self._mesh = settings, cluster, mesh
        self._clock, self._rng, self._group = clock, rng, group
        self._to_cluster, self._into_mesh = FencedCluster(cluster, may_write), FencedMesh(mesh, may_write)

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
            self._to_cluster,
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
        return EntriesArea(self._to_cluster, self._into_mesh, resources, self._settings, self._clock.wall)

    def _to_mesh(self, worker: Worker) -> Area:
        self._followed(f"/v1/catalog/node-services/{to_mesh.node_of(self._settings.cluster)['Node']}", worker)
        return ToMeshArea(
            self._into_mesh,
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
        return ToKubernetesArea(self._to_cluster, services, known, self._settings)
