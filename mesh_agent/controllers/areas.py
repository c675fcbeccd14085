"""What controllers look after (config entries are in `entries`). Each area looks at the cluster and the mesh, plans, and performs; nothing is remembered
between two rounds.

They wait for answers but for nothing else: when to look again is the business of `runner`. A step that fails does not keep the others from being done; the
round fails in the end, and the next one begins with a fresh look.
"""

from collections.abc import Awaitable, Iterable, Mapping
from typing import Any, Protocol

from mesh_agent.controllers import to_kubernetes, to_mesh, trust_bundle
from mesh_agent.controllers.objects import Create, Delete, Json, Replace, Step, name_of
from mesh_agent.controllers.settings import Settings
from mesh_agent.errors import InvalidRequest, MeshError, NotFound, PermissionDenied


class Cluster(Protocol):
    """The Kubernetes API."""

    async def request(self, method: str, path: str, body: Json | None = None) -> Json:
        """One request; StoreConflict when the object is not what it was any more."""
        ...


class Mesh(Protocol):
    """The HTTP API of an agent."""

    async def get(self, path: str, **query: str) -> Any:  # JSON
        """GET."""
        ...

    async def put(self, path: str, value: object = None, **query: str) -> Any:  # JSON
        """PUT."""
        ...

    async def delete(self, path: str, **query: str) -> Any:  # JSON
        """DELETE."""
        ...


class Objects(Protocol):
    """A collection of the cluster, kept in memory; complete once `synced`."""

    @property
    def objects(self) -> Mapping[tuple[str, str], Json]:
        """By namespace and name."""
        ...

    @property
    def synced(self) -> bool:
        """Whether it was listed as a whole."""
        ...


class Asked(Protocol):
    """A question to the mesh that is asked again and again."""

    @property
    def value(self) -> Any:  # JSON
        """The last answer."""
        ...

    @property
    def ready(self) -> bool:
        """Whether there was one."""
        ...


