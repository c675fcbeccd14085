"""Rounds against a cluster and a mesh that fail in the middle: what was done is not done again, and what failed does not keep the rest from being done."""

from collections.abc import Callable
from typing import Any

import pytest

from mesh_agent.controllers.areas import Report, ToMeshArea, perform
from mesh_agent.controllers.fence import FencedCluster, FencedMesh
from mesh_agent.controllers.objects import Create
from mesh_agent.controllers.settings import Settings, ToMesh
from mesh_agent.errors import InvalidRequest, PermissionDenied, StoreConflict, Unreachable
from tests.support.kubernetes_objects import Json, endpoint, endpoint_slice, service


class Lists:
    """A collection of the cluster."""

    def __init__(self, *found: Json, synced: bool = True) -> None:
        self.objects = {(each["metadata"].get("namespace", ""), each["metadata"]["name"]): each for each in found}
        self.synced = synced


class Catalog:
    """A mesh with one node, whose writes fail when `failing` says so; it refuses services at the address `refused`."""

    def __init__(self, failing: Callable[[int], bool] = lambda write: False, refused: str = "") -> None:
        self._refused = refused
        self.node: Json | None = None
        self.services: dict[str, Json] = {}
        self.writes = 0
        self._failing = failing

    async def get(self, path: str, **query: str) -> Any:
        return {"Node": self.node, "Services": list(self.services.values())}

    async def put(self, path: str, value: Any = None, **query: str) -> Any:
        self.writes += 1
        if self._failing(self.writes):
            raise Unreachable("no answer")
        if path.endswith("/deregister"):
            self.services.pop(value["ServiceID"], None)
        elif "Service" in value and value["Service"]["Address"] == self._refused:
            raise InvalidRequest(f"{self._refused} is no address")
        elif "Service" in value:
            self.services[value["Service"]["ID"]] = value["Service"]
        else:
            self.node = {"Node": value["Node"], "Meta": value["NodeMeta"]}
        return True

    async def delete(self, path: str, **query: str) -> Any:
        raise AssertionError("nothing is deleted by this road")

    async def request(self, method: str, path: str, body: Json | None = None) -> Json:
        self.writes += 1
        return {}


SETTINGS = Settings(cluster="c1", to_mesh=ToMesh(by_default=True))


def area(catalog: Catalog, *addresses: str) -> ToMeshArea:
    slices = Lists(endpoint_slice("web", *(endpoint(each) for each in addresses)))
    return ToMeshArea(catalog, Lists(service("web")), slices, Lists(), SETTINGS)


def addresses(catalog: Catalog) -> set[str]:
    return {each["Address"] for each in catalog.services.values()}


async def test_a_failure_in_the_middle_leaves_the_rest_done_and_itself_to_the_next_round() -> None:
    catalog = Catalog(failing=lambda write: write == 3)
    wanted = area(catalog, "10.0.0.1", "10.0.0.2", "10.0.0.3")
    with pytest.raises(Unreachable):
        await wanted.round()
    assert len(addresses(catalog)) == 2
    before = catalog.writes
    report = await wanted.round()
    assert addresses(catalog) == {"10.0.0.1", "10.0.0.2", "10.0.0.3"}
    assert catalog.writes == before + 1
    assert len(report.done) == 1
    assert (await wanted.round()).done == []


async def test_what_the_mesh_refuses_is_a_problem_and_not_a_reason_to_begin_again() -> None:
    """Or a user's one bad annotation would slow down the whole cluster."""
    catalog = Catalog(refused="10.0.0.2")
    report = await area(catalog, "10.0.0.1", "10.0.0.2", "10.0.0.3").round()
    assert addresses(catalog) == {"10.0.0.1", "10.0.0.3"}
    assert len(report.done) == 2
    (problem,) = report.problems
    assert problem.startswith("not registered web-shop-")
    assert problem.endswith(": 10.0.0.2 is no address")


async def test_a_node_of_the_catalog_that_is_somebody_else_s_is_left_alone() -> None:
    catalog = Catalog()
    catalog.node = {"Node": "k8s-c1", "Meta": {}}
    report = await area(catalog, "10.0.0.1").round()
    assert catalog.writes == 0
    assert "somebody else's" in report.problems[0]


def test_nothing_is_done_before_every_list_is_whole() -> None:
    waiting = ToMeshArea(Catalog(), Lists(), Lists(synced=False), Lists(), SETTINGS)
    assert waiting.awaits() == ["endpoint slices"]


async def test_without_the_lease_nothing_is_sent() -> None:
    catalog = Catalog()
    holds = True
    mesh, cluster = FencedMesh(catalog, lambda: holds), FencedCluster(catalog, lambda: holds)
    await area(catalog, "10.0.0.1").round()
    before, holds = catalog.writes, False
    for attempt in (mesh.put("/v1/config", {}), mesh.delete("/v1/config/a/b"), cluster.request("PUT", "/api", {})):
        with pytest.raises(StoreConflict):
            await attempt
    assert catalog.writes == before
    await mesh.get("/v1/config/a")
    await cluster.request("GET", "/api")


class Forbidding:
    """A cluster that forbids writes below one path."""

    def __init__(self, path: str, error: Exception) -> None:
        self._path, self._error = path, error
        self.written: list[str] = []

    async def request(self, method: str, path: str, body: Json | None = None) -> Json:
        if path.startswith(self._path):
            raise self._error
        self.written.append(path)
        return {}


async def test_what_is_forbidden_in_one_namespace_is_a_problem_and_not_a_failure_of_the_round() -> None:
    cluster, report = Forbidding("/a", PermissionDenied("forbidden")), Report()
    await perform(
        cluster, [Create("/a", {"metadata": {"name": "x"}}), Create("/b", {"metadata": {"name": "x"}})], report
    )
    assert cluster.written == ["/b"]
    (problem,) = report.finish().problems
    assert problem.endswith("forbidden")


async def test_a_cluster_that_cannot_be_asked_is_a_failure() -> None:
    report = Report()
    await perform(Forbidding("/a", Unreachable("away")), [Create("/a", {"metadata": {"name": "x"}})], report)
    with pytest.raises(Unreachable):
        report.finish()
