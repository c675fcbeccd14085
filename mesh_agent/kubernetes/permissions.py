"""What the service accounts of the mesh's own workloads may do at the port for pods: what they need, and no more. Pure."""

import re

from mesh_agent.agent import fields as f
from mesh_agent.agent.fields import Fields
from mesh_agent.errors import PermissionDenied

CLUSTER_NODE = "k8s-"
"""How the names of nodes begin that stand for a whole cluster."""
_OF_A_NODE = ("/v1/catalog/register", "/v1/catalog/deregister")
_CONTROLLERS = (
    ("GET", r"/v1/agent/self"),
    ("GET", r"/v1/connect/ca/roots"),
    ("GET", r"/v1/catalog/services"),
    ("GET", r"/v1/catalog/node-services/[^/]+"),
    ("PUT", r"/v1/catalog/register"),
    ("PUT", r"/v1/catalog/deregister"),
    ("GET", r"/v1/config/[^/]+"),
    ("PUT", r"/v1/config"),
    ("DELETE", r"/v1/config/[^/]+/[^/]+"),
)
_PATTERNS = tuple((method, re.compile(path)) for method, path in _CONTROLLERS)


def controllers_may(method: str, path: str) -> bool:
    """Whether the controllers use this route of the agent's HTTP API."""
    return any(method == known and pattern.fullmatch(path) for known, pattern in _PATTERNS)


def check_node(path: str, body: bytes) -> None:
    """PermissionDenied if controllers enter into the catalog, or take from it, what is of another node than a cluster's (`k8s-<cluster>`)."""
    if path not in _OF_A_NODE:
        return
    node = Fields(f.decode_object(body)).take("Node", f.text, "")
    if not node.startswith(CLUSTER_NODE):
        raise PermissionDenied(f"controllers register on nodes {CLUSTER_NODE}<cluster> alone, not on {node!r}")


def webhook_of(account: str) -> str:
    """The name under which the API server calls the injector with this service account (`namespace/name`): its Service has the account's name."""
    namespace, _, name = account.partition("/")
    return f"{name}.{namespace}.svc"
