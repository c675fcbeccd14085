"""The sidecar that a service asks for with `connect.sidecar_service`: what it gets without saying so. Pure."""

from collections.abc import Iterable

import msgspec

from mesh_agent.agent.definition import CheckDefinition, ServiceDefinition
from mesh_agent.model import Proxy

_LISTENING_EVERY_S = 10.0


def with_proxy(parent: ServiceDefinition, sidecar: ServiceDefinition) -> ServiceDefinition:
    """Standing for `parent`, on its port; tags and meta data are the parent's unless it has its own."""
    proxy = sidecar.proxy or Proxy(destination_service=parent.name)
    return msgspec.structs.replace(
        sidecar,
        kind="connect-proxy",
        tags=sidecar.tags or parent.tags,
        meta=sidecar.meta or parent.meta,
        proxy=msgspec.structs.replace(
            proxy,
            destination_service=parent.name,
            destination_id=parent.service_id,
            local_port=proxy.local_port or parent.port,
        ),
    )


def with_default_checks(sidecar: ServiceDefinition, parent_id: str) -> ServiceDefinition:
    """Whether it listens, and that it is no healthier than its service."""
    if sidecar.checks:
        return sidecar
    host = sidecar.address or "127.0.0.1"
    endpoint = f"[{host}]:{sidecar.port}" if ":" in host else f"{host}:{sidecar.port}"
    listening = CheckDefinition(name="Connect Sidecar Listening", tcp=endpoint, interval_s=_LISTENING_EVERY_S)
    alias = CheckDefinition(name=f"Connect Sidecar Aliasing {parent_id}", alias_service=parent_id)
    return msgspec.structs.replace(sidecar, checks=(listening, alias))


def ports_in_use(services: Iterable[ServiceDefinition]) -> set[int]:
    """Ports that services of this node say they have."""
    return {each.port for each in services if each.port}
