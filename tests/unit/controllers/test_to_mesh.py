"""Services of the cluster in the mesh: what is registered, and what is left alone."""

from typing import Any

import pytest

from mesh_agent.controllers import to_mesh
from mesh_agent.controllers.settings import ToMesh
from mesh_agent.controllers.to_mesh import Registration
from tests.support.kubernetes_objects import Json, endpoint, endpoint_slice, node, service

SYNC = {"mesh.openmesh.io/service-sync": "true"}
NODES = [node("n1", "10.0.0.1", "192.0.2.1"), node("n2", "10.0.0.2")]


def found(
    *services: Json, slices: list[Json] | None = None, nodes: list[Json] | None = None, **settings: Any
) -> list[Registration]:
    return to_mesh.registrations(services, slices or [], NODES if nodes is None else nodes, "c1", ToMesh(**settings))


def at(registrations: list[Registration]) -> list[tuple[str, int]]:
    return sorted((each.address, each.port) for each in registrations)


SLICES = [
    endpoint_slice("web", endpoint("10.1.0.1"), endpoint("10.1.0.2", node="n2"), endpoint("10.1.0.3", ready=False))
]


def test_a_cluster_ip_service_is_its_ready_endpoints() -> None:
    registrations = found(service("web", annotations=SYNC), slices=SLICES)
    assert at(registrations) == [("10.1.0.1", 8080), ("10.1.0.2", 8080)]
    (one, two) = registrations
    assert one.id != two.id
    assert {each.name for each in registrations} == {"web-shop"}
    assert one.tags == ("k8s",)
    assert one.meta == {
        "external-source": "kubernetes",
        "k8s-cluster": "c1",
        "external-k8s-ns": "shop",
        "external-k8s-ref-name": "web",
    }


def test_readiness_that_is_not_said_is_readiness() -> None:
    slices = [endpoint_slice("web", endpoint("10.1.0.1", ready=None))]
    assert at(found(service("web", annotations=SYNC), slices=slices)) == [("10.1.0.1", 8080)]


def test_an_endpoint_in_two_slices_is_one_instance() -> None:
    slices = [endpoint_slice("web", endpoint("10.1.0.1"), name=each) for each in ("a", "b")]
    assert len(found(service("web", annotations=SYNC), slices=slices)) == 1


def test_slices_of_other_services_and_namespaces_are_not_it() -> None:
    slices = [endpoint_slice("api", endpoint("10.1.0.1")), endpoint_slice("web", endpoint("10.1.0.2"), where="b")]
    assert found(service("web", annotations=SYNC), slices=slices) == []


def test_a_dual_stack_service_is_registered_in_its_first_family() -> None:
    slices = [endpoint_slice("web", endpoint("10.1.0.1")), endpoint_slice("web", endpoint("fd00::1"), kind="IPv6")]
    six = service("web", annotations=SYNC, ipFamilies=["IPv6", "IPv4"])
    assert at(found(six, slices=slices)) == [("fd00::1", 8080)]


@pytest.mark.parametrize(
    ("preference", "wanted"),
    [
        ("ExternalFirst", [("10.0.0.2", 30080), ("192.0.2.1", 30080)]),
        ("ExternalOnly", [("192.0.2.1", 30080)]),
        ("InternalOnly", [("10.0.0.1", 30080), ("10.0.0.2", 30080)]),
    ],
)
def test_a_node_port_service_is_the_nodes_of_its_ready_endpoints(
    preference: str, wanted: list[tuple[str, int]]
) -> None:
    registrations = found(
        service("web", annotations=SYNC, type="NodePort"), slices=SLICES, node_port_addresses=preference
    )
    assert at(registrations) == wanted


def test_a_node_that_is_gone_is_no_instance() -> None:
    assert at(found(service("web", annotations=SYNC, type="NodePort"), slices=SLICES, nodes=NODES[1:])) == [
        ("10.0.0.2", 30080)
    ]


def test_a_load_balancer_is_what_it_answers_on() -> None:
    status = {"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}, {"hostname": "lb.example"}, {}]}}
    balanced = service("web", annotations=SYNC, type="LoadBalancer", status=status)
    assert at(found(balanced, slices=SLICES)) == [("192.0.2.9", 80), ("lb.example", 80)]
    assert found(service("web", annotations=SYNC, type="LoadBalancer"), slices=SLICES) == []


def test_external_addresses_come_before_everything_else() -> None:
    for kind in ("ClusterIP", "NodePort", "LoadBalancer"):
        given = service("web", annotations=SYNC, type=kind, externalIPs=["198.51.100.1"])
        assert at(found(given, slices=SLICES)) == [("198.51.100.1", 80)]


def test_external_names_are_not_sent_to_the_mesh() -> None:
    assert found(service("web", annotations=SYNC, type="ExternalName", externalName="a.example")) == []


@pytest.mark.parametrize(
    ("annotations", "by_default", "wanted"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"mesh.openmesh.io/service-sync": "false"}, True, False),
        ({"consul.hashicorp.com/service-sync": "true"}, False, True),
        ({"consul.hashicorp.com/service-sync": "true", "mesh.openmesh.io/service-sync": "false"}, False, False),
        ({"mesh.openmesh.io/service-sync": "maybe"}, False, False),
    ],
)
def test_services_opt_in_or_out(annotations: dict[str, str], by_default: bool, wanted: bool) -> None:
    assert bool(found(service("web", annotations=annotations), slices=SLICES, by_default=by_default)) is wanted


