"""Inputs of xDS snapshots for tests, and snapshots as text."""

import json
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.json_format import MessageToDict

from mesh_agent.model import Check, Instance, Intention, Node, Proxy, Service, Status, Upstream, Weights
from mesh_agent.xds.inputs import Destination, Inputs, Mesh
from mesh_agent.xds.naming import ORDER, short
from mesh_agent.xds.snapshot import Resource, Snapshot

MESH = Mesh("mesh.test", "dc1")


def proxy(
    service: str = "api",
    *,
    config: dict[str, Any] | None = None,
    upstreams: tuple[Upstream, ...] = (),
    local_port: int = 8080,
) -> Service:
    """A sidecar registration at 10.0.0.1:21000."""
    return Service(
        id=f"{service}-sidecar-proxy",
        name=f"{service}-sidecar-proxy",
        node="n1",
        address="10.0.0.1",
        port=21000,
        kind="connect-proxy",
        proxy=Proxy(
            destination_service=service,
            destination_id=service,
            local_port=local_port,
            config=config or {},
            upstreams=upstreams,
        ),
    )


def instance(
    service: str, number: int, status: Status = Status.PASSING, *, address: str = "", weights: Weights | None = None
) -> Instance:
    """A mesh endpoint on node `n<number>` (10.0.1.<number>), or at its own `address`."""
    node = Node(name=f"n{number}", address=f"10.0.1.{number}")
    sidecar = Service(
        id=f"{service}-sidecar-proxy",
        name=f"{service}-sidecar-proxy",
        node=node.name,
        address=address,
        port=21000,
        kind="connect-proxy",
        proxy=Proxy(destination_service=service),
        weights=weights or Weights(),
    )
    check = Check(id="alive", node=node.name, status=status, service_id=sidecar.id)
    return Instance(node, sidecar, (check,), 1, 1)


def inputs(
    sidecar: Service,
    *,
    intentions: tuple[Intention, ...] = (),
    endpoints: dict[Destination, tuple[Instance, ...]] | None = None,
    mesh: Mesh = MESH,
    certificate: str = "CERTIFICATE",
    roots: tuple[str, ...] = ("ROOT",),
) -> Inputs:
    """Inputs with placeholders where nothing is parsed."""
    return Inputs(mesh, sidecar, certificate, "KEY", roots, intentions, endpoints or {})


def opened(resource: Resource) -> dict[str, Any]:
    """A sealed resource as JSON."""
    message = discovery_pb2.DeltaDiscoveryResponse.FromString(resource.entry).resources[0]
    assert (message.name, message.version) == (resource.name, resource.version)
    found: dict[str, Any] = MessageToDict(message.resource, preserving_proto_field_name=True)
    return found


def as_text(snapshot: Snapshot) -> str:
    """A snapshot as JSON. The versions in it prove that equal content has equal versions in another process, too."""
    tables = {
        short(kind): [{"version": each.version, **opened(each)} for each in snapshot.table(kind).resources.values()]
        for kind in ORDER
    }
    return json.dumps(tables, indent=1, sort_keys=True) + "\n"
