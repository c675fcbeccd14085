"""From a pod, as the API server describes it, to what its node's agent registers for it. Pure.

A pod is a service instance with a check that says what Kubernetes says of the pod's readiness, and a sidecar proxy in transparent mode. Their ids say which
pod it is: `web-<pod>` and `web-<pod>-sidecar-proxy`; for a service with a hyphen `web-api_<pod>`, so that no other service and pod make the same.
The cluster IPs of Services that select it are tagged addresses `virtual`, `virtual-2`, ...
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mesh_agent.agent.definition import CheckDefinition, ServiceDefinition
from mesh_agent.errors import InvalidRequest
from mesh_agent.kubernetes import annotations
from mesh_agent.kubernetes.annotations import Wishes
from mesh_agent.model import Proxy, ServiceAddress, Status

PUBLIC_PORT = 20000
"""Where a pod's sidecar accepts connections from the mesh."""
VIRTUAL = "virtual"
_SIDECAR = "-sidecar-proxy"
_ENDED = ("Succeeded", "Failed")

Object = Mapping[str, Any]  # an object of the Kubernetes API as decoded JSON


@dataclass(frozen=True, slots=True)
class Pod:
    """An injected pod. `definition` is what it is in the mesh: None while it has no address and after its end; a leaving pod is not registered any more."""

    uid: str
    namespace: str
    name: str
    account: str
    service: str
    created: str = ""
    leaving: bool = False
    definition: ServiceDefinition | None = None

    @property
    def instance_id(self) -> str:
        """Id of its registration: up to the first hyphen it is the service, or up to an underscore, which no name of Kubernetes has."""
        return f"{self.service}{'_' if '-' in self.service else '-'}{self.name}"

    @property
    def proxy_id(self) -> str:
        """Id of its sidecar proxy's registration."""
        return self.instance_id + _SIDECAR


def is_injected(pod: Object) -> bool:
    """Whether the injector has changed this pod."""
    labels = pod.get("metadata", {}).get("labels") or {}
    return bool(labels.get(annotations.INJECTED) == "true")


def read_pod(pod: Object, services: Iterable[Object], *, cluster: str, passthrough: tuple[str, ...] = ()) -> Pod:
    """An injected pod as value; InvalidRequest says why it cannot be a service of the mesh.

    `services` are the cluster's Services; `passthrough` addresses (`ip:port`) may be called outside the mesh: the API server's.
    """
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
    wishes = annotations.read(metadata.get("annotations") or {})
    account = spec.get("serviceAccountName") or ""
    found = Pod(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        account=account,
        service=annotations.service_of(account, wishes),
        created=metadata.get("creationTimestamp") or "",
        leaving="deletionTimestamp" in metadata,
    )
    if found.name.endswith(_SIDECAR):
        raise InvalidRequest(f"a pod's name must not end with {_SIDECAR!r}: ids of sidecars do; call it otherwise")
    if spec.get("hostNetwork"):
        raise InvalidRequest("a pod with hostNetwork shares its node's network and cannot be captured")
    address = status.get("podIP")
    if not address or status.get("phase") in _ENDED:
        return found
    definition = _definition(found, pod, address, wishes, services, cluster, passthrough)
    return replace(found, definition=definition)


def _definition(
    pod: Pod,
    described: Object,
    address: str,
    wishes: Wishes,
    services: Iterable[Object],
    cluster: str,
    passthrough: tuple[str, ...],
) -> ServiceDefinition:
    service_id = pod.instance_id
    port = _port(described, wishes)
    meta = {"k8s-namespace": pod.namespace, "k8s-cluster": cluster, "pod-name": pod.name, "pod-uid": pod.uid}
    config: dict[str, Any] = {"protocol": wishes.protocol} if wishes.protocol else {}
    if passthrough:
        config["passthrough"] = list(passthrough)
    proxy = Proxy(
        destination_service=pod.service,
        destination_id=service_id,
        local_port=port,
        mode="transparent",
        upstreams=wishes.upstreams,
        config=config,
    )
    alias = CheckDefinition(
        id=f"service:{pod.proxy_id}", name=f"Connect Sidecar Aliasing {service_id}", alias_service=service_id
    )
    sidecar = ServiceDefinition(
        name=pod.service + _SIDECAR,
        id=pod.proxy_id,
        tags=wishes.tags,
        address=address,
        port=PUBLIC_PORT,
        meta=meta,
        proxy=proxy,
        checks=(alias,),
    )
    return ServiceDefinition(
        name=pod.service,
        id=service_id,
        tags=wishes.tags,
        address=address,
        port=port,
        meta=meta,
        tagged_addresses=_virtual(_cluster_addresses(described, port, services)),
        checks=(_readiness(pod, service_id, described),),
        sidecar=sidecar,
    )


