"""What the service accounts of the mesh's own workloads may do at the port for pods: what they need, and no more. Pure."""

import re

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


def webhook_of(account: str) -> str:
    """The name under which the API server calls the injector with this service account (`namespace/name`): its Service has the account's name."""
    namespace, _, name = account.partition("/")
    return f"{name}.{namespace}.svc"
