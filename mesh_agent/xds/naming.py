"""Names that both sides of a connection must agree on, and xDS type URLs. Pure."""

import re

from mesh_agent.ca.spiffe_id import service_id
from mesh_agent.catalog.intentions import ANY

_PREFIX = "type.googleapis.com/envoy"
SECRET = f"{_PREFIX}.extensions.transport_sockets.tls.v3.Secret"
CLUSTER = f"{_PREFIX}.config.cluster.v3.Cluster"
ENDPOINTS = f"{_PREFIX}.config.endpoint.v3.ClusterLoadAssignment"
EXTENSION = f"{_PREFIX}.config.core.v3.TypedExtensionConfig"
LISTENER = f"{_PREFIX}.config.listener.v3.Listener"
ROUTES = f"{_PREFIX}.config.route.v3.RouteConfiguration"

ORDER = (SECRET, CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ROUTES)
"""In which order types are sent: what is referred to comes before what refers to it."""

LEAF = "leaf"
ROOTS = "roots"
LOCAL_APP = "local_app"
INBOUND = "inbound"
OUTBOUND = "outbound"
INTENTIONS = "intentions"
HTTP_PROTOCOLS = ("http", "http2", "grpc")


def short(type_url: str) -> str:
    """The last word of a type URL, for logs and metrics."""
    return type_url.rpartition(".")[2]


def server_name(service: str, datacenter: str, trust_domain: str) -> str:
    """SNI of a connection to a service of the mesh, in Consul's form; also the name of its cluster."""
    return f"{service}.default.{datacenter}.internal.{trust_domain}"


def identity(service: str, datacenter: str, trust_domain: str) -> str:
    """The SPIFFE ID that a service must present."""
    return str(service_id(trust_domain, datacenter, service))


def identity_pattern(service: str, trust_domain: str) -> str:
    """RE2 pattern of the SPIFFE IDs that an intention's source means: the service, in whichever datacenter it runs.

    `*` is any service, but nothing else that has a certificate: an agent is not a service.
    """
    before, after = str(service_id(trust_domain, "dc", "x" if service == ANY else service)).split("/dc/dc/", 1)
    name = "svc/[^/]+" if service == ANY else re.escape(after)
    return f"{re.escape(before)}/dc/[^/]+/{name}"