class Report:
    """What one round did, and what it could not do for reasons that trying again will not remove."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.problems: list[str] = []
        self._failure: MeshError | None = None

    async def attempt(self, work: Awaitable[object], done: str = "") -> None:
        """Do one thing and note that it is done. A failure is kept for the end of the round; a refusal is a problem: asking again brings the same answer."""
        try:
            await work
        except (InvalidRequest, PermissionDenied) as error:
            self.problems.append(f"not {done}: {error}" if done else str(error))
        except MeshError as error:
            self._failure = error
        else:
            self.done += [done] if done else []

    def finish(self) -> "Report":
        """Raise the last failure, if there was one."""
        if self._failure is not None:
            raise self._failure
        return self


class Area(Protocol):
    """One of the four."""

    name: str

    def awaits(self) -> list[str]:
        """What has not been listed as a whole yet; nothing is done before."""
        ...

    async def round(self) -> Report:
        """Look, plan, perform."""
        ...


def missing(objects: Mapping[str, Objects], asked: Mapping[str, Asked]) -> list[str]:
    return [name for name, each in objects.items() if not each.synced] + [
        name for name, each in asked.items() if not each.ready
    ]


async def perform(cluster: Cluster, steps: Iterable[Step], report: Report) -> None:
    """Do the steps, each on its own."""
    for step in steps:
        await report.attempt(_perform(cluster, step), _described(step))


async def _perform(cluster: Cluster, step: Step) -> None:
    if isinstance(step, Create):
        await cluster.request("POST", step.path, step.body)
    elif isinstance(step, Replace):
        await cluster.request("PUT", step.path, step.body)
    else:
        await _delete(cluster, step)


async def _delete(cluster: Cluster, step: Delete) -> None:
    exact = {"uid": step.uid, "resourceVersion": step.version}
    try:
        await cluster.request(
            "DELETE", step.path, {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": exact}
        )
    except NotFound:
        return


def _described(step: Step) -> str:
    if isinstance(step, Create):
        return f"created {step.path}/{name_of(step.body)}"
    return f"{'changed' if isinstance(step, Replace) else 'deleted'} {step.path}"


class BundleArea:
    """The trust bundle in namespaces."""

    name = "trust-bundle"

    def __init__(
        self,
        cluster: Cluster,
        namespaces: Objects,
        pods: Objects,
        config_maps: Objects,
        roots: Asked,
        settings: Settings,
    ) -> None:
        """`pods` are the injected ones."""
        self._cluster, self._roots, self._settings = cluster, roots, settings
        self._namespaces, self._pods, self._config_maps = namespaces, pods, config_maps

    def awaits(self) -> list[str]:
        """What has not been listed yet."""
        lists = {"namespaces": self._namespaces, "injected pods": self._pods, "config maps": self._config_maps}
        return missing(lists, {"roots of the mesh": self._roots})

    async def round(self) -> Report:
        """One round."""
        report = Report()
        pem = "".join(each["RootCert"].strip() + "\n" for each in self._roots.value["Roots"])
        others = (self._settings.namespace, *self._settings.bundle_namespaces)
        namespaces, pods = self._namespaces.objects.values(), self._pods.objects.values()
        steps = trust_bundle.plan(namespaces, pods, self._config_maps.objects.values(), pem, others)
        await perform(self._cluster, steps, report)
        return report.finish()


class ToMeshArea:
    """Services of the cluster in the mesh."""

    name = "to-mesh"

    def __init__(self, mesh: Mesh, services: Objects, slices: Objects, nodes: Objects, settings: Settings) -> None:
        self._mesh, self._settings = mesh, settings
        self._services, self._slices, self._nodes = services, slices, nodes

    def awaits(self) -> list[str]:
        """What has not been listed yet."""
        return missing({"services": self._services, "endpoint slices": self._slices, "nodes": self._nodes}, {})

    async def round(self) -> Report:
        """One round."""
        report, cluster = Report(), self._settings.cluster
        wanted = to_mesh.registrations(
            self._services.objects.values(),
            self._slices.objects.values(),
            self._nodes.objects.values(),
            cluster,
            self._settings.to_mesh,
        )
        node = to_mesh.node_of(cluster)
        found = await self._mesh.get(f"/v1/catalog/node-services/{node['Node']}") or {}
        present = found.get("Node")  # null for an unknown node, as in Consul
        if present is not None and not to_mesh.is_owned(present.get("Meta"), cluster):
            report.problems.append(
                f"node {node['Node']!r} of the catalog is somebody else's; give the cluster another name"
            )
            return report
        plan = to_mesh.plan(wanted, {each["ID"]: each for each in found.get("Services") or []}, cluster)
        if present is None and plan.register:
            await self._mesh.put("/v1/catalog/register", node)
        for each in plan.register:
            body = {"Node": node["Node"], "Address": node["Address"], "SkipNodeUpdate": True, "Service": each.body()}
            await report.attempt(self._mesh.put("/v1/catalog/register", body), f"registered {each.id}")
        for gone in plan.deregister:
            body = {"Node": node["Node"], "ServiceID": gone}
            await report.attempt(self._mesh.put("/v1/catalog/deregister", body), f"deregistered {gone}")
        report.problems += [
            f"service {each!r} of the mesh is somebody else's and stays as it is" for each in plan.foreign
        ]
        return report.finish()


class ToKubernetesArea:
    """Services of the mesh in the cluster."""

    name = "to-kubernetes"

    def __init__(self, cluster: Cluster, services: Objects, known: Mapping[str, Asked], settings: Settings) -> None:
        self._cluster, self._services, self._known, self._settings = cluster, services, known, settings

    def awaits(self) -> list[str]:
        """What has not been listed yet. Other datacenters are not waited for."""
        own = self._settings.datacenter
        return missing({"services of the namespace": self._services}, {f"services of {own}": self._known[own]})

    async def round(self) -> Report:
        """One round."""
        report = Report()
        known = {datacenter: each.value for datacenter, each in self._known.items() if each.ready}
        plan = to_kubernetes.plan(
            known, self._services.objects.values(), self._settings.datacenter, self._settings.to_kubernetes
        )
        await perform(self._cluster, plan.steps, report)
        where = self._settings.to_kubernetes.namespace
        report.problems += [f"Service {where}/{each} is somebody else's and stays as it is" for each in plan.foreign]
        report.problems += [f"{each!r} cannot be the name of a Service" for each in plan.impossible]
        return report.finish()
