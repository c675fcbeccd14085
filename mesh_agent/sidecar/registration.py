"""Which proxy registration a sidecar is for, found in what the agent answers to `GET /v1/agent/services`. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mesh_agent.errors import InvalidRequest, NotFound


@dataclass(frozen=True, slots=True)
class Registration:
    """A sidecar proxy: the id of its registration, and the service that it stands for."""

    proxy_id: str
    service: str


def resolve(services: Mapping[str, Any], service: str, sidecar_id: str = "") -> Registration:
    """The sidecar of `service` (a service id or name), or the one with that id; NotFound and InvalidRequest say what to do."""
    proxies = {each["ID"]: each.get("Proxy") or {} for each in services.values() if each.get("Kind") == "connect-proxy"}
    if sidecar_id:
        if sidecar_id not in proxies:
            raise NotFound(f"no sidecar proxy {sidecar_id!r} is registered on this node{_known(proxies)}")
        return Registration(sidecar_id, proxies[sidecar_id].get("DestinationServiceName", service))
    found = [at for at, proxy in proxies.items() if proxy.get("DestinationServiceID") == service]
    found = found or [at for at, proxy in proxies.items() if proxy.get("DestinationServiceName") == service]
    if not found:
        raise NotFound(
            f"no sidecar of service {service!r} is registered on this node{_known(proxies)}; "
            "register the service with connect.sidecar_service"
        )
    if len(found) > 1:
        raise InvalidRequest(
            f"service {service!r} has several sidecars: {', '.join(sorted(found))}; name one with --sidecar-id"
        )
    return Registration(found[0], proxies[found[0]].get("DestinationServiceName", service))


def _known(proxies: Mapping[str, Any]) -> str:
    return f" (there are: {', '.join(sorted(proxies))})" if proxies else ""
