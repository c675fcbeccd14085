"""Listeners: the public one that accepts the mesh, the internal one that decides about TCP connections, and one for each upstream. Pure.

TCP takes two steps inside one Envoy (docs/adr/0002). `public` ends mutual TLS, notes the peer's SPIFFE ID and hands the connection to the internal
listener `inbound`, which picks a filter chain by that identity. Each allowed source has a chain of its own, so that taking a chain away
closes the connections of exactly that source. HTTP is decided on each request by a filter that is discovered on its own.
"""

from collections.abc import Mapping
from typing import Any

from envoy.config.accesslog.v3.accesslog_pb2 import AccessLog
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.address_pb2 import Address, EnvoyInternalAddress
from envoy.config.core.v3.base_pb2 import TrafficDirection, TransportSocket
from envoy.config.core.v3.config_source_pb2 import ExtensionConfigSource
from envoy.config.core.v3.substitution_format_string_pb2 import SubstitutionFormatString
from envoy.config.endpoint.v3 import endpoint_components_pb2 as component
from envoy.config.endpoint.v3 import endpoint_pb2 as endpoint
from envoy.config.listener.v3 import listener_components_pb2 as part
from envoy.config.listener.v3 import listener_pb2 as listener
from envoy.config.route.v3 import route_components_pb2 as routing
from envoy.config.route.v3 import route_pb2 as route
from envoy.extensions.access_loggers.stream.v3.stream_pb2 import StdoutAccessLog
from envoy.extensions.filters.http.router.v3.router_pb2 import Router
from envoy.extensions.filters.listener.original_dst.v3.original_dst_pb2 import OriginalDst
from envoy.extensions.filters.network.direct_response.v3.config_pb2 import Config as Close
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as http
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy, UpstreamConnectMode
from envoy.extensions.matching.common_inputs.network.v3.network_inputs_pb2 import FilterStateInput
from envoy.extensions.transport_sockets.internal_upstream.v3.internal_upstream_pb2 import InternalUpstreamTransport
from envoy.extensions.transport_sockets.raw_buffer.v3.raw_buffer_pb2 import RawBuffer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value
from xds.type.v3.typed_struct_pb2 import TypedStruct

from mesh_agent.model import Upstream
from mesh_agent.xds import tls, transparent
from mesh_agent.xds.admission import Admission
from mesh_agent.xds.clusters import duration_ms, protocol_of, socket_address
from mesh_agent.xds.naming import INBOUND, INTENTIONS, LOCAL_APP, OUTBOUND

PEER = "mesh.peer"
_SET_FILTER_STATE = "type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config"
_HTTP_RBAC = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
_RETRIES = 2

_COMMON_LOG = {
    "time": "%START_TIME%",
    "duration_ms": "%DURATION%",
    "flags": "%RESPONSE_FLAGS%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "remote": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "upstream": "%UPSTREAM_HOST%",
}
_HTTP_LOG = _COMMON_LOG | {
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(:PATH)%",
    "status": "%RESPONSE_CODE%",
    "details": "%RESPONSE_CODE_DETAILS%",
}


def _log(kind: str, fields: Mapping[str, str]) -> AccessLog:
    shape = Struct()
    shape.update({"log": kind} | dict(fields))
    return AccessLog(
        name="stdout",
        typed_config=tls.packed(StdoutAccessLog(log_format=SubstitutionFormatString(json_format=shape))),
    )


def _tcp_proxy(name: str, cluster: str, log: AccessLog | None, **more: Any) -> part.Filter:  # fields of TcpProxy
    config = TcpProxy(stat_prefix=name, cluster=cluster, access_log=[log] if log else [], **more)
    return part.Filter(name="tcp_proxy", typed_config=tls.packed(config))


def _remember_peer() -> part.Filter:
    """Keep the SPIFFE ID of the handshake for the internal listener. As a struct: our protocol buffers do not know this field yet."""
    value = Struct()
    state: dict[str, Any] = {
        "object_key": PEER,
        "factory_key": "envoy.hashable_string",
        "format_string": {"text_format_source": {"inline_string": "%DOWNSTREAM_PEER_URI_SAN%"}},
        "shared_with_upstream": "ONCE",
    }
    value.update({"on_downstream_tls_handshake": [state]})
    config = TypedStruct(type_url=_SET_FILTER_STATE, value=value)
    return part.Filter(name="set_filter_state", typed_config=tls.packed(config))


