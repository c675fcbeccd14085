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


def bootstrap(sidecar: Sidecar) -> dict[str, Any]:
    """The bootstrap as JSON. Without an admin port or socket there is no admin interface."""
    found: dict[str, Any] = {
        "node": {"id": sidecar.proxy_id, "cluster": sidecar.service},
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
                "grpc_services": [
                    {
                        "envoy_grpc": {
                            "cluster_name": "agent",
                            "retry_policy": {"retry_back_off": {"base_interval": "0.250s", "max_interval": "2s"}},
                        }
                    }
                ],
            },
            "cds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
            "lds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
        },
        "static_resources": {"clusters": [_agent(sidecar.ads_socket)]},
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
    admin = _admin(sidecar)
    if admin:
        found["admin"] = admin
    return found


def _agent(socket_path: str) -> dict[str, Any]:
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
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": socket_path}}}}]}],
        },
    }


def _admin(sidecar: Sidecar) -> dict[str, Any]:
    if sidecar.admin_socket:
        return {"address": {"pipe": {"path": sidecar.admin_socket, "mode": 0o600}}}
    if sidecar.admin_port:
        return {"address": {"socket_address": {"address": "127.0.0.1", "port_value": sidecar.admin_port}}}
    return {}