def test_namespaces_can_be_chosen() -> None:
    given = service("web", annotations=SYNC)
    assert found(given, slices=SLICES, deny_namespaces=("shop",)) == []
    assert found(given, slices=SLICES, allow_namespaces=("team-*",)) == []
    assert found(given, slices=SLICES, cluster_ip=False) == []


def test_annotations_name_port_tags_meta_and_weight() -> None:
    annotations = SYNC | {
        "mesh.openmesh.io/service-name": "shop-web",
        "mesh.openmesh.io/service-port": "admin",
        "consul.hashicorp.com/service-tags": "a, b,,k8s",
        "consul.hashicorp.com/service-meta-team": "red",
        "mesh.openmesh.io/service-meta-team": "blue",
        "mesh.openmesh.io/service-meta-k8s-cluster": "forged",
        "mesh.openmesh.io/service-weight": "5",
    }
    ports = [{"name": "http", "port": 80}, {"name": "admin", "port": 81}]
    slices = [{**SLICES[0], "ports": [{"name": "http", "port": 8080}, {"name": "admin", "port": 8081}]}]
    one = found(service("web", annotations=annotations, ports=ports), slices=slices)[0]
    assert (one.name, one.port, one.tags, one.weight) == ("shop-web", 8081, ("k8s", "a", "b"), 5)
    assert one.meta["team"] == "blue"
    assert one.meta["k8s-cluster"] == "c1", "an annotation does not make an instance another cluster's"


def test_a_port_by_number_and_one_that_the_service_does_not_list() -> None:
    ports = [{"name": "http", "port": 80}, {"name": "admin", "port": 81}]
    slices = [{**SLICES[0], "ports": [{"name": "http", "port": 8080}, {"name": "admin", "port": 8081}]}]
    for wanted, port in (("81", 8081), ("9999", 9999), ("nonsense", 8080), ("9" * 5000, 8080)):
        annotations = SYNC | {"mesh.openmesh.io/service-port": wanted}
        assert found(service("web", annotations=annotations, ports=ports), slices=slices)[0].port == port


@pytest.mark.parametrize("weight", ["0", "-1", "heavy", "9" * 5000])
def test_a_weight_that_is_none_is_one(weight: str) -> None:
    annotations = SYNC | {"mesh.openmesh.io/service-weight": weight}
    assert found(service("web", annotations=annotations), slices=SLICES)[0].weight == 1


def test_prefix_and_suffix() -> None:
    (one, _) = found(service("web", annotations=SYNC), slices=SLICES, prefix="k8s-", namespace_suffix=False)
    assert one.name == "k8s-web"


# against what the catalog holds


def held(*registrations: Registration, **more: Any) -> dict[str, Json]:
    return {each.id: each.body() | more for each in registrations}


ONE, TWO = found(service("web", annotations=SYNC), slices=SLICES)


def test_what_is_there_is_not_written_again() -> None:
    plan = to_mesh.plan([ONE, TWO], held(ONE, TWO, CreateIndex=4, Kind="", Proxy={}), "c1")
    assert (plan.register, plan.deregister, plan.foreign) == ((), (), ())


def test_a_changed_instance_is_written_again_and_a_gone_one_deregistered() -> None:
    known = held(ONE, TWO)
    known[ONE.id]["Tags"] = ["k8s", "old"]
    plan = to_mesh.plan([ONE], known, "c1")
    assert plan.register == (ONE,)
    assert plan.deregister == (TWO.id,)


@pytest.mark.parametrize(
    "meta", [None, {}, {"external-source": "kubernetes", "k8s-cluster": "c2"}, {"k8s-cluster": "c1"}]
)
def test_what_somebody_else_registered_is_never_touched(meta: dict[str, str] | None) -> None:
    plan = to_mesh.plan([ONE], held(ONE, TWO, Meta=meta), "c1")
    assert (plan.register, plan.deregister, plan.foreign) == ((), (), (ONE.id,))


def test_a_crash_between_two_writes_leaves_only_the_second_to_be_done() -> None:
    assert to_mesh.plan([ONE, TWO], held(ONE), "c1").register == (TWO,)
