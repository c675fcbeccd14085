"""Services of the cluster as services of the mesh. Pure.

What is registered follows consul-k8s: the external addresses of a Service if it has any; of type ClusterIP its ready endpoints, of type NodePort the
nodes on which they are, of type LoadBalancer what the load balancer answers on. All of it is on one node of the catalog that no machine is,
`k8s-<cluster>`: no agent syncs it and no gossip reaps it. What controllers wrote is known by its meta, and nothing else is ever touched.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mesh_agent.controllers.objects import (
    CONSUL_PREFIX,
    PREFIX,
    Json,
    annotations_of,
    is_leaving,
    labels_of,
    name_of,
    namespace_of,
    said,
    switch,
)
from mesh_agent.controllers.settings import ToMesh
from mesh_agent.kubernetes.annotations import port_of
from mesh_agent.kubernetes.permissions import CLUSTER_NODE

SOURCE, CLUSTER = "external-source", "k8s-cluster"
KUBERNETES = "kubernetes"
TAG = "k8s"
"""Tag of everything that came from a cluster, as in Consul."""
_META = "service-meta-"
_SLICE_OF = "kubernetes.io/service-name"


@dataclass(frozen=True, slots=True)
class Registration:
    """One instance as it is to be in the catalog."""

    id: str
    name: str
    address: str
    port: int
    tags: tuple[str, ...]
    meta: Mapping[str, str]
    weight: int = 1

    def body(self) -> Json:
        """As `/v1/catalog/register` wants it."""
        return {
            "ID": self.id,
            "Service": self.name,
            "Address": self.address,
            "Port": self.port,
            "Tags": list(self.tags),
            "Meta": dict(self.meta),
            "Weights": {"Passing": self.weight, "Warning": 1},
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What has to change on the cluster's node; `foreign` are ids that we want and somebody else has."""

    register: tuple[Registration, ...]
    deregister: tuple[str, ...]
    foreign: tuple[str, ...]


def node_of(cluster: str) -> Json:
    """The node of the catalog that stands for a cluster."""
    return {
        "Node": f"{CLUSTER_NODE}{cluster}",
        "Address": "127.0.0.1",
        "NodeMeta": {"external-node": "true", SOURCE: KUBERNETES, CLUSTER: cluster},
    }


def is_owned(meta: Mapping[str, str] | None, cluster: str) -> bool:
    """Whether this cluster's controllers wrote a thing with that meta."""
    return meta is not None and meta.get(SOURCE) == KUBERNETES and meta.get(CLUSTER) == cluster


def plan(wanted: Iterable[Registration], held: Mapping[str, Json], cluster: str) -> Plan:
    """From what the node has (service by id, as `/v1/catalog/node` shows it) to what is wanted."""
    by_id = {each.id: each for each in wanted}
    foreign = sorted(id_ for id_ in by_id if id_ in held and not is_owned(held[id_].get("Meta"), cluster))
    return Plan(
        register=tuple(
            by_id[id_] for id_ in sorted(by_id) if id_ not in foreign and not _agrees(held.get(id_), by_id[id_])
        ),
        deregister=tuple(id_ for id_ in sorted(held) if id_ not in by_id and is_owned(held[id_].get("Meta"), cluster)),
        foreign=tuple(foreign),
    )


def _agrees(held: Json | None, wanted: Registration) -> bool:
    if held is None:
        return False
    body = wanted.body()
    return all((held.get(key) or type(value)()) == value for key, value in body.items())


def registrations(
    services: Iterable[Json], slices: Iterable[Json], nodes: Iterable[Json], cluster: str, settings: ToMesh
) -> list[Registration]:
    """Every instance that the mesh should know, each id once."""
    by_service: dict[tuple[str, str], list[Json]] = {}
    for each in slices:
        by_service.setdefault((namespace_of(each), labels_of(each).get(_SLICE_OF, "")), []).append(each)
    addresses = {name_of(each): _node_address(each, settings.node_port_addresses) for each in nodes}
    found: dict[str, Registration] = {}
    for service in services:
        if _is_wanted(service, settings):
            own = by_service.get((namespace_of(service), name_of(service)), [])
            for address, port in _addresses(service, own, addresses, settings):
                made = _registration(service, address, port, cluster, settings)
                found[made.id] = made
    return [found[id_] for id_ in sorted(found)]


