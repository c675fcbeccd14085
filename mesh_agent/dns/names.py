"""From the labels of a question to what is asked for: Consul's name grammar.

    [<tag>.]<service>.service[.<dc>[.dc]].<domain>        instances of a service
    _<service>._<tag or tcp>[.service][.<dc>[.dc]].<domain>   the same in the form of RFC 2782
    <service>.connect[.<dc>[.dc]].<domain>                mesh endpoints of a service
    <node>.node[.<dc>[.dc]].<domain>                      a node
    <hex address>.addr[.<dc>[.dc]].<domain>               an address spelled as a name
    <domain>, ns.<domain>                                 the zone and its name servers

Names between the zone and those (`service.mesh`, `dc1.mesh`) exist without records: resolvers that ask label by label (RFC 9156)
must not be told NXDOMAIN there. Everything is in lower case already.
"""

import ipaddress
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Kind(Enum):
    """What a name stands for."""

    SERVICE = "service"
    CONNECT = "connect"
    NODE = "node"
    ADDRESS = "addr"
    APEX = "apex"
    EMPTY = "empty"
    """Exists, has no records (an empty non-terminal)."""
    REVERSE = "reverse"
    NOTHING = "nothing"
    """In a zone of ours, and not a name."""
    FOREIGN = "foreign"


class Asked(NamedTuple):
    """What a name stands for. `zone_labels` is how many labels at its end are the zone's name (0 outside of our zones).

    `partial` marks `_tcp.service.mesh`-like names that exist at least as the parent of others.
    """

    kind: Kind
    zone_labels: int = 0
    name: str = ""
    tag: str = ""
    datacenter: str = ""
    address: IPAddress | None = None
    partial: bool = False


SERVERS = "consul"
"""The service whose instances are the servers of a datacenter."""

_KINDS = {"service": Kind.SERVICE, "connect": Kind.CONNECT, "node": Kind.NODE, "addr": Kind.ADDRESS}


class NameParser:
    """Knows the zones, the own datacenter, and how to tell whether a label is a known datacenter."""

    def __init__(self, zones: tuple[str, ...], datacenter: str, is_datacenter: Callable[[str], bool]) -> None:
        self._zones = [tuple(zone.encode().split(b".")) for zone in zones]
        self._datacenter = datacenter
        self._is_datacenter = is_datacenter

    def parse(self, labels: tuple[bytes, ...]) -> Asked:
        """What the name is, without asking the catalog whether the thing exists."""
        if labels[-1:] == (b"arpa",):
            address = reverse_address(labels)
            return Asked(Kind.FOREIGN) if address is None else Asked(Kind.REVERSE, address=address)
        for zone in self._zones:
            if labels[-len(zone) :] == zone:
                return self._parse_inside(labels[: -len(zone)], len(zone))
        return Asked(Kind.FOREIGN)

    def _parse_inside(self, raw: tuple[bytes, ...], zone: int) -> Asked:
        try:
            labels = tuple(label.decode() for label in raw)
        except UnicodeDecodeError:
            return Asked(Kind.NOTHING, zone)
        if not labels:
            return Asked(Kind.APEX, zone, datacenter=self._datacenter)
        if labels == ("ns",):
            return Asked(Kind.SERVICE, zone, SERVERS, datacenter=self._datacenter)
        after, kind, before = _split(labels)
        if kind is None and _is_rfc_2782(labels[:2]) and len(labels) <= 4 and labels[3:] in ((), ("dc",)):
            kind, before, after = Kind.SERVICE, labels[:2], labels[2:]
        if kind is None:
            return Asked(Kind.EMPTY if self._is_parent(labels) else Kind.NOTHING, zone)
        if not before:
            known = not after or self._is_datacenter(after[0])
            return Asked(Kind.EMPTY if known else Kind.NOTHING, zone)
        return _entry(kind, before, zone, after[0] if after else self._datacenter)

    def _is_parent(self, labels: tuple[str, ...]) -> bool:
        """`dc.mesh`, `<dc>.mesh`, `<dc>.dc.mesh`, `_tcp.mesh`."""
        if labels == ("dc",) or (labels[0].startswith("_") and len(labels) == 1):
            return True
        if len(labels) == 2 and labels[1] != "dc":
            return False
        return len(labels) <= 2 and self._is_datacenter(labels[0])


def _split(labels: tuple[str, ...]) -> tuple[tuple[str, ...], Kind | None, tuple[str, ...]]:
    """(what follows the kind, the kind, what precedes it); a kind is followed by nothing, `<dc>` or `<dc>.dc`."""
    lengths = [0, 1]
    if len(labels) >= 3 and labels[-1] == "dc":
        lengths = [2, 0, 1]
    for length in lengths:
        at = len(labels) - length - 1
        if at >= 0 and labels[at] in _KINDS:
            return labels[at + 1 :], _KINDS[labels[at]], labels[:at]
    return (), None, labels


def _entry(kind: Kind, before: tuple[str, ...], zone: int, datacenter: str) -> Asked:
    if kind is Kind.NODE:
        return Asked(kind, zone, ".".join(before), datacenter=datacenter)
    if kind is Kind.ADDRESS:
        address = _hex_address(before[0]) if len(before) == 1 else None
        found = Kind.NOTHING if address is None else kind
        return Asked(found, zone, datacenter=datacenter, address=address)
    if kind is Kind.CONNECT:
        # Consul has no tags here; what precedes the name is nothing that exists.
        return Asked(kind if len(before) == 1 else Kind.NOTHING, zone, before[-1], datacenter=datacenter)
    if len(before) == 2 and _is_rfc_2782(before):
        tag = before[1][1:]
        return Asked(kind, zone, before[0][1:], "" if tag == "tcp" else tag, datacenter)
    partial = len(before) == 1 and before[0].startswith("_")
    return Asked(kind, zone, before[-1], ".".join(before[:-1]), datacenter, partial=partial)


def _is_rfc_2782(labels: tuple[str, ...]) -> bool:
    return len(labels) == 2 and labels[0].startswith("_") and labels[1].startswith("_")


def _hex_address(label: str) -> IPAddress | None:
    try:
        packed = bytes.fromhex(label)
    except ValueError:
        return None
    if len(label) != 2 * len(packed):  # fromhex forgives blanks
        return None
    if len(packed) == 4:
        return ipaddress.IPv4Address(packed)
    return ipaddress.IPv6Address(packed) if len(packed) == 16 else None


def hex_label(address: IPAddress) -> str:
    """The label that spells `address` under `addr`."""
    return address.packed.hex()


def reverse_address(labels: tuple[bytes, ...]) -> IPAddress | None:
    """The address of a complete `in-addr.arpa` or `ip6.arpa` name (RFC 1035, 3596), else None."""
    try:
        if labels[-2:] == (b"in-addr", b"arpa") and len(labels) == 6:
            return ipaddress.IPv4Address(b".".join(reversed(labels[:4])).decode())
        if labels[-2:] == (b"ip6", b"arpa") and len(labels) == 34 and all(len(label) == 1 for label in labels[:32]):
            return ipaddress.IPv6Address(bytes.fromhex(b"".join(reversed(labels[:32])).decode()))
    except ValueError:
        return None
    return None


def parse_address(text: str) -> IPAddress | None:
    """An IP address, or None for a host name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
