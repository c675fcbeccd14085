"""What a captured application may call, and at which addresses."""

import dataclasses
from typing import Any

import msgspec
import pytest

from mesh_agent.model import Action, Instance, Intention, Node, Proxy, Service, ServiceAddress
from mesh_agent.xds.build import Builder
from mesh_agent.xds.inputs import Destination, Inputs
from mesh_agent.xds.naming import CLUSTER, LISTENER, OUTBOUND, server_name
from mesh_agent.xds.transparent import (
    Endpoint,
    addresses,
    common_protocol,
    passthrough,
    permitted,
    table,
)
from tests.support.xds import inputs, instance, opened, proxy

ALLOW, DENY = Action.ALLOW, Action.DENY


def intention(source: str, destination: str, action: Action) -> Intention:
    return Intention(source=source, destination=destination, action=action)


@pytest.mark.parametrize(
    ("intentions", "default", "expected"),
    [
        ([], False, set()),
        ([], True, {"api", "db", "web"}),
        ([("web", "api", ALLOW)], False, {"api"}),
        ([("web", "api", DENY)], True, {"db", "web"}),
        ([("other", "api", ALLOW)], False, set()),
        ([("*", "api", ALLOW)], False, {"api"}),
        ([("*", "api", ALLOW), ("web", "api", DENY)], False, set()),
        ([("*", "api", DENY), ("web", "api", ALLOW)], False, {"api"}),
        ([("web", "*", ALLOW)], False, {"api", "db", "web"}),
        ([("web", "*", ALLOW), ("web", "db", DENY)], False, {"api", "web"}),
        ([("web", "*", ALLOW), ("*", "db", DENY)], False, {"api", "web"}),
        ([("*", "*", ALLOW), ("web", "*", DENY)], False, set()),
        ([("web", "*", DENY), ("web", "api", ALLOW)], True, {"api"}),
        ([("web", "later", ALLOW)], False, {"later"}),
    ],
)
def test_intentions_say_what_may_be_called(
    intentions: list[tuple[str, str, Action]], default: bool, expected: set[str]
) -> None:
    found = permitted([intention(*each) for each in intentions], "web", default_allow=default)
    assert found.of(["api", "db", "web"]) == expected


def made(service: Service, node: Node) -> Instance:
    return Instance(node, service, (), 1, 1)


def test_a_service_is_dialled_at_its_own_address_and_at_its_virtual_ones() -> None:
    service = Service(
        id="api-1",
        name="api",
        node="n1",
        address="10.244.1.5",
        port=8080,
        tagged_addresses={
            "virtual": ServiceAddress(address="10.96.1.1", port=80),
            "virtual-2": ServiceAddress(address="10.96.1.2"),
            "six": ServiceAddress(address="fd00::1", port=80),
        },
    )
    node = Node(name="n1", address="10.0.0.1", tagged_addresses={"wan": "192.0.2.1"})
    assert addresses([made(service, node)]) == {
        Endpoint("10.244.1.5", 8080),
        Endpoint("10.96.1.1", 80),
        Endpoint("10.96.1.2", 8080),
    }


def test_a_service_without_an_address_is_at_those_of_its_node() -> None:
    node = Node(
        name="n1", address="10.0.0.1", tagged_addresses={"lan": "10.0.0.1", "wan": "192.0.2.1", "odd": "1.1.1.1"}
    )
    service = Service(id="api", name="api", node="n1", port=8080)
    assert addresses([made(service, node)]) == {Endpoint("10.0.0.1", 8080), Endpoint("192.0.2.1", 8080)}


def test_a_service_without_a_port_cannot_be_dialled() -> None:
    node = Node(name="n1", address="10.0.0.1")
    assert addresses([made(Service(id="api", name="api", node="n1"), node)]) == frozenset()


def test_only_addresses_with_ports_pass_through() -> None:
    listed: list[Any] = ["10.96.0.1:443", "10.96.0.1", "host:443", "10.0.0.1:0", "10.0.0.1:99999", 7]
    assert passthrough(Proxy(destination_service="a", config={"passthrough": listed})) == {Endpoint("10.96.0.1", 443)}
    assert passthrough(Proxy(destination_service="a", config={"passthrough": "10.96.0.1:443"})) == frozenset()


def test_what_not_all_instances_speak_is_tcp() -> None:
    def speaks(protocol: str) -> Instance:
        found = instance("api", 1)
        assert found.service.proxy is not None
        sidecar = msgspec.structs.replace(found.service.proxy, config={"protocol": protocol})
        return found._replace(service=msgspec.structs.replace(found.service, proxy=sidecar))

    assert common_protocol([speaks("http"), speaks("http")]) == "http"
    assert common_protocol([speaks("http"), speaks("grpc")]) == "tcp"
    assert common_protocol([]) == "tcp"


def test_an_address_that_two_services_claim_belongs_to_the_first_by_name() -> None:
    same = frozenset({Endpoint("10.0.0.1", 80)})
    assert table({"b": same, "a": same}) == {80: {"10.0.0.1": "a"}}


def transparent(**config: Any) -> Service:
    found = proxy("web", config=config)
    assert found.proxy is not None
    return msgspec.structs.replace(found, proxy=msgspec.structs.replace(found.proxy, mode="transparent"))


def reaching(sidecar: Service, *numbers: int) -> Inputs:
    api = Destination("dc2", "api")
    own = tuple(
        made(
            Service(id=f"api{number}", name="api", node=f"n{number}", address=f"10.0.2.{number}", port=8080),
            Node(name=f"n{number}"),
        )
        for number in numbers
    )
    found = inputs(sidecar, endpoints={api: tuple(instance("api", number) for number in numbers)})
    return dataclasses.replace(found, reach=(api,), instances={api: own})


def test_an_instance_that_comes_changes_the_matcher_and_no_chain() -> None:
    builder = Builder()
    before = opened(builder.build(reaching(transparent(), 1)).table(LISTENER).resources[OUTBOUND])
    after = opened(builder.build(reaching(transparent(), 1, 2)).table(LISTENER).resources[OUTBOUND])
    assert before["filter_chains"] == after["filter_chains"]
    assert before["filter_chain_matcher"] != after["filter_chain_matcher"]
    assert [chain["name"] for chain in after["filter_chains"]] == ["nobody", server_name("api", "dc2", "mesh.test")]


def test_a_proxy_that_may_call_nobody_still_captures_and_refuses() -> None:
    snapshot = Builder().build(inputs(transparent()))
    found = opened(snapshot.table(LISTENER).resources[OUTBOUND])
    assert [chain["name"] for chain in found["filter_chains"]] == ["nobody"]
    assert "matcher_tree" not in found["filter_chain_matcher"]
    assert found["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 15001}


def test_a_proxy_that_is_not_transparent_has_no_outbound_listener() -> None:
    assert OUTBOUND not in Builder().build(inputs(proxy("web"))).table(LISTENER).resources


def test_only_the_addresses_named_pass_through() -> None:
    snapshot = Builder().build(inputs(transparent(passthrough=["10.96.0.1:443"])))
    tree = opened(snapshot.table(LISTENER).resources[OUTBOUND])["filter_chain_matcher"]["matcher_tree"]
    inner = tree["exact_match_map"]["map"]["443"]["matcher"]["matcher_tree"]
    assert list(inner["exact_match_map"]["map"]) == ["10.96.0.1"]
    assert opened(snapshot.table(CLUSTER).resources["passthrough"])["type"] == "ORIGINAL_DST"