def _is_wanted(service: Json, settings: ToMesh) -> bool:
    kind = service["spec"].get("type", "ClusterIP")
    return (
        kind != "ExternalName"
        and not is_leaving(service)
        and settings.takes(namespace_of(service))
        and switch(said(annotations_of(service), "service-sync"), settings.by_default)
    )


def _registration(service: Json, address: str, port: int, cluster: str, settings: ToMesh) -> Registration:
    annotations = annotations_of(service)
    namespace, own = namespace_of(service), name_of(service)
    suffix = f"-{namespace}" if settings.namespace_suffix else ""
    name = said(annotations, "service-name") or f"{settings.prefix}{own}{suffix}"
    tags = (each.strip() for each in said(annotations, "service-tags").split(","))
    weight = said(annotations, "service-weight")
    unique = hashlib.sha256(f"{namespace}/{own}/{address}/{port}".encode()).hexdigest()[:12]
    return Registration(
        id=f"{name}-{unique}",
        name=name,
        address=address,
        port=port,
        tags=tuple(dict.fromkeys([TAG, *(each for each in tags if each)])),
        meta={
            **_annotated_meta(annotations),
            SOURCE: KUBERNETES,
            CLUSTER: cluster,
            "external-k8s-ns": namespace,
            "external-k8s-ref-name": own,
        },
        weight=port_of(weight) or 1,  # weights are of the same range as ports
    )


def _annotated_meta(annotations: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for prefix in (CONSUL_PREFIX + _META, PREFIX + _META):
        found |= {key.removeprefix(prefix): value for key, value in annotations.items() if key.startswith(prefix)}
    return found


# addresses


def _addresses(
    service: Json, slices: list[Json], nodes: Mapping[str, str], settings: ToMesh
) -> Iterator[tuple[str, int]]:
    spec = service["spec"]
    port = _port(service)
    kind = spec.get("type", "ClusterIP")
    if spec.get("externalIPs"):
        yield from ((each, int(port.get("port") or 0)) for each in spec["externalIPs"])
    elif kind == "NodePort":
        on = {each.get("nodeName") or "" for each, _ in _ready(service, slices, port)}
        yield from ((nodes[name], int(port.get("nodePort") or 0)) for name in sorted(on) if nodes.get(name))
    elif kind == "LoadBalancer":
        ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
        for each in ingress:
            address = each.get("ip") or each.get("hostname")
            if address:
                yield address, int(port.get("port") or 0)
    elif settings.cluster_ip:
        for endpoint, target in _ready(service, slices, port):
            yield from ((each, target) for each in endpoint.get("addresses") or [])


def _port(service: Json) -> Json:
    """The port of a Service that the mesh is told: the one that the annotation names, else the first."""
    ports: list[Json] = service["spec"].get("ports") or []
    wanted = said(annotations_of(service), "service-port")
    for each in ports:
        if wanted and wanted in (each.get("name"), str(each.get("port"))):
            return each
    if port_of(wanted):  # a port that the Service does not list, taken at its word
        return {"port": port_of(wanted), "nodePort": port_of(wanted), "literal": True}
    return ports[0] if ports else {}


def _ready(service: Json, slices: Iterable[Json], port: Json) -> Iterator[tuple[Json, int]]:
    """Ready endpoints of the Service's first address family, with the port at which they serve `port`."""
    families = service["spec"].get("ipFamilies") or []
    for each in slices:
        if is_leaving(each) or (families and each.get("addressType") not in (families[0], "FQDN")):
            continue
        target = _target(each, port)
        for endpoint in each.get("endpoints") or []:
            conditions = endpoint.get("conditions") or {}
            if target is not None and conditions.get("ready") is not False:
                yield endpoint, target


def _target(found: Json, port: Json) -> int | None:
    if port.get("literal") or not port:
        return int(port.get("port") or 0)
    ports: list[Json] = found.get("ports") or []
    return next((each.get("port") for each in ports if (each.get("name") or "") == (port.get("name") or "")), None)


def _node_address(node: Json, preference: str) -> str:
    found: dict[str, Any] = {}
    for each in (node.get("status") or {}).get("addresses") or []:
        found.setdefault(each.get("type", ""), each.get("address") or "")
    external, internal = str(found.get("ExternalIP", "")), str(found.get("InternalIP", ""))
    return {"ExternalOnly": external, "InternalOnly": internal}.get(preference, external or internal)