def public_tcp(address: str, port: int, trust_domain: str) -> listener.Listener:
    """Ends mutual TLS and passes the connection on to `inbound` once the peer is known, not a byte before."""
    log = _log("inbound", _COMMON_LOG | {"peer": "%DOWNSTREAM_PEER_URI_SAN%", "tls": "%DOWNSTREAM_TLS_VERSION%"})
    proxy = _tcp_proxy(
        "public",
        INBOUND,
        log,
        upstream_connect_mode=UpstreamConnectMode.ON_DOWNSTREAM_TLS_HANDSHAKE,
        max_early_data_bytes=UInt32Value(value=16384),
    )
    return _public(address, port, [_remember_peer(), proxy], tls.downstream(trust_domain))


def public_http(address: str, port: int, trust_domain: str, config: Mapping[str, Any]) -> listener.Listener:
    """Ends mutual TLS and HTTP; each request is decided by the intentions filter, and the application sees who asks."""
    manager = _manager("public", "inbound", LOCAL_APP, {"peer": "%DOWNSTREAM_PEER_URI_SAN%"}, config)
    manager.forward_client_cert_details = http.HttpConnectionManager.SANITIZE_SET
    manager.set_current_client_cert_details.uri = True
    source = ExtensionConfigSource(config_source=tls.ads(), type_urls=[_HTTP_RBAC])
    manager.http_filters.insert(0, http.HttpFilter(name=INTENTIONS, config_discovery=source))
    alpn = ("http/1.1",) if protocol_of(config) == "http" else ("h2", "http/1.1")
    return _public(address, port, [_http_filter(manager)], tls.downstream(trust_domain, alpn))


def _public(address: str, port: int, filters: list[part.Filter], transport: TransportSocket) -> listener.Listener:
    chain = part.FilterChain(
        name="public",
        filters=filters,
        transport_socket=transport,
        transport_socket_connect_timeout=Duration(seconds=10),
    )
    return listener.Listener(
        name=f"public:{address}:{port}",
        address=socket_address(address, port),
        filter_chains=[chain],
        traffic_direction=TrafficDirection.INBOUND,
    )


def inbound(admission: Admission) -> listener.Listener:
    """The internal listener: who is not matched to a chain is closed before the application hears of it."""
    refused = _log("refused", {"time": "%START_TIME%", "peer": f"%FILTER_STATE({PEER}:PLAIN)%"})
    refused.filter.response_flag_filter.flags.append("NR")
    # Envoy rejects a listener without a chain and would go on admitting whom it admitted before.
    nobody = part.FilterChain(name="nobody", filters=[part.Filter(name="close", typed_config=tls.packed(Close()))])
    chains = [
        part.FilterChain(name=name, filters=[_tcp_proxy(_stat_prefix(name), LOCAL_APP, None)])
        for name in admission.chains
    ]
    return listener.Listener(
        name=INBOUND,
        internal_listener=listener.Listener.InternalListenerConfig(),
        filter_chains=[nobody, *chains],
        filter_chain_matcher=admission.matcher(FilterStateInput(key=PEER)),
        access_log=[refused],
        traffic_direction=TrafficDirection.INBOUND,
    )


def _stat_prefix(chain: str) -> str:
    return "inbound" if chain.startswith("allow:*") else f"inbound.{chain.removeprefix('allow:')}"


def inbound_cluster() -> Cluster:
    """The road from `public` to `inbound`; it carries the peer's SPIFFE ID along."""
    address = Address(envoy_internal_address=EnvoyInternalAddress(server_listener_name=INBOUND))
    point = component.LbEndpoint(endpoint=component.Endpoint(address=address))
    plain = TransportSocket(name="raw_buffer", typed_config=tls.packed(RawBuffer()))
    return Cluster(
        name=INBOUND,
        type=Cluster.DiscoveryType.STATIC,
        connect_timeout=Duration(seconds=5),
        # The peer's identity travels with a pool of connections, not with each: no two peers may ever share one.
        connection_pool_per_downstream_connection=True,
        transport_socket=TransportSocket(
            name="internal", typed_config=tls.packed(InternalUpstreamTransport(transport_socket=plain))
        ),
        load_assignment=endpoint.ClusterLoadAssignment(
            cluster_name=INBOUND, endpoints=[component.LocalityLbEndpoints(lb_endpoints=[point])]
        ),
    )


