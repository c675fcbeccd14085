"""What a pod says of itself by annotations, for the injector that changes it and the agent that registers it. Pure.

Ours begin with `mesh.openmesh.io/`; Consul's names of the same things are understood, so that manifests carry over. Where both are there, ours count.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mesh_agent.errors import InvalidRequest
from mesh_agent.model import Upstream

PREFIX = "mesh.openmesh.io/"
INJECTED = f"{PREFIX}injected"
"""Label of a pod that the injector has changed; its value is `true`."""

_CONSUL = "consul.hashicorp.com/"
_ALIASES = {
    "inject": "connect-inject",
    "service": "connect-service",
    "service-port": "connect-service-port",
    "service-protocol": "connect-service-protocol",
    "service-tags": "service-tags",
    "service-upstreams": "connect-service-upstreams",
    "exclude-outbound-cidrs": "transparent-proxy-exclude-outbound-cidrs",
    "exclude-outbound-ports": "transparent-proxy-exclude-outbound-ports",
    "exclude-inbound-ports": "transparent-proxy-exclude-inbound-ports",
}
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
_PORT_DIGITS, _LAST_PORT = 5, 65535
_PROTOCOLS = ("tcp", "http", "http2", "grpc")
_YES, _NO = ("true", "yes", "on", "1", "enabled"), ("false", "no", "off", "0", "disabled")


@dataclass(frozen=True, slots=True)
class Wishes:
    """The annotations of one pod, read. What is empty was not said; `inject` None too."""

    inject: bool | None = None
    service: str = ""
    port: str = ""
    """A number, or the name of a container's port."""
    protocol: str = ""
    tags: tuple[str, ...] = ()
    upstreams: tuple[Upstream, ...] = ()
    exclude_outbound_cidrs: tuple[str, ...] = ()
    exclude_outbound_ports: tuple[int, ...] = ()
    exclude_inbound_ports: tuple[int, ...] = ()


def read(annotations: Mapping[str, str]) -> Wishes:
    """The wishes of a pod; InvalidRequest names the annotation that cannot be understood, and what would be right."""
    said = {name: _said(annotations, name) for name in _ALIASES}
    return Wishes(
        inject=_switch(*said["inject"]),
        service=_name(*said["service"]),
        port=_port_or_name(*said["service-port"]),
        protocol=_protocol(*said["service-protocol"]),
        tags=_items(said["service-tags"][1]),
        upstreams=tuple(_upstream(said["service-upstreams"][0], each) for each in _items(said["service-upstreams"][1])),
        exclude_outbound_cidrs=tuple(
            _network(said["exclude-outbound-cidrs"][0], each) for each in _items(said["exclude-outbound-cidrs"][1])
        ),
        exclude_outbound_ports=_ports(*said["exclude-outbound-ports"]),
        exclude_inbound_ports=_ports(*said["exclude-inbound-ports"]),
    )


def service_of(account: str, wishes: Wishes) -> str:
    """The service that a pod is: the name of its service account (docs/adr/0003); InvalidRequest if it is none."""
    if account in ("", "default"):
        raise InvalidRequest(
            "a pod of the service account 'default' is nobody in the mesh; "
            "give it a service account with the name of its service (spec.serviceAccountName)"
        )
    if wishes.service and wishes.service != account:
        raise InvalidRequest(
            f"annotation {PREFIX}service says {wishes.service!r}, but the pod's service account is {account!r}; "
            "they must be the same, since the account proves which service a pod is"
        )
    return _name("spec.serviceAccountName", account)


def _said(annotations: Mapping[str, str], name: str) -> tuple[str, str]:
    """(full name, value) of an annotation; the value is empty if it is not there."""
    ours, theirs = PREFIX + name, _CONSUL + _ALIASES[name]
    key = theirs if ours not in annotations and theirs in annotations else ours
    return key, annotations.get(key, "").strip()


def _items(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _switch(key: str, value: str) -> bool | None:
    if not value:
        return None
    folded = value.lower()
    if folded not in _YES + _NO:
        raise InvalidRequest(f'annotation {key}: {value!r} is neither "true" nor "false"')
    return folded in _YES


def _name(key: str, value: str) -> str:
    if value and not _NAME.match(value):
        raise InvalidRequest(
            f"{key}: {value!r} is no name of a service; use at most 63 lower case letters, digits and '-'"
        )
    return value


def _port_or_name(key: str, value: str) -> str:
    if value.isdecimal():
        _port(key, value)
    elif "," in value:
        raise InvalidRequest(f"annotation {key}: {value!r} names several ports; a service has one")
    return value


def _port(key: str, value: str) -> int:
    number = port_of(value)
    if not number:
        raise InvalidRequest(f"annotation {key}: {value[:40]!r} is not a port (1 to 65535)")
    return number


def port_of(text: str) -> int:
    """The port that a text is, 0 if it is none. Never an error, however many digits a user writes (int() has a limit)."""
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= _PORT_DIGITS else 0
    return number if number <= _LAST_PORT else 0


def _ports(key: str, value: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(_port(key, each) for each in _items(value)))


def _protocol(key: str, value: str) -> str:
    if value and value.lower() not in _PROTOCOLS:
        raise InvalidRequest(f"annotation {key}: {value!r} is not known; use one of {', '.join(_PROTOCOLS)}")
    return value.lower()


def _network(key: str, value: str) -> str:
    try:
        return str(ipaddress.ip_network(value, strict=False))
    except ValueError as error:
        raise InvalidRequest(f"annotation {key}: {value!r} is not a network such as 10.0.0.0/8") from error


def _upstream(key: str, value: str) -> Upstream:
    name, _, rest = value.partition(":")
    port, _, datacenter = rest.partition(":")
    if not name or not rest or ":" in datacenter:
        raise InvalidRequest(f"annotation {key}: {value!r} is not name:port or name:port:datacenter")
    return Upstream(
        destination_name=_name(f"annotation {key}", name), local_bind_port=_port(key, port), datacenter=datacenter
    )
