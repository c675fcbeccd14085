"""A pod's init container: what it reads, the rules that it loads, what Envoy starts from."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh_agent.errors import ConfigError
from mesh_agent.sidecar.bootstrap import ROOTS, PodSidecar, pod_bootstrap, roots_secret
from mesh_agent.sidecar.capture import Capture, gateway, nameservers, rules
from mesh_agent.sidecar.pod import PodEnvironment

GOLDEN = Path(__file__).parents[2] / "golden" / "sidecar"
ROUTES = """Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	0001F40A	00000000	0001	0	0	0	00FFFFFF	0	0	0
eth0	00000000	0101F40A	0003	0	0	0	00000000	0	0	0
"""
ENVIRON = {
    "MESH_NODE_IP": "10.0.0.5",
    "MESH_POD_IP": "10.244.1.7",
    "MESH_POD_NAME": "api-1",
    "MESH_POD_NAMESPACE": "default",
    "MESH_POD_UID": "uid-1",
}


def test_the_smallest_capture(golden: Callable[[Path, str], None]) -> None:
    golden(GOLDEN / "plain.nft", rules(Capture(("10.244.1.1", "10.0.0.5"))))


def test_a_capture_with_everything(golden: Callable[[Path, str], None]) -> None:
    environ = ENVIRON | {
        "MESH_PROBES": "20301:9090,20300:8080",
        "MESH_EXCLUDE_OUTBOUND_CIDRS": "10.9.0.0/16, 10.9.1.0/24,fd00::/8",
        "MESH_EXCLUDE_OUTBOUND_PORTS": "123,22,22",
        "MESH_EXCLUDE_INBOUND_PORTS": "9100",
    }
    found = PodEnvironment.read(environ).capture(gateway="10.244.1.1", nameservers=("10.96.0.10",))
    golden(GOLDEN / "everything.nft", rules(found))


def test_a_prober_that_is_both_gateway_and_node_is_named_once() -> None:
    assert "{ 10.0.0.5 }" in rules(Capture(("10.0.0.5", "10.0.0.5")))


def test_the_gateway_is_that_of_the_default_route() -> None:
    assert gateway(ROUTES) == "10.244.1.1"
    with pytest.raises(ConfigError, match="no default route"):
        gateway(ROUTES.splitlines()[0] + "\n" + ROUTES.splitlines()[1])


def test_name_servers_of_the_network_are_found() -> None:
    text = "# comment\nsearch x\nnameserver 10.96.0.10\nnameserver\nnameserver junk\nnameserver 127.0.0.53\nnameserver fd00::1\n"
    assert nameservers(text) == ("10.96.0.10", "fd00::1")


@pytest.mark.parametrize("name", ENVIRON)
def test_a_missing_variable_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        PodEnvironment.read({key: value for key, value in ENVIRON.items() if key != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MESH_PROBES", "20300"),
        ("MESH_PROBES", "20300:http"),
        ("MESH_AGENT_PORT", "x"),
        ("MESH_EXCLUDE_INBOUND_PORTS", "99999"),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        PodEnvironment.read(ENVIRON | {name: value})


def test_a_network_that_is_none_is_named_before_anything_is_loaded() -> None:
    found = PodEnvironment.read(ENVIRON | {"MESH_EXCLUDE_OUTBOUND_CIDRS": "10.0.0.0/8; drop"})
    with pytest.raises(ConfigError, match="drop"):
        rules(found.capture(gateway="10.244.1.1", nameservers=()))


def test_envoy_obeys_the_nodes_agent_alone_and_has_no_admin_interface() -> None:
    sidecar = PodSidecar(
        proxy_id="api-1-sidecar-proxy",
        service="api",
        pod_uid="uid-1",
        session="abc",
        agent_address="10.0.0.5",
        agent_port=8503,
        agent_ids=("spiffe://mesh.test/agent/client/dc/dc1/id/n1",),
        ready_address="10.244.1.7",
        ready_port=20200,
        ready_path="/ready",
        roots_secret="/mesh/agent-roots.json",
    )
    found = pod_bootstrap(sidecar)
    assert "admin" not in found
    assert found["node"] == {"id": "api-1-sidecar-proxy", "cluster": "api"}
    (agent,) = found["static_resources"]["clusters"]
    text = json.dumps(agent)
    assert '"exact": "spiffe://mesh.test/agent/client/dc/dc1/id/n1"' in text
    assert '"path": "/mesh/agent-roots.json"' in text
    (service,) = found["dynamic_resources"]["ads_config"]["grpc_services"]
    assert service["initial_metadata"] == [
        {"key": "mesh-session", "value": "abc"},
        {"key": "mesh-pod", "value": "uid-1"},
    ]
    (secret,) = roots_secret("/mesh-ca/roots.pem")["resources"]
    assert secret["name"] == ROOTS
    assert secret["validation_context"]["watched_directory"] == {"path": "/mesh-ca"}
