"""What controllers leave behind, taken away when the chart is uninstalled. Nothing of anybody else's is touched.

Config entries stay, as do the custom resources that they came from: they are what users said. Only the finalizer goes, which nobody would take off later.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from mesh_agent.controllers import to_mesh
from mesh_agent.controllers.areas import Mesh, Report, perform
from mesh_agent.controllers.config_sync import FINALIZER, KINDS, Kind, collection, path_of, with_finalizer
from mesh_agent.controllers.objects import Delete, Json, deletion, is_ours, name_of, namespace_of
from mesh_agent.controllers.settings import Settings
from mesh_agent.errors import InvalidRequest, NotFound
from mesh_agent.injector.names import CA_CONFIG_MAP


class Cluster(Protocol):
    """The Kubernetes API."""

    async def request(self, method: str, path: str, body: Json | None = None) -> Json:
        """One request."""
        ...

    async def list_all(self, path: str, query: Mapping[str, str] | None = None) -> tuple[list[Json], str]:
        """Every object of a collection."""
        ...


async def take_leave(cluster: Cluster, mesh: Mesh | None, settings: Settings) -> Report:
    """Remove it all; what fails is raised when the rest is done. Without `mesh` (its agents went with the chart) the catalog is not looked at."""
    report = Report()
    if mesh is not None:
        await report.attempt(_leave_catalog(mesh, settings, report))
    for kind in KINDS:
        await report.attempt(_release(cluster, kind, report))
    bundles, _ = await cluster.list_all("/api/v1/configmaps", {"fieldSelector": f"metadata.name={CA_CONFIG_MAP}"})
    ours = [each for each in bundles if is_ours(each)]
    found = [_deletion(each, "configmaps") for each in ours if namespace_of(each) != settings.namespace]
    if settings.to_kubernetes.enabled:
        services, _ = await cluster.list_all(f"/api/v1/namespaces/{settings.to_kubernetes.namespace}/services")
        found += [_deletion(each, "services") for each in services if is_ours(each)]
    await perform(cluster, found, report)
    await report.attempt(_drop_lease(cluster, settings), "deleted the lease")
    report.finish()
    if report.problems:
        raise InvalidRequest("; ".join(report.problems))
    # The last step, when nothing is left to be tried again: without this bundle no agent can be asked any more.
    own = [_deletion(each, "configmaps") for each in ours if namespace_of(each) == settings.namespace]
    await perform(cluster, own, report)
    return report.finish()


async def _leave_catalog(mesh: Mesh, settings: Settings, report: Report) -> None:
    cluster = settings.cluster or str((await mesh.get("/v1/agent/self"))["Config"]["Datacenter"])
    node = to_mesh.node_of(cluster)["Node"]
    found: dict[str, Any] = await mesh.get(f"/v1/catalog/node-services/{node}") or {}
    if not found.get("Node") or not to_mesh.is_owned(found["Node"].get("Meta"), cluster):
        return
    plan = to_mesh.plan((), {each["ID"]: each for each in found.get("Services") or ()}, cluster)
    for gone in plan.deregister:
        await report.attempt(
            mesh.put("/v1/catalog/deregister", {"Node": node, "ServiceID": gone}), f"deregistered {gone}"
        )
    if len(plan.deregister) == len(found.get("Services") or ()):
        await report.attempt(mesh.put("/v1/catalog/deregister", {"Node": node}), f"deregistered node {node}")


async def _release(cluster: Cluster, kind: Kind, report: Report) -> None:
    try:
        resources, _ = await cluster.list_all(collection(kind))
    except NotFound:
        return  # the definition is gone, and with it the resources
    for each in resources:
        if FINALIZER in (each["metadata"].get("finalizers") or ()):
            body = with_finalizer(each, present=False)
            await report.attempt(
                cluster.request("PUT", path_of(kind, each), body), f"released {namespace_of(each)}/{name_of(each)}"
            )


def _deletion(found: Json, resource: str) -> Delete:
    return deletion(f"/api/v1/namespaces/{namespace_of(found)}/{resource}/{name_of(found)}", found)


async def _drop_lease(cluster: Cluster, settings: Settings) -> None:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{settings.namespace}/leases/mesh-controllers"
    try:
        await cluster.request("DELETE", path)
    except NotFound:
        return