def _readiness(pod: Pod, service_id: str, described: Object) -> CheckDefinition:
    conditions = (described.get("status") or {}).get("conditions") or ()
    ready: Object = next((each for each in conditions if each.get("type") == "Ready"), {})
    passing = ready.get("status") == "True"
    why = ready.get("message") or ready.get("reason") or "it has not said so yet"
    return CheckDefinition(
        id=f"service:{service_id}",
        name="Kubernetes Readiness Check",
        pod=f"{pod.namespace}/{pod.name}",
        status=Status.PASSING if passing else Status.CRITICAL,
        notes="Kubernetes says that the pod is ready"
        if passing
        else f"Kubernetes says that the pod is not ready: {why}",
    )


# ports


def _container_ports(pod: Object) -> Iterator[tuple[str, int]]:
    """(name, number) of the TCP ports that the pod's application containers declare."""
    for container in pod["spec"].get("containers") or ():
        for port in container.get("ports") or ():
            if port.get("protocol", "TCP") == "TCP":
                yield port.get("name", ""), int(port["containerPort"])


def _port(pod: Object, wishes: Wishes) -> int:
    """The application's port: as annotated, else the first that a container declares; 0 if the pod only calls others."""
    declared = list(_container_ports(pod))
    if wishes.port.isdecimal():
        return int(wishes.port)
    if wishes.port:
        named = next((number for name, number in declared if name == wishes.port), None)
        if named is None:
            raise InvalidRequest(
                f"annotation {annotations.PREFIX}service-port: no container has a TCP port named {wishes.port!r}"
            )
        return named
    return declared[0][1] if declared else 0


# Services


def _cluster_addresses(pod: Object, port: int, services: Iterable[Object]) -> list[tuple[str, int]]:
    """Cluster IP and port of everything that leads to the application's port."""
    labels = pod["metadata"].get("labels") or {}
    names = {name for name, number in _container_ports(pod) if number == port and name}
    found: list[tuple[str, str, int]] = []
    for service in services:
        metadata, spec = service["metadata"], service.get("spec") or {}
        selector, address = spec.get("selector") or {}, spec.get("clusterIP") or "None"
        selects = bool(selector) and all(labels.get(key) == value for key, value in selector.items())
        if not port or address == "None" or not selects or metadata["namespace"] != pod["metadata"]["namespace"]:
            continue
        for each in spec.get("ports") or ():
            target = each.get("targetPort") or each["port"]
            if each.get("protocol", "TCP") == "TCP" and (target == port or target in names):
                found.append((metadata["name"], address, int(each["port"])))
    return [(address, number) for _, address, number in sorted(found)]


def _virtual(addresses: list[tuple[str, int]]) -> dict[str, ServiceAddress]:
    return {
        VIRTUAL if not at else f"{VIRTUAL}-{at + 1}": ServiceAddress(address=address, port=port)
        for at, (address, port) in enumerate(addresses)
    }


def api_server(services: Iterable[Object]) -> tuple[str, ...]:
    """Addresses (`ip:port`) of the Service through which pods reach the API server."""
    found = [
        (service["spec"].get("clusterIP") or "None", int(port["port"]))
        for service in services
        if (service["metadata"]["namespace"], service["metadata"]["name"]) == ("default", "kubernetes")
        for port in service["spec"].get("ports") or ()
    ]
    return tuple(f"{address}:{port}" for address, port in found if address != "None")
