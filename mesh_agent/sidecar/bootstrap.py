"""Envoy's bootstrap configuration: who it is and where it gets everything else from. Pure."""

from dataclasses import dataclass
from typing import Any

_TYPE = "type.googleapis.com/envoy.extensions"
_MAX_CONNECTIONS = 100_000
_STATS = (
    "listener.",
    "cluster.",
    "http.",
    "tcp.",
    "server.",
    "listener_manager.",
    "cluster_manager.",
    "control_plane.",
    "sds.",
)


@dataclass(frozen=True, slots=True)
class Sidecar:
    """One Envoy. `proxy_id` is the id of the proxy's registration on this node, `service` the service that it stands for."""

    proxy_id: str
    service: str
    ads_socket: str
    admin_port: int = 0
    admin_socket: str = ""


@dataclass(frozen=True, slots=True)
class PodSidecar:
    """The Envoy of a pod. It proves itself by `session`, and obeys an agent that presents one of `agent_ids` under the roots of `roots_secret`."""

    proxy_id: str
    service: str
    pod_uid: str
    session: str
    agent_address: str
    agent_port: int
    agent_ids: tuple[str, ...]
    ready_address: str
    ready_port: int
    ready_path: str
    roots_secret: str
    """File that `roots_secret()` is written to."""


ROOTS = "agent_roots"


def bootstrap(sidecar: Sidecar) -> dict[str, Any]:
    """The bootstrap as JSON. Without an admin port or socket there is no admin interface."""
    endpoint = {"pipe": {"path": sidecar.ads_socket}}
    found = _bootstrap(sidecar.proxy_id, sidecar.service, _agent(endpoint), [])
    admin = _admin(sidecar)
    if admin:
        found["admin"] = admin
    return found


def pod_bootstrap(sidecar: PodSidecar) -> dict[str, Any]:
    """The bootstrap of a pod's Envoy, as JSON. It has no admin interface: the application shares its network and would reach it."""
    address = {"socket_address": {"address": sidecar.agent_address, "port_value": sidecar.agent_port}}
    agent = _agent(address) | {"transport_socket": _agent_tls(sidecar)}
    metadata = [
        {"key": "mesh-session", "value": sidecar.session},
        {"key": "mesh-pod", "value": sidecar.pod_uid},
    ]
    found = _bootstrap(sidecar.proxy_id, sidecar.service, agent, metadata)
    found["static_resources"]["listeners"] = [_ready(sidecar)]
    return found


def roots_secret(ca_file: str) -> dict[str, Any]:
    """A file for Envoy's file-based secret discovery: the trust bundle, read again whenever kubelet swaps the projected directory."""
    directory = ca_file.rpartition("/")[0]
    context = {"trusted_ca": {"filename": ca_file}, "watched_directory": {"path": directory}}
    secret = {
        "@type": f"{_TYPE}.transport_sockets.tls.v3.Secret",
        "name": ROOTS,
        "validation_context": context,
    }
    return {"version_info": "1", "resources": [secret]}


def _agent_tls(sidecar: PodSidecar) -> dict[str, Any]:
    names = [{"san_type": "URI", "matcher": {"exact": each}} for each in sidecar.agent_ids]
    source = {"path_config_source": {"path": sidecar.roots_secret}, "resource_api_version": "V3"}
    context = {
        "@type": f"{_TYPE}.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": ["h2"],
            "combined_validation_context": {
                "default_validation_context": {"match_typed_subject_alt_names": names},
                "validation_context_sds_secret_config": {"name": ROOTS, "sds_config": source},
            },
        },
    }
    return {"name": "tls", "typed_config": context}


def _ready(sidecar: PodSidecar) -> dict[str, Any]:
    """A static listener accepts nothing before Envoy has its first listeners and clusters, and all that these need: that is readiness."""
    path = {"name": ":path", "string_match": {"exact": sidecar.ready_path}}
    manager = {
        "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ready",
        "route_config": {"name": "ready", "virtual_hosts": []},
        "http_filters": [
            {
                "name": "health_check",
                "typed_config": {
                    "@type": f"{_TYPE}.filters.http.health_check.v3.HealthCheck",
                    "pass_through_mode": False,
                    "headers": [path],
                },
            },
            {
                "name": "router",
                "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"},
            },
        ],
    }
    address = {"address": sidecar.ready_address, "port_value": sidecar.ready_port}
    return {
        "name": "ready",
        "address": {"socket_address": address},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _bootstrap(proxy_id: str, service: str, agent: dict[str, Any], metadata: list[dict[str, str]]) -> dict[str, Any]:
    grpc_service: dict[str, Any] = {
        "envoy_grpc": {
            "cluster_name": "agent",
            "retry_policy": {"retry_back_off": {"base_interval": "0.250s", "max_interval": "2s"}},
        }
    }
    if metadata:
        grpc_service["initial_metadata"] = metadata
    return {
        "node": {"id": proxy_id, "cluster": service},
        "bootstrap_extensions": [
            {
                "name": "internal_listener",
                "typed_config": {"@type": f"{_TYPE}.bootstrap.internal_listener.v3.InternalListener"},
            }
        ],
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [grpc_service],
            },
            "cds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
            "lds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
        },
        "static_resources": {"clusters": [agent]},
        "stats_config": {"stats_matcher": {"inclusion_list": {"patterns": [{"prefix": each} for each in _STATS]}}},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{_TYPE}.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": _MAX_CONNECTIONS,
                    },
                }
            ]
        },
    }


def _agent(address: dict[str, Any]) -> dict[str, Any]:
    http2 = {
        "@type": f"{_TYPE}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {
            "http2_protocol_options": {"connection_keepalive": {"interval": "30s", "timeout": "10s"}}
        },
    }
    return {
        "name": "agent",
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "load_assignment": {
            "cluster_name": "agent",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def _admin(sidecar: Sidecar) -> dict[str, Any]:
    if sidecar.admin_socket:
        return {"address": {"pipe": {"path": sidecar.admin_socket, "mode": 0o600}}}
    if sidecar.admin_port:
        return {"address": {"socket_address": {"address": "127.0.0.1", "port_value": sidecar.admin_port}}}
    return {}
