"""What the mesh's own workloads may do at the port for pods."""

import pytest

from mesh_agent.errors import PermissionDenied
from mesh_agent.kubernetes.permissions import check_node, controllers_may, webhook_of


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/agent/self"),
        ("GET", "/v1/catalog/node-services/k8s-east"),
        ("PUT", "/v1/catalog/register"),
        ("DELETE", "/v1/config/service-defaults/a%2Fb"),
    ],
)
def test_controllers_may_do_what_they_need(method: str, path: str) -> None:
    assert controllers_may(method, path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/agent/self"),
        ("GET", "/v1/agent/self/"),
        ("GET", "/v1/connect/ca/leaf/api"),
        ("GET", "/v1/catalog/node-services/"),
        ("PUT", "/v1/agent/service/register"),
        ("DELETE", "/v1/config/service-defaults/a/b"),
        ("GET", "/v1/kv/x"),
        ("GET", "/v1/agent/self\n"),
    ],
)
def test_controllers_may_do_nothing_else(method: str, path: str) -> None:
    assert not controllers_may(method, path)


@pytest.mark.parametrize("path", ["/v1/catalog/register", "/v1/catalog/deregister"])
@pytest.mark.parametrize("body", [b'{"Node":"n1"}', b'{"Node":"k8s-east","node":"n1"}', b"{}"])
def test_controllers_write_to_no_node_that_has_an_agent(path: str, body: bytes) -> None:
    check_node(path, b'{"Node":"k8s-east","Service":{}}')
    with pytest.raises(PermissionDenied, match="k8s-"):
        check_node(path, body)


def test_an_injectors_service_is_called_like_its_account() -> None:
    assert webhook_of("mesh-system/mesh-injector") == "mesh-injector.mesh-system.svc"
