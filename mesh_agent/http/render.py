"""Domain values as Consul's API writes them. Pure. Source: https://developer.hashicorp.com/consul/api-docs."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from mesh_agent.ca.issue import serial_of, validity
from mesh_agent.catalog import keys
from mesh_agent.catalog.view import View
from mesh_agent.model import Check, Instance, Intention, Node, Proxy, Root, Service, ServiceAddress

Json = dict[str, Any]
_MEMBER_STATUS = {"alive": 1, "leaving": 2, "left": 3, "failed": 4}


def timestamp(wall: float) -> str:
    """RFC 3339, UTC."""
    return datetime.fromtimestamp(wall, UTC).isoformat().replace("+00:00", "Z")


def node(found: Node, datacenter: str, view: View) -> Json:
    """A node."""
    record = view.record(keys.node(found.name))
    return {
        "ID": found.id,
        "Node": found.name,
        "Address": found.address,
        "Datacenter": datacenter,
        "TaggedAddresses": found.tagged_addresses or {"lan": found.address, "wan": found.address},
        "Meta": found.meta,
        **_indices(record),
    }


def _indices(record: Any) -> Json:  # model.Record or None
    return {
        "CreateIndex": record.created if record else 0,
        "ModifyIndex": record.revision if record else 0,
    }


def _tagged(addresses: dict[str, ServiceAddress]) -> Json:
    return {name: {"Address": each.address, "Port": each.port} for name, each in addresses.items()}


def proxy(found: Proxy | None) -> Json:
    """The proxy part of a service."""
    if found is None:
        return {"Mode": "", "MeshGateway": {}, "Expose": {}}
    return {
        "DestinationServiceName": found.destination_service,
        "DestinationServiceID": found.destination_id,
        "LocalServiceAddress": found.local_address,
        "LocalServicePort": found.local_port,
        "Mode": found.mode,
        "Config": found.config,
        "Upstreams": [
            {
                "DestinationType": "service",
                "DestinationName": each.destination_name,
                "Datacenter": each.datacenter,
                "LocalBindAddress": each.local_bind_address,
                "LocalBindPort": each.local_bind_port,
                "Config": each.config,
                "MeshGateway": {},
            }
            for each in found.upstreams
        ],
        "MeshGateway": {},
        "Expose": {},
    }


def agent_service(found: Service) -> Json:
    """A service as its agent shows it."""
    shown: Json = {
        "ID": found.id,
        "Service": found.name,
        "Tags": list(found.tags),
        "Meta": found.meta,
        "Port": found.port,
        "Address": found.address,
        "TaggedAddresses": _tagged(found.tagged_addresses),
        "Weights": {"Passing": found.weights.passing, "Warning": found.weights.warning},
        "EnableTagOverride": found.enable_tag_override,
    }
    if found.kind:
        shown["Kind"] = found.kind
    if found.proxy is not None:
        shown["Proxy"] = proxy(found.proxy)
    shown["Connect"] = {"Native": True} if found.connect_native else {}
    return shown


def health_service(found: Service, view: View) -> Json:
    """A service within a health answer."""
    shown = agent_service(found)
    shown["Proxy"] = proxy(found.proxy)
    return shown | _indices(view.record(keys.service(found.node, found.id)))


def catalog_service(found: Instance, datacenter: str, view: View) -> Json:
    """An instance as `/v1/catalog/service` shows it."""
    service = found.service
    return {
        "ID": found.node.id,
        "Node": found.node.name,
        "Address": found.node.address,
        "Datacenter": datacenter,
        "TaggedAddresses": found.node.tagged_addresses or {"lan": found.node.address, "wan": found.node.address},
        "NodeMeta": found.node.meta,
        "ServiceKind": service.kind,
        "ServiceID": service.id,
        "ServiceName": service.name,
        "ServiceTags": list(service.tags),
        "ServiceAddress": service.address,
        "ServiceTaggedAddresses": _tagged(service.tagged_addresses),
        "ServiceWeights": {"Passing": service.weights.passing, "Warning": service.weights.warning},
        "ServiceMeta": service.meta,
        "ServicePort": service.port,
        "ServiceEnableTagOverride": service.enable_tag_override,
        "ServiceProxy": proxy(service.proxy),
        "ServiceConnect": {"Native": True} if service.connect_native else {},
        **_indices(view.record(keys.service(service.node, service.id))),
    }


def agent_check(found: Check) -> Json:
    """A check as its agent shows it."""
    return {
        "Node": found.node,
        "CheckID": found.id,
        "Name": found.name,
        "Status": found.status.value,
        "Notes": found.notes,
        "Output": found.output,
        "ServiceID": found.service_id,
        "ServiceName": found.service_name,
        "ServiceTags": list(found.service_tags),
        "Type": found.kind,
        "Definition": {},
    }


def check(found: Check, view: View) -> Json:
    """A check as the catalog shows it."""
    return agent_check(found) | _indices(view.record(keys.check(found.node, found.id)))


def health(found: Instance, datacenter: str, view: View) -> Json:
    """An instance as `/v1/health/service` shows it."""
    return {
        "Node": node(found.node, datacenter, view),
        "Service": health_service(found.service, view),
        "Checks": [check(each, view) for each in found.checks],
    }


def member(found: Any) -> Json:  # a gossip member
    """A member of a pool."""
    low, high, current, delegate_low, delegate_high, delegate_current = found.versions
    return {
        "Name": found.name,
        "Addr": found.address,
        "Port": found.port,
        "Tags": found.tags,
        "Status": _MEMBER_STATUS[found.status],
        "ProtocolMin": low,
        "ProtocolMax": high,
        "ProtocolCur": current,
        "DelegateMin": delegate_low,
        "DelegateMax": delegate_high,
        "DelegateCur": delegate_current,
    }


def intention_id(source: str, destination: str) -> str:
    """The id of an intention: the same for the same pair, everywhere."""
    return str(uuid5(NAMESPACE_URL, f"mesh:intention:{destination}/{source}"))


def intention(found: Intention, view: View) -> Json:
    """An intention."""
    return {
        "ID": intention_id(found.source, found.destination),
        "Description": found.description,
        "SourceNS": "default",
        "SourceName": found.source,
        "DestinationNS": "default",
        "DestinationName": found.destination,
        "SourceType": "consul",
        "Action": found.action.value,
        "Meta": found.meta,
        "Precedence": found.precedence,
        "CreatedAt": timestamp(found.created_at),
        "UpdatedAt": timestamp(found.updated_at),
        **_indices(view.record(keys.intention(found.source, found.destination))),
    }


def colons(hexadecimal: str) -> str:
    """aa:bb:cc."""
    return ":".join(hexadecimal[at : at + 2] for at in range(0, len(hexadecimal), 2))


def roots(found: Iterable[Root], own: str, trust_domain: str, view: View) -> Json:
    """The trust bundle: the roots of every datacenter; the own datacenter's active root first."""
    shown = sorted(found, key=lambda root: (root.datacenter != own, not root.active, root.fingerprint))
    active = next((root.fingerprint for root in shown if root.datacenter == own and root.active), "")
    return {
        "ActiveRootID": colons(active),
        "TrustDomain": trust_domain,
        "Roots": [_root(each, view) for each in shown],
    }


def _root(found: Root, view: View) -> Json:
    span = validity(found.certificate_pem)
    return {
        "ID": colons(found.fingerprint),
        "Name": f"Mesh CA of {found.datacenter}",
        "SerialNumber": int(serial_of(found.certificate_pem).replace(":", ""), 16) % 2**63,
        "SigningKeyID": "",
        "ExternalTrustDomain": "",
        "NotBefore": timestamp(span.not_before),
        "NotAfter": timestamp(span.not_after),
        "RootCert": found.certificate_pem,
        "IntermediateCerts": None,
        "Active": found.active,
        "PrivateKeyType": "ec",
        "PrivateKeyBits": 256,
        **_indices(view.record(keys.root(found.datacenter, found.fingerprint))),
    }


def leaf(found: Any) -> Json:  # ca.runner.Leaf
    """A leaf certificate with its key."""
    return {
        "SerialNumber": found.serial,
        "CertPEM": found.certificate_pem,
        "PrivateKeyPEM": found.key_pem,
        "Service": found.service,
        "ServiceURI": found.spiffe_id,
        "ValidAfter": timestamp(found.not_before),
        "ValidBefore": timestamp(found.not_after),
        "CreateIndex": found.index,
        "ModifyIndex": found.index,
    }
