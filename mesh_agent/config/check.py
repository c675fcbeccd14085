"""What settings must be beyond having the right type: the first mistake, as key and text. Pure."""

import ipaddress
import re
from collections.abc import Iterator, Sequence

from mesh_agent.config.settings import AgentConfig, Ports

Mistakes = Iterator[tuple[str, str]]
"""(key, what is wrong with it)"""

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_DATACENTER = re.compile(r"[a-z0-9_-]{1,63}")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,252})")
_KINDS_IN_DNS = ("service", "node", "connect", "addr", "query", "dc", "ns")
_LONGEST_S = 100 * 366 * 86400.0
_LEAST_BODY_BYTES = 1024
_MAX_NODE_NAME, _MAX_DOMAIN = 253, 128
_AT_CLIENT_ADDR = ("http", "https", "dns", "grpc")
_AT_BIND_ADDR = ("server", "serf_lan", "serf_wan")


def mistakes(config: AgentConfig) -> Mistakes:
    """Everything that is wrong."""
    yield from _names(config)
    yield from _addresses(config)
    yield from _ports(config.ports)
    yield from _sizes(config)


def _names(config: AgentConfig) -> Mistakes:
    name = config.node_name
    if not name.isprintable() or any(each.isspace() or each in '/\\"' for each in name):
        yield "node_name", f"is {name!r}; it must not hold spaces, slashes, quotes or what cannot be printed"
    if len(name) > _MAX_NODE_NAME:
        yield "node_name", f"has {len(name)} characters; at most {_MAX_NODE_NAME}"
    if not _DATACENTER.fullmatch(config.datacenter):
        yield "datacenter", f"is {config.datacenter!r}; use lower case letters, digits, - and _, at most 63"
    if config.datacenter in _KINDS_IN_DNS:
        yield "datacenter", f"is {config.datacenter!r}, which has a meaning in DNS names; choose another name"
    if not _TRUST_DOMAIN.fullmatch(config.trust_domain):
        yield "trust_domain", f"is {config.trust_domain!r}; use lower case letters, digits, dots, - and _"
    if not _is_domain(config.domain):
        yield "domain", f"is {config.domain!r}; it must be a domain name such as mesh or mesh.example.com"
    if config.alt_domain and not _is_domain(config.alt_domain):
        yield "alt_domain", f"is {config.alt_domain!r}; it must be a domain name, or empty"
    for key in ("data_dir", "runtime_dir"):
        if not getattr(config, key):
            yield key, "must not be empty"


def _is_domain(text: str) -> bool:
    name = text.rstrip(".").lower()
    return len(name) <= _MAX_DOMAIN and all(_LABEL.fullmatch(label) for label in name.split("."))


def _addresses(config: AgentConfig) -> Mistakes:
    for key in ("bind_addr", "advertise_addr", "advertise_addr_wan"):
        value = getattr(config, key)
        is_given = bool(value) or key == "bind_addr"
        if is_given and not _is_ip(value):
            yield key, f"is {value!r}; it must be an IP address"
    for value in config.dns_addrs:
        if not _is_ip(value):
            yield "dns_addrs", f"holds {value!r}; it must be an IP address"
    if not _HOST.fullmatch(config.client_addr) and not _is_ip(config.client_addr):
        yield "client_addr", f"is {config.client_addr!r}; it must be an IP address or a host name"
    if _is_everywhere(config.advertised) or _is_everywhere(config.advertised_wan):
        yield "advertise_addr", "is missing: nobody can reach this agent at 0.0.0.0 or ::; set the address that it has"
    for key in ("retry_join", "retry_join_wan"):
        yield from ((key, f"holds {each!r}; write host or host:port") for each in _unreachable(getattr(config, key)))
    for each in _unreachable(config.dns.recursors):
        yield "dns.recursors", f"holds {each!r}; write an address like 192.0.2.1, 192.0.2.1:53 or [2001:db8::1]:53"


def _unreachable(addresses: Sequence[str]) -> Iterator[str]:
    """Those that are neither `host`, `host:port`, `[v6]:port` nor a bare v6 address."""
    for address in addresses:
        bracketed = re.fullmatch(r"\[([^\]]*)\](?::([0-9]+))?", address)
        host, port = (bracketed[1], bracketed[2] or "") if bracketed else (address, "")
        if not bracketed and address.count(":") == 1:
            host, _, port = address.partition(":")
        is_host = bool(_HOST.fullmatch(host)) and not bracketed
        has_port = bool(port) or not address.endswith(":")
        is_port = not port or (port.isascii() and port.isdigit() and 0 < int(port) < 65536)
        if not (is_host or _is_ip(host)) or not has_port or not is_port:
            yield address


def _ports(ports: Ports) -> Mistakes:
    for key in ports.__struct_fields__:
        value = getattr(ports, key)
        least = 1 if key.startswith("sidecar_") else -1
        if not least <= value <= 65535:
            yield f"ports.{key}", f"is {value}; it must be {least} to 65535{' (-1: off)' if least < 0 else ''}"
    if ports.sidecar_min > ports.sidecar_max:
        yield "ports.sidecar_min", f"is {ports.sidecar_min}, above ports.sidecar_max ({ports.sidecar_max})"
    for together in (_AT_CLIENT_ADDR, _AT_BIND_ADDR):
        taken: dict[int, str] = {}
        for key in together:
            value = getattr(ports, key)
            if value > 0 and taken.setdefault(value, key) != key:
                yield f"ports.{key}", f"is {value}, which is ports.{taken[value]} already"


def _sizes(config: AgentConfig) -> Mistakes:
    positive = {
        "retry_interval_s": config.retry_interval_s,
        "dns.recursor_timeout_s": config.dns.recursor_timeout_s,
        "ca.root_ttl_s": config.ca.root_ttl_s,
        "ca.leaf_ttl_s": config.ca.leaf_ttl_s,
        "ca.agent_ttl_s": config.ca.agent_ttl_s,
    }
    for key, value in positive.items():
        if not 0 < value <= _LONGEST_S:
            yield key, f"is {value:g}; it must be more than 0 seconds, and at most 100 years"
    natural = {
        "dns.node_ttl_s": config.dns.node_ttl_s,
        "dns.service_ttl_s": config.dns.service_ttl_s,
        "dns.soa_min_ttl_s": config.dns.soa_min_ttl_s,
        "dns.udp_answer_limit": config.dns.udp_answer_limit,
        "checks.output_max_bytes": config.checks.output_max_bytes,
        "checks.update_interval_s": config.checks.update_interval_s,
    }
    for key, value in natural.items():
        if not 0 <= value < 2**31:
            yield key, f"is {value}; it must be 0 or more, and less than 2147483648"
    if config.max_body_bytes < _LEAST_BODY_BYTES:
        yield "max_body_bytes", f"is {config.max_body_bytes}; it must be at least {_LEAST_BODY_BYTES}"


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_everywhere(text: str) -> bool:
    return _is_ip(text) and ipaddress.ip_address(text).is_unspecified
