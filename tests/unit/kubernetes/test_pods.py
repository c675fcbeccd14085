"""What a pod becomes in the mesh."""

from typing import Any

import pytest

from mesh_agent.errors import InvalidRequest
from mesh_agent.injector import names
from mesh_agent.kubernetes import annotations
from mesh_agent.kubernetes.door import AUDIENCE
from mesh_agent.kubernetes.pods import PUBLIC_PORT, Pod, api_server, is_injected, read_pod
from mesh_agent.kubernetes.session import is_session_of, session_of
from mesh_agent.model import ServiceAddress, Status, Upstream
from tests.support.kubernetes import pod, service

P = annotations.PREFIX


def read(found: dict[str, Any], *services: dict[str, Any]) -> Pod:
    return read_pod(found, services, cluster="east", passthrough=("10.96.0.1:443",))


def test_a_pod_is_an_instance_with_a_sidecar_in_transparent_mode() -> None:
    found = read(pod("api-7d-x2", annotations={f"{P}service-tags": "v1", f"{P}service-upstreams": "db:5432:dc2"}))
    assert (found.service, found.proxy_id, found.leaving) == ("api", "api-api-7d-x2-sidecar-proxy", False)
    made = found.definition
    assert made is not None
    assert (made.name, made.id, made.address, made.port) == ("api", "api-api-7d-x2", "10.244.1.5", 8080)
    assert made.tags == ("v1",)
    assert made.meta == {
        "k8s-namespace": "default",
        "k8s-cluster": "east",
        "pod-name": "api-7d-x2",
        "pod-uid": "uid-default-api-7d-x2",
    }
    (check,) = made.checks
    assert (check.kind, check.status, check.pod) == ("kubernetes-readiness", Status.PASSING, "default/api-7d-x2")
    assert made.sidecar is not None
    assert (made.sidecar.id, made.sidecar.port) == (found.proxy_id, PUBLIC_PORT)
    assert [each.kind for each in made.sidecar.checks] == ["alias"]
    proxy = made.sidecar.proxy
    assert proxy is not None
    assert (proxy.mode, proxy.local_port, proxy.destination_id) == ("transparent", 8080, made.id)
    assert proxy.upstreams == (Upstream(destination_name="db", local_bind_port=5432, datacenter="dc2"),)
    assert proxy.config == {"passthrough": ["10.96.0.1:443"]}


def test_no_two_pods_of_a_namespace_make_the_same_ids() -> None:
    names = ("x", "api-x", "web-x", "web-api-x", "api.x", "sidecar-proxy", "api-web-api-0", "web-api-0")
    pods = [read(pod(name, account=account)) for account in ("web", "api", "web-api", "web-api-x") for name in names]
    ids = [each for found in pods for each in (found.instance_id, found.proxy_id)]
    assert len(set(ids)) == len(ids)
    assert read(pod("web-api-0", account="web-api")).instance_id == "web-api_web-api-0"


def test_a_pod_that_is_called_like_a_sidecar_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="must not end with '-sidecar-proxy'"):
        read(pod("x-sidecar-proxy"))


def test_a_pod_that_is_not_ready_is_critical_and_says_why() -> None:
    found = pod("a", ready=False)
    found["status"]["conditions"][0]["message"] = "containers with unready status: [app]"
    made = read(found).definition
    assert made is not None
    assert made.checks[0].status is Status.CRITICAL
    assert "unready status: [app]" in made.checks[0].notes


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_is_nothing(phase: str) -> None:
    assert read(pod("a", phase=phase)).definition is None


def test_a_pod_without_an_address_is_nothing_yet() -> None:
    assert read(pod("a", address=None, phase="Pending")).definition is None


def test_a_pod_whose_init_containers_run_is_something_already() -> None:
    assert read(pod("a", phase="Pending", ready=False)).definition is not None


def test_a_pod_that_is_being_deleted_is_leaving() -> None:
    found = pod("a")
    found["metadata"]["deletionTimestamp"] = "2026-11-25T10:00:00Z"
    assert read(found).leaving


@pytest.mark.parametrize(
    ("said", "port"),
    [({}, 8080), ({f"{P}service-port": "9000"}, 9000), ({f"{P}service-port": "admin"}, 9090)],
)
def test_the_port_is_the_annotated_one_or_the_first(said: dict[str, str], port: int) -> None:
    made = read(pod("a", ports=(("http", 8080), ("admin", 9090)), annotations=said)).definition
    assert made is not None
    assert made.port == port


def test_a_pod_without_ports_only_calls_others() -> None:
    made = read(pod("job", ports=())).definition
    assert made is not None
    assert made.port == 0


def test_a_port_name_that_no_container_has_is_named() -> None:
    with pytest.raises(InvalidRequest, match="admin"):
        read(pod("a", annotations={f"{P}service-port": "admin"}))


def test_cluster_addresses_of_services_that_lead_to_the_port_are_virtual() -> None:
    made = read(
        pod("a"),
        service("api", "10.96.1.1", http=(80, "http"), admin=(81, 9090)),
        service("z", "10.96.1.2", selector={"app": "api"}, http=(8080, 8080)),
        service("headless", "None", selector={"app": "api"}, http=(80, 8080)),
        service("other", "10.96.1.3", selector={"app": "web"}, http=(80, 8080)),
        service("elsewhere", "10.96.1.4", namespace="x", selector={"app": "api"}, http=(80, 8080)),
        service("without", "10.96.1.5", selector={}, http=(80, 8080)),
    ).definition
    assert made is not None
    assert made.tagged_addresses == {
        "virtual": ServiceAddress(address="10.96.1.1", port=80),
        "virtual-2": ServiceAddress(address="10.96.1.2", port=8080),
    }


def test_the_address_of_the_api_server_is_that_of_its_service() -> None:
    found = [service("kubernetes", "10.96.0.1", https=(443, 6443)), service("api", "10.96.1.1", http=(80, 80))]
    assert api_server(found) == ("10.96.0.1:443",)


def test_nobody_without_a_service_account_of_its_own_and_no_pod_of_the_nodes_network() -> None:
    with pytest.raises(InvalidRequest, match="nobody"):
        read(pod("a", account="default"))
    shared = pod("a")
    shared["spec"]["hostNetwork"] = True
    with pytest.raises(InvalidRequest, match="hostNetwork"):
        read(shared)


def test_only_pods_with_the_injectors_label_are_ours() -> None:
    assert is_injected(pod("a"))
    assert not is_injected(pod("a", labels={"mesh.openmesh.io/injected": "false"}))
    assert not is_injected({"metadata": {"name": "a"}})


def test_a_session_is_good_for_one_pod_and_one_agent() -> None:
    session = session_of(b"k" * 32, "uid-1")
    assert is_session_of(b"k" * 32, "uid-1", session)
    assert not is_session_of(b"k" * 32, "uid-2", session)
    assert not is_session_of(b"x" * 32, "uid-1", session)
    assert not is_session_of(b"k" * 32, "uid-1", "")
    assert not is_session_of(b"k" * 32, "uid-1", "ä")


def test_injector_and_agent_mean_the_same_names() -> None:
    assert PUBLIC_PORT == names.PUBLIC_PORT
    assert AUDIENCE == names.TOKEN_AUDIENCE
