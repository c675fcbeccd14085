"""What the configuration of one proxy is made from. Pure values; nothing of Envoy is imported here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mesh_agent.model import Instance, Intention, Service


class Destination(NamedTuple):
    """A service in a datacenter that a proxy calls."""

    datacenter: str
    service: str


@dataclass(frozen=True, slots=True)
class Mesh:
    """What is the same for every proxy of a node."""

    trust_domain: str
    datacenter: str
    default_allow: bool = False


@dataclass(frozen=True, slots=True)
class Inputs:
    """One proxy's registration with all that bears on it.

    `endpoints` are all mesh endpoints of each upstream, healthy or not; one that is missing there is not known yet and counts as empty.
    `intentions` may hold those of other destinations. `reach` are the services that a transparent proxy may call without naming them as upstreams;
    `instances` are the services' own registrations, at whose addresses the application dials them.
    """

    mesh: Mesh
    proxy: Service
    certificate_pem: str
    key_pem: str
    roots: tuple[str, ...]
    intentions: tuple[Intention, ...]
    endpoints: Mapping[Destination, tuple[Instance, ...]]
    reach: tuple[Destination, ...] = ()
    instances: Mapping[Destination, tuple[Instance, ...]] = field(default_factory=dict)
    protocols: Mapping[str, str] = field(default_factory=dict)
    """What services of `reach` speak where their sidecars do not say it themselves."""


def destinations(proxy: Service, datacenter: str) -> tuple[Destination, ...]:
    """What a proxy calls, each once, in the order of its registration; an upstream without a datacenter is in `datacenter`."""
    upstreams = proxy.proxy.upstreams if proxy.proxy is not None else ()
    return tuple(dict.fromkeys(Destination(each.datacenter or datacenter, each.destination_name) for each in upstreams))
