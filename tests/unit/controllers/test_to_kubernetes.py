"""Services of the mesh in the cluster: names in one namespace, and what is never changed there."""

from typing import Any

import pytest

from mesh_agent.controllers import to_kubernetes
from mesh_agent.controllers.objects import MANAGED_BY, MANAGER, Create, Delete, Replace
from mesh_agent.controllers.settings import ToKubernetes
from mesh_agent.controllers.to_kubernetes import SOURCE_DATACENTER, SOURCE_SERVICE, Plan
from tests.support.kubernetes_objects import Json

KNOWN = {
    "dc1": {"web": ["v1"], "consul": [], "web-sidecar-proxy": [], "cart-shop": ["k8s"]},
    "dc2": {"db": [], "web": []},
}
SETTINGS = ToKubernetes(enabled=True, datacenters=("dc2",))


def plan(known: Any = KNOWN, held: list[Json] | None = None, settings: ToKubernetes = SETTINGS) -> Plan:
    return to_kubernetes.plan(known, held or [], "dc1", settings)


def created(known: Any = KNOWN) -> list[Json]:
    """The Services that a first run makes, as the cluster shows them."""
    bodies = [each.body for each in plan(known).steps if isinstance(each, Create)]
    return [
        {**each, "metadata": {**each["metadata"], "uid": "u", "resourceVersion": "3"}, "spec": {**each["spec"], "x": 1}}
        for each in bodies
    ]


def test_services_of_the_own_datacenter_have_their_name_others_their_datacenter_too() -> None:
    names = {each.body["metadata"]["name"]: each.body["spec"] for each in plan().steps if isinstance(each, Create)}
    assert names == {
        "web": {"type": "ExternalName", "externalName": "web.service.dc1.mesh"},
        "web-dc2": {"type": "ExternalName", "externalName": "web.service.dc2.mesh"},
        "db-dc2": {"type": "ExternalName", "externalName": "db.service.dc2.mesh"},
    }


def test_what_is_there_is_not_written_again() -> None:
    assert plan(held=created()) == Plan([], [], [])


def test_a_service_that_leaves_the_mesh_leaves_the_cluster() -> None:
    (step,) = plan({"dc1": {}, "dc2": KNOWN["dc2"]}, created()).steps
    assert step == Delete("/api/v1/namespaces/mesh-services/services/web", "u", "3")


def test_a_datacenter_that_cannot_be_asked_takes_nothing_away() -> None:
    assert plan({"dc1": KNOWN["dc1"]}, created()).steps == []


def test_a_datacenter_that_is_not_wanted_any_more_takes_its_services_away() -> None:
    steps = plan({"dc1": KNOWN["dc1"]}, created(), ToKubernetes(enabled=True)).steps
    assert [each.path.rpartition("/")[2] for each in steps] == ["db-dc2", "web-dc2"]
    assert all(isinstance(each, Delete) for each in steps)


def test_a_service_of_somebody_else_is_never_changed_nor_deleted() -> None:
    foreign = {"metadata": {"name": "web", "namespace": "mesh-services"}, "spec": {"type": "ClusterIP"}}
    other = {"metadata": {"name": "other", "namespace": "mesh-services"}, "spec": {"type": "ClusterIP"}}
    found = plan({"dc1": {"web": []}}, [foreign, other])
    assert found.steps == []
    assert found.foreign == ["web"]


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"type": "ExternalName", "externalName": "elsewhere.example"}},
        {"spec": {"type": "ClusterIP"}},
    ],
)
def test_one_of_ours_that_was_changed_is_put_right(change: Json) -> None:
    (before,) = created({"dc1": {"web": []}})
    (step,) = plan({"dc1": {"web": []}}, [before | change]).steps
    assert isinstance(step, Replace)
    assert step.body["spec"] == {"type": "ExternalName", "externalName": "web.service.dc1.mesh"}
    assert step.body["metadata"]["resourceVersion"] == "3"
    assert step.body["metadata"]["labels"][MANAGED_BY] == MANAGER
    assert step.body["metadata"]["annotations"] == {SOURCE_DATACENTER: "dc1", SOURCE_SERVICE: "web"}


@pytest.mark.parametrize("name", ["a.b", "1web", "x" * 64, "web_1"])
def test_names_that_kubernetes_cannot_have_are_told(name: str) -> None:
    assert plan({"dc1": {name: []}}) == Plan([], [], [name])


def test_a_name_that_two_datacenters_would_give_is_the_own_one_s() -> None:
    found = plan({"dc1": {"web-dc2": []}, "dc2": {"web": []}})
    assert [each.body["spec"]["externalName"] for each in found.steps if isinstance(each, Create)] == [
        "web-dc2.service.dc1.mesh"
    ]