def upstream(upstream: Upstream, cluster: str) -> listener.Listener:
    """Where the application calls another service: plain on loopback, mutual TLS beyond."""
    address, port = upstream.local_bind_address or "127.0.0.1", upstream.local_bind_port
    filters = _outbound_filters(cluster, upstream.config)
    return listener.Listener(
        name=f"upstream:{cluster}:{address}:{port}",
        address=socket_address(address, port),
        filter_chains=[part.FilterChain(name="upstream", filters=filters)],
        traffic_direction=TrafficDirection.OUTBOUND,
    )


def outbound(
    port: int, services: Mapping[str, str], ports: Mapping[int, Mapping[str, str]], *, passthrough: bool
) -> listener.Listener:
    """Where captured connections go: `services` are cluster -> protocol, `ports` lead from where the application dialled to one of them."""
    refused = _log("refused", {"time": "%START_TIME%", "dialled": "%DOWNSTREAM_LOCAL_ADDRESS%"})
    refused.filter.response_flag_filter.flags.append("NR")
    chains = [
        # As for `inbound`: a listener without any chain would be rejected, and the old one kept.
        part.FilterChain(name="nobody", filters=[part.Filter(name="close", typed_config=tls.packed(Close()))]),
        *(
            part.FilterChain(name=cluster, filters=_outbound_filters(cluster, {"protocol": protocol}))
            for cluster, protocol in services.items()
        ),
    ]
    if passthrough:
        log = _log("passthrough", _COMMON_LOG)
        proxy = _tcp_proxy(transparent.PASSTHROUGH, transparent.PASSTHROUGH, log)
        chains.append(part.FilterChain(name=transparent.PASSTHROUGH, filters=[proxy]))
    original = listener.Listener(
        name=OUTBOUND,
        address=socket_address("127.0.0.1", port),
        filter_chains=chains,
        filter_chain_matcher=transparent.matcher(ports),
        access_log=[refused],
        traffic_direction=TrafficDirection.OUTBOUND,
    )
    original.listener_filters.add(name="original_dst", typed_config=tls.packed(OriginalDst()))
    return original


def _outbound_filters(cluster: str, config: Mapping[str, Any]) -> list[part.Filter]:
    if protocol_of(config) != "tcp":
        return [_http_filter(_manager(cluster, "outbound", cluster, {}, config))]
    attempts = UInt32Value(value=1 + _RETRIES)
    return [_tcp_proxy(cluster, cluster, _log("outbound", _COMMON_LOG), max_connect_attempts=attempts)]


def _http_filter(manager: http.HttpConnectionManager) -> part.Filter:
    return part.Filter(name="http", typed_config=tls.packed(manager))


def _manager(
    name: str, direction: str, cluster: str, log: Mapping[str, str], config: Mapping[str, Any]
) -> http.HttpConnectionManager:
    retry = routing.RetryPolicy(
        retry_on="connect-failure,refused-stream,reset-before-request", num_retries=UInt32Value(value=_RETRIES)
    )
    key = "local_request_timeout_ms" if cluster == LOCAL_APP else "request_timeout_ms"
    action = routing.RouteAction(cluster=cluster, timeout=duration_ms(config, key, 0), retry_policy=retry)
    rule = routing.Route(match=routing.RouteMatch(prefix="/"), route=action)
    host = routing.VirtualHost(name=name, domains=["*"], routes=[rule])
    return http.HttpConnectionManager(
        stat_prefix=name,
        route_config=route.RouteConfiguration(
            name=name, virtual_hosts=[host], validate_clusters=BoolValue(value=False)
        ),
        http_filters=[http.HttpFilter(name="router", typed_config=tls.packed(Router()))],
        access_log=[_log(direction, _HTTP_LOG | dict(log))],
        upgrade_configs=[http.HttpConnectionManager.UpgradeConfig(upgrade_type="websocket")],
        stream_idle_timeout=Duration(),
        use_remote_address=BoolValue(value=False),
        strip_matching_host_port=False,
    )
