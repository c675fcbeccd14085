"""Clusters and their endpoints: the local application, and one cluster for each upstream. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from envoy.config.cluster.v3 import cluster_pb2 as cluster
from envoy.config.core.v3.address_pb2 import Address, SocketAddress
from envoy.config.core.v3.health_check_pb2 import HealthStatus
from envoy.config.core.v3.protocol_pb2 import Http1ProtocolOptions, Http2ProtocolOptions
from envoy.config.endpoint.v3 import endpoint_components_pb2 as component
from envoy.config.endpoint.v3 import endpoint_pb2 as endpoint
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions
from envoy.type.v3.percent_pb2 import Percent
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import UInt32Value

from mesh_agent.model import Instance, Proxy, Status
from mesh_agent.xds import tls
from mesh_agent.xds.inputs import Destination
from mesh_agent.xds.naming import HTTP_PROTOCOLS, LOCAL_APP, identity, server_name

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_CONNECT_TIMEOUT_MS = 5000


def protocol_of(config: Mapping[str, Any]) -> str:
    """`protocol` of a proxy's or an upstream's config; anything that is not HTTP is plain TCP."""
    found = str(config.get("protocol", "tcp")).lower()
    return found if found in HTTP_PROTOCOLS else "tcp"


def duration_ms(config: Mapping[str, Any], key: str, default: int) -> Duration:
    """A number of milliseconds in a config; what is no positive number counts as absent."""
    found = config.get(key, default)
    usable = isinstance(found, int | float) and not isinstance(found, bool) and found > 0
    return Duration(nanos=0, seconds=0) if not usable and not default else _duration(int(found) if usable else default)


def _duration(milliseconds: int) -> Duration:
    return Duration(seconds=milliseconds // 1000, nanos=milliseconds % 1000 * 1_000_000)


def socket_address(address: str, port: int) -> Address:
    """A TCP address."""
    return Address(socket_address=SocketAddress(address=address, port_value=port))


def _http_options(protocol: str) -> dict[str, AnyMessage]:
    if protocol == "tcp":
        return {}
    explicit = HttpProtocolOptions.ExplicitHttpConfig()
    if protocol == "http":
        explicit.http_protocol_options.CopyFrom(Http1ProtocolOptions())
    else:
        explicit.http2_protocol_options.CopyFrom(Http2ProtocolOptions())
    return {_HTTP_OPTIONS: tls.packed(HttpProtocolOptions(explicit_http_config=explicit))}


def local_app(proxy: Proxy) -> cluster.Cluster:
    """The application behind this proxy."""
    return cluster.Cluster(
        name=LOCAL_APP,
        type=cluster.Cluster.DiscoveryType.STATIC,
        connect_timeout=duration_ms(proxy.config, "local_connect_timeout_ms", _CONNECT_TIMEOUT_MS),
        typed_extension_protocol_options=_http_options(protocol_of(proxy.config)),
        load_assignment=_assignment(LOCAL_APP, [_endpoint(proxy.local_address, proxy.local_port, 1)]),
    )


def upstream(destination: Destination, config: Mapping[str, Any], trust_domain: str) -> cluster.Cluster:
    """The mesh endpoints of another service: mutual TLS to exactly its identity, endpoints by EDS."""
    name = server_name(destination.service, destination.datacenter, trust_domain)
    protocol = protocol_of(config)
    alpn = {"tcp": (), "http": ("http/1.1",)}.get(protocol, ("h2",))
    return cluster.Cluster(
        name=name,
        type=cluster.Cluster.DiscoveryType.EDS,
        eds_cluster_config=cluster.Cluster.EdsClusterConfig(eds_config=tls.ads()),
        connect_timeout=duration_ms(config, "connect_timeout_ms", _CONNECT_TIMEOUT_MS),
        lb_policy=cluster.Cluster.LbPolicy.LEAST_REQUEST,
        # The catalog has done the health checks: an endpoint that is listed is used, and none at all fails at once.
        common_lb_config=cluster.Cluster.CommonLbConfig(healthy_panic_threshold=Percent(value=0)),
        typed_extension_protocol_options=_http_options(protocol),
        transport_socket=tls.upstream(name, identity(destination.service, destination.datacenter, trust_domain), alpn),
    )


def assignment(name: str, instances: Iterable[Instance]) -> endpoint.ClusterLoadAssignment:
    """The endpoints of a cluster: those instances that are not critical, weighted as for DNS."""
    usable = ((each, _weight(each)) for each in instances if each.status is not Status.CRITICAL and each.service.port)
    return _assignment(name, [_endpoint(each.address, each.service.port, weight) for each, weight in usable if weight])


def _weight(instance: Instance) -> int:
    weights = instance.service.weights
    return weights.warning if instance.status is Status.WARNING else weights.passing


def _endpoint(address: str, port: int, weight: int) -> component.LbEndpoint:
    return component.LbEndpoint(
        endpoint=component.Endpoint(address=socket_address(address, port)),
        health_status=HealthStatus.HEALTHY,
        load_balancing_weight=UInt32Value(value=weight),
    )


def _assignment(name: str, endpoints: list[component.LbEndpoint]) -> endpoint.ClusterLoadAssignment:
    groups = [component.LocalityLbEndpoints(lb_endpoints=endpoints)] if endpoints else []
    return endpoint.ClusterLoadAssignment(cluster_name=name, endpoints=groups)
