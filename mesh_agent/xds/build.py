"""From the inputs of one proxy to its snapshot. Pure: equal inputs give byte-equal snapshots.

`Builder` keeps what it made last, part by part, so that one changed endpoint costs one resource and not the whole snapshot.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from envoy.service.discovery.v3 import discovery_pb2 as discovery

from mesh_agent.model import Instance, Proxy, Service
from mesh_agent.xds import clusters, listeners, naming, policy, tls, transparent
from mesh_agent.xds.admission import Admission
from mesh_agent.xds.inputs import Destination, Inputs, Mesh, destinations
from mesh_agent.xds.snapshot import EMPTY, Resource, Snapshot, Table, merged, version_of

_SHARED_OUTBOUND = 16


def sealed(name: str, message: Any) -> Resource:  # any resource message; Envoy's generated code is untyped
    """Serialize a resource once, with the hash of its content as version."""
    body = tls.packed(message)
    version = version_of(body.value)
    resource = discovery.Resource(name=name, version=version, resource=body)
    return Resource(
        name, version, discovery.DeltaDiscoveryResponse(resources=[resource]).SerializeToString(deterministic=True)
    )


class EndpointCache:
    """Sealed endpoints, shared by all proxies of a node; valid as long as the very same tuple of instances is given."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[tuple[Instance, ...], Resource]] = {}
        self._addresses: dict[str, tuple[tuple[Instance, ...], frozenset[transparent.Endpoint]]] = {}
        self._outbound: dict[Dialled, list[Resource]] = {}

    def outbound(self, dialled: "Dialled | None") -> list[Resource]:
        """The listener `outbound`; proxies that may call the same services share it."""
        if dialled is None:
            return []
        made = self._outbound.pop(dialled, None) or _outbound(dialled)
        self._outbound[dialled] = made  # the youngest last
        if len(self._outbound) > _SHARED_OUTBOUND:
            del self._outbound[next(iter(self._outbound))]
        return made

    def addresses(self, name: str, instances: tuple[Instance, ...]) -> frozenset[transparent.Endpoint]:
        """Where applications dial the service of cluster `name`; its `instances` are the service's own registrations."""
        made = self._addresses.get(name)
        if made is None or made[0] is not instances:
            made = self._addresses[name] = (instances, transparent.addresses(instances))
        return made[1]

    def get(self, name: str, instances: tuple[Instance, ...]) -> Resource:
        """The endpoints of cluster `name`."""
        made = self._made.get(name)
        if made is None or made[0] is not instances:
            made = self._made[name] = (instances, sealed(name, clusters.assignment(name, instances)))
        return made[1]

    def keep(self, names: Iterable[str]) -> None:
        """Forget all others."""
        wanted = set(names)
        self._made = {name: made for name, made in self._made.items() if name in wanted}
        self._addresses = {name: made for name, made in self._addresses.items() if name in wanted}


class Dialled(NamedTuple):
    """What the listener `outbound` is made from, comparable: (cluster, protocol) pairs, and what leads to them."""

    port: int
    protocols: tuple[tuple[str, str], ...]
    ports: tuple[tuple[int, tuple[tuple[str, str], ...]], ...]
    passthrough: bool


class Builder:
    """Builds the snapshots of one proxy, one after the other."""

    def __init__(self, endpoints: EndpointCache | None = None) -> None:
        self._endpoints = endpoints or EndpointCache()
        self._parts: dict[str, tuple[object, list[Resource]]] = {}
        self._tables: dict[str, Table] = {}

    def build(self, inputs: Inputs) -> Snapshot:
        """The snapshot that follows from `inputs`; tables that did not change are the same objects as before."""
        service, mesh = inputs.proxy, inputs.mesh
        proxy = service.proxy
        if proxy is None:
            raise ValueError(f"{service.id} is not a proxy")
        wanted = tuple(dict.fromkeys((*destinations(service, mesh.datacenter), *inputs.reach)))
        dialled = self._dialled(inputs)
        secrets = (inputs.certificate_pem, inputs.key_pem, inputs.roots)
        admission = Admission.of(
            inputs.intentions, proxy.destination_service, mesh.trust_domain, default_allow=mesh.default_allow
        )
        filters = self._part("filters", (proxy, mesh, admission), lambda: _filters(inputs, proxy))
        made = {
            naming.SECRET: self._part("secrets", secrets, lambda: _secrets(inputs)),
            naming.CLUSTER: self._part(
                "clusters",
                (service, mesh, wanted, dialled and dialled.protocols),
                lambda: _clusters(proxy, wanted, mesh, dialled),
            ),
            naming.ENDPOINTS: self._assignments(inputs, wanted),
            naming.EXTENSION: filters,
            naming.LISTENER: [
                *self._part("listeners", (service, mesh), lambda: _listeners(service, proxy, mesh)),
                *self._part("outbound", dialled, lambda: self._endpoints.outbound(dialled)),
                *self._part("inbound", (proxy, mesh, admission), lambda: _inbound(proxy, admission)),
            ],
        }
        for kind, resources in made.items():
            self._tables[kind] = merged(self._tables.get(kind, EMPTY), resources)
        snapshot = Snapshot(dict(self._tables), _references(wanted, mesh, proxy, dialled))
        snapshot.check()
        return snapshot

    def _part(self, name: str, key: object, make: Callable[[], list[Resource]]) -> list[Resource]:
        held = self._parts.get(name)
        if held is None or held[0] != key:
            held = self._parts[name] = (key, make())
        return held[1]

    def _dialled(self, inputs: Inputs) -> "Dialled | None":
        """What a transparent proxy's application may dial; None for any other proxy."""
        proxy = inputs.proxy.proxy
        if proxy is None or not transparent.is_transparent(inputs.proxy):
            return None
        chains: dict[str, frozenset[transparent.Endpoint]] = {}
        protocols: list[tuple[str, str]] = []
        named = _configs(proxy, inputs.mesh)
        for each in inputs.reach:
            name = _cluster_name(each, inputs.mesh)
            chains[name] = self._endpoints.addresses(name, inputs.instances.get(each, ()))
            default = inputs.protocols.get(each.service, "")
            common = transparent.common_protocol(inputs.endpoints.get(each, ()), default)
            protocols.append((name, clusters.protocol_of({"protocol": common} | named.get(each, {}))))
        past = transparent.passthrough(proxy)
        if past:
            chains[transparent.PASSTHROUGH] = past
        ports = {port: tuple(found.items()) for port, found in transparent.table(chains).items()}
        return Dialled(_outbound_port(proxy), tuple(protocols), tuple(ports.items()), bool(past))

    def _assignments(self, inputs: Inputs, wanted: Iterable[Destination]) -> list[Resource]:
        return [
            self._endpoints.get(_cluster_name(each, inputs.mesh), inputs.endpoints.get(each, ())) for each in wanted
        ]


