"""What an uninstall takes along, and what it leaves to others."""

from collections.abc import Mapping
from typing import Any

import pytest

from mesh_agent.controllers.config_sync import FINALIZER
from mesh_agent.controllers.farewell import take_leave
from mesh_agent.controllers.settings import Settings, ToKubernetes
from mesh_agent.errors import InvalidRequest, MeshError, NotFound, Unreachable

OURS = {"app.kubernetes.io/managed-by": "mesh-controller"}
META = {"external-source": "kubernetes", "k8s-cluster": "blue"}


def named(name: str, namespace: str, **metadata: Any) -> dict[str, Any]:
    """An object."""
    return {"metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}", **metadata}}


class Cluster:
    """Collections by path; what was asked for."""

    def __init__(self, collections: dict[str, list[dict[str, Any]]]) -> None:
        self.collections = collections
        self.asked: list[str] = []
        self.bodies: list[Any] = []

    async def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        self.asked.append(f"{method} {path}")
        self.bodies.append(body)
        if "leases" in path:
            raise NotFound("no such lease")
        return {}

    async def list_all(self, path: str, query: Mapping[str, str] | None = None) -> tuple[list[dict[str, Any]], str]:
        if path not in self.collections:
            raise NotFound(path)
        return self.collections[path], "1"


class Mesh:
    """The catalog's node of one cluster."""

    def __init__(self, node: dict[str, Any]) -> None:
        self.node = node
        self.gone: list[Any] = []
        self.error: MeshError | None = None

    async def get(self, path: str, **query: str) -> Any:
        return {"Config": {"Datacenter": "blue"}} if path == "/v1/agent/self" else self.node

    async def put(self, path: str, value: object = None, **query: str) -> Any:
        assert path == "/v1/catalog/deregister"
        if self.error is not None:
            raise self.error
        self.gone.append(value)

    async def delete(self, path: str, **query: str) -> Any:
        raise AssertionError("config entries are what users said")


def cluster() -> Cluster:
    """With things of ours and of others."""
    api = "/apis/mesh.openmesh.io/v1alpha1/"
    return Cluster(
        {
            "/api/v1/configmaps": [named("mesh-ca-bundle", "a", labels=OURS), named("mesh-ca-bundle", "b")],
            "/api/v1/namespaces/mesh-services/services": [
                named("web", "mesh-services", labels=OURS),
                named("dns", "mesh-services"),
            ],
            f"{api}serviceintentions": [
                named("web", "a", finalizers=["other", FINALIZER]),
                named("free", "a", finalizers=["other"]),
            ],
            f"{api}servicedefaults": [],
        }
    )


async def test_everything_of_ours_goes_and_nothing_else() -> None:
    found, mesh = cluster(), Mesh({"Node": {"Meta": META}, "Services": [{"ID": "w1", "Meta": META}]})
    settings = Settings(to_kubernetes=ToKubernetes(enabled=True, namespace="mesh-services"))
    await take_leave(found, mesh, settings)
    assert found.asked == [
        "PUT /apis/mesh.openmesh.io/v1alpha1/namespaces/a/serviceintentions/web",
        "DELETE /api/v1/namespaces/a/configmaps/mesh-ca-bundle",
        "DELETE /api/v1/namespaces/mesh-services/services/web",
        "DELETE /apis/coordination.k8s.io/v1/namespaces/mesh-system/leases/mesh-controllers",
    ]
    assert found.bodies[0]["metadata"]["finalizers"] == ["other"]
    assert mesh.gone == [{"Node": "k8s-blue", "ServiceID": "w1"}, {"Node": "k8s-blue"}]


async def test_the_node_stays_while_somebody_else_has_a_service_on_it() -> None:
    mesh = Mesh({"Node": {"Meta": META}, "Services": [{"ID": "w1", "Meta": META}, {"ID": "x", "Meta": {}}]})
    await take_leave(cluster(), mesh, Settings())
    assert mesh.gone == [{"Node": "k8s-blue", "ServiceID": "w1"}]


async def test_a_node_of_somebody_else_is_left_alone() -> None:
    for node in ({"Node": {"Meta": {}}, "Services": [{"ID": "w1", "Meta": META}]}, {"Node": None, "Services": None}):
        mesh = Mesh(node)
        await take_leave(cluster(), mesh, Settings())
        assert mesh.gone == []


@pytest.mark.parametrize("error", [InvalidRequest("no"), Unreachable("no")])
async def test_what_fails_is_told_when_the_rest_is_done_and_can_be_tried_again(error: MeshError) -> None:
    found, mesh = cluster(), Mesh({"Node": {"Meta": META}, "Services": [{"ID": "w1", "Meta": META}]})
    found.collections["/api/v1/configmaps"].append(named("mesh-ca-bundle", "mesh-system", labels=OURS))
    mesh.error = error
    with pytest.raises(type(error), match="no"):
        await take_leave(found, mesh, Settings())
    assert "DELETE /api/v1/namespaces/a/configmaps/mesh-ca-bundle" in found.asked
    own = "DELETE /api/v1/namespaces/mesh-system/configmaps/mesh-ca-bundle"
    assert own not in found.asked, "the next try needs it"
    mesh.error = None
    await take_leave(found, mesh, Settings())
    assert found.asked[-1] == own


async def test_agents_that_went_with_the_chart_are_not_asked() -> None:
    found = cluster()
    await take_leave(found, None, Settings())
    assert "DELETE /api/v1/namespaces/a/configmaps/mesh-ca-bundle" in found.asked