def _cluster_name(destination: Destination, mesh: Mesh) -> str:
    return naming.server_name(destination.service, destination.datacenter, mesh.trust_domain)


def _is_http(proxy: Proxy) -> bool:
    return clusters.protocol_of(proxy.config) != "tcp"


def _secrets(inputs: Inputs) -> list[Resource]:
    return [
        sealed(naming.LEAF, tls.leaf_secret(inputs.certificate_pem, inputs.key_pem)),
        sealed(naming.ROOTS, tls.roots_secret(inputs.roots)),
    ]


def _configs(proxy: Proxy, mesh: Mesh) -> dict[Destination, dict[str, Any]]:
    """Config of each explicit upstream; of several to the same service the first one's."""
    found: dict[Destination, dict[str, Any]] = {}
    for each in proxy.upstreams:
        found.setdefault(Destination(each.datacenter or mesh.datacenter, each.destination_name), each.config)
    return found


def _clusters(proxy: Proxy, wanted: Iterable[Destination], mesh: Mesh, dialled: Dialled | None) -> list[Resource]:
    configs = _configs(proxy, mesh)
    protocols = dict(dialled.protocols) if dialled is not None else {}
    for reached in wanted:
        protocol = protocols.get(_cluster_name(reached, mesh), "tcp")
        configs[reached] = {"protocol": protocol} | configs.get(reached, {})
    made = [clusters.upstream(each, configs[each], mesh.trust_domain) for each in wanted]
    if dialled is not None and dialled.passthrough:
        made.append(transparent.passthrough_cluster())
    if proxy.local_port:
        made.append(clusters.local_app(proxy))
        if not _is_http(proxy):
            made.append(listeners.inbound_cluster())
    return [sealed(each.name, each) for each in made]


def _listeners(service: Service, proxy: Proxy, mesh: Mesh) -> list[Resource]:
    made = []
    if proxy.local_port:
        address = str(proxy.config.get("bind_address") or service.address or "0.0.0.0")  # noqa: S104  # as Consul does
        port = int(proxy.config.get("bind_port") or service.port)
        if _is_http(proxy):
            made.append(listeners.public_http(address, port, mesh.trust_domain, proxy.config))
        else:
            made.append(listeners.public_tcp(address, port, mesh.trust_domain))
    for each in proxy.upstreams:
        destination = Destination(each.datacenter or mesh.datacenter, each.destination_name)
        made.append(listeners.upstream(each, _cluster_name(destination, mesh)))
    return [sealed(each.name, each) for each in made]


def _outbound_port(proxy: Proxy) -> int:
    return int(proxy.config.get("outbound_port") or transparent.OUTBOUND_PORT)


def _outbound(dialled: Dialled) -> list[Resource]:
    ports = {port: dict(by_address) for port, by_address in dialled.ports}
    made = listeners.outbound(dialled.port, dict(dialled.protocols), ports, passthrough=dialled.passthrough)
    return [sealed(naming.OUTBOUND, made)]


def _inbound(proxy: Proxy, admission: Admission) -> list[Resource]:
    if not proxy.local_port or _is_http(proxy):
        return []
    return [sealed(naming.INBOUND, listeners.inbound(admission))]


def _filters(inputs: Inputs, proxy: Proxy) -> list[Resource]:
    if not proxy.local_port or not _is_http(proxy):
        return []
    decide = policy.matcher(
        inputs.intentions,
        proxy.destination_service,
        inputs.mesh.trust_domain,
        default_allow=inputs.mesh.default_allow,
    )
    return [sealed(naming.INTENTIONS, policy.http_filter(decide))]


def _references(
    wanted: Iterable[Destination], mesh: Mesh, proxy: Proxy, dialled: Dialled | None
) -> frozenset[tuple[str, str]]:
    found = {(naming.SECRET, naming.LEAF), (naming.SECRET, naming.ROOTS)}
    for each in wanted:
        found |= {(kind, _cluster_name(each, mesh)) for kind in (naming.CLUSTER, naming.ENDPOINTS)}
    if dialled is not None and dialled.passthrough:
        found.add((naming.CLUSTER, transparent.PASSTHROUGH))
    if proxy.local_port:
        found.add((naming.CLUSTER, naming.LOCAL_APP))
        found.add((naming.EXTENSION, naming.INTENTIONS) if _is_http(proxy) else (naming.LISTENER, naming.INBOUND))
    return frozenset(found)
