"""Plans: what the catalog says about one question, as encoded records, before anything is known of the transport. Pure functions of a View.

Which instances: not critical (with `only_passing`: passing alone), and carrying the tag if one was asked for. A service without such
an instance does not exist (NXDOMAIN, as in Consul since 0.6); one that exists but not with the type asked for is NODATA.
A host name as a service's address becomes a CNAME, only if no instance has an IP address, because a CNAME tolerates no other record beside it.
SRV records carry the host name itself as target, since a target must not be an alias (RFC 2782).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mesh_agent.config import DnsConfig
from mesh_agent.dns import wire
from mesh_agent.dns.names import Asked, IPAddress, hex_label, parse_address
from mesh_agent.model import Instance, Node, Status


class Extra(NamedTuple):
    """A record for the additional section without its owner, which is the target of the answer that it accompanies, or a name of its own."""

    body: bytes
    owner: bytes = b""


class Unit(NamedTuple):
    """One record of the answer section and what should accompany it in the additional section: first addresses, then texts.

    `target_at` is where in `answer` the target's name starts; it reaches to the end. It matters where there are extras without an owner.
    """

    answer: bytes
    target_at: int = 0
    addresses: tuple[Extra, ...] = ()
    texts: tuple[Extra, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that may be put into an answer.

    shuffled: units are equals, their order is drawn anew; with `udp_answer_limit` only some of them are sent.
    single: exactly one of the units is sent (CNAME).
    """

    rcode: int = wire.NOERROR
    units: tuple[Unit, ...] = ()
    authority: tuple[bytes, ...] = ()
    shuffled: bool = False
    single: bool = False


class Namer:
    """Encodes names of one zone for messages with one question: they end in a pointer to the zone's name in that question."""

    def __init__(self, question: bytes, labels: tuple[bytes, ...], zone_labels: int, settings: DnsConfig) -> None:
        inside = labels[: len(labels) - zone_labels]
        offset = sum(1 + len(label) for label in inside)
        self._whole_zone = question[offset : len(question) - 4]
        self._room = 255 - (len(question) - 4 - offset)
        self.zone = wire.pointer(wire.HEADER_BYTES + offset)
        self._settings = settings

    def name(self, labels: Sequence[str]) -> bytes:
        """The encoded name `labels` + zone. ValueError if that is no domain name."""
        encoded = wire.encode_labels(labels)
        if len(encoded) > self._room:
            raise ValueError("a domain name has at most 255 bytes")
        return encoded + self.zone

    def whole(self, labels: Sequence[str]) -> bytes:
        """The same without compression, which the target of an SRV record must not have (RFC 2782)."""
        return self.name(labels)[: -len(self.zone)] + self._whole_zone

    def host(self, node: str, address: IPAddress, datacenter: str) -> tuple[str, ...]:
        """A name for a node; a node whose name cannot stand in a name is called by its address."""
        labels = (*node.split("."), "node", datacenter)
        try:
            self.name(labels)
        except ValueError:
            return (hex_label(address), "addr", datacenter)
        return labels

    def soa(self) -> bytes:
        """The zone's SOA. Its serial is constant: there are no zone transfers, so nothing to compare it with."""
        rdata = wire.soa_rdata(self.name(("ns",)), self.name(("hostmaster",)), 1, self._settings.soa_min_ttl_s)
        return wire.record(self.zone, wire.SOA, self._settings.soa_min_ttl_s, rdata)

    def negative(self, rcode: int) -> Plan:
        """NXDOMAIN or, with NOERROR, NODATA: the SOA says for how long (RFC 2308)."""
        return Plan(rcode, authority=(self.soa(),))


class Planner:
    """Plans the answers of one zone's names."""

    def __init__(self, settings: DnsConfig) -> None:
        self._settings = settings

    def service(self, asked: Asked, qtype: int, instances: Iterable[Instance], namer: Namer) -> Plan:
        """Instances of a service, or mesh endpoints of one."""
        chosen = [one for one in instances if self._is_healthy(one) and _has_tag(one, asked.tag)]
        if not chosen:
            return namer.negative(wire.NOERROR if asked.partial else wire.NXDOMAIN)
        if qtype == wire.SRV:
            units = tuple(dict.fromkeys(self._srv(chosen, asked.datacenter, namer)))
            return Plan(units=units, shuffled=True) if units else namer.negative(wire.NOERROR)
        ttl_s = self._settings.service_ttl_s
        return _addresses([one.address for one in chosen], qtype, ttl_s) or namer.negative(wire.NOERROR)

    def _is_healthy(self, instance: Instance) -> bool:
        status = instance.status
        return status is Status.PASSING or (status is Status.WARNING and not self._settings.only_passing)

    def _srv(self, chosen: Sequence[Instance], datacenter: str, namer: Namer) -> Iterator[Unit]:
        for instance in chosen:
            weights = instance.service.weights
            weight = weights.passing if instance.status is Status.PASSING else weights.warning
            address = parse_address(instance.address)
            try:
                target = self._target(instance, address, datacenter, namer)
            except ValueError:
                continue  # an address that no name can be made of: nobody could be led there
            port = min(max(instance.service.port, 0), 65535)
            rdata = wire.srv_rdata(1, min(max(weight, 0), 65535), port, target)
            answer = wire.record(wire.OWNER, wire.SRV, self._settings.service_ttl_s, rdata)
            glue = () if address is None else (Extra(_address_body(address, self._settings.node_ttl_s)),)
            texts = self._texts(instance.node, self._node_name(instance.node, datacenter, namer))
            yield Unit(answer, len(answer) - len(target), glue, texts)

    def _target(self, instance: Instance, address: IPAddress | None, datacenter: str, namer: Namer) -> bytes:
        """SRV target: the node, unless the service has an address of its own."""
        if address is None:
            return wire.encode_name(instance.address)
        if instance.service.address:
            return namer.whole((hex_label(address), "addr", datacenter))
        return namer.whole(namer.host(instance.node.name, address, datacenter))

    def _node_name(self, node: Node, datacenter: str, namer: Namer) -> bytes:
        """The node's own name, owner of its texts; empty if it has none."""
        try:
            return namer.name((*node.name.split("."), "node", datacenter))
        except ValueError:
            return b""

    def _texts(self, node: Node, owner: bytes) -> tuple[Extra, ...]:
        """The node's meta data as TXT: `key=value`, or the value alone if the key says that it is RFC 1035 text already."""
        if not owner:
            return ()
        ttl_s = self._settings.node_ttl_s
        lines = (value if key.startswith("rfc1035-") else f"{key}={value}" for key, value in sorted(node.meta.items()))
        return tuple(Extra(wire.body(wire.TXT, ttl_s, wire.txt_rdata(line)), owner) for line in lines)

    def node(self, node: Node | None, qtype: int, namer: Namer) -> Plan:
        """A node, healthy or not."""
        if node is None:
            return namer.negative(wire.NXDOMAIN)
        plan = _addresses([node.address], qtype, self._settings.node_ttl_s)
        if plan is not None and plan.single:
            return plan
        units = () if plan is None else plan.units
        texts = self._texts(node, wire.OWNER)
        if qtype in (wire.TXT, wire.ANY):
            units += tuple(Unit(text.owner + text.body) for text in texts)
        elif units:  # Consul's clients find the meta data beside the address
            units = (units[0]._replace(texts=texts),)
        return Plan(units=units) if units else namer.negative(wire.NOERROR)

    def address(self, address: IPAddress, qtype: int, namer: Namer) -> Plan:
        """An address spelled as a name."""
        return _addresses([str(address)], qtype, self._settings.node_ttl_s) or namer.negative(wire.NOERROR)

    def apex(self, asked: Asked, qtype: int, servers: Iterable[Instance], namer: Namer) -> Plan:
        """The zone itself: SOA, and the servers of the datacenter as NS."""
        units: list[Unit] = []
        if qtype in (wire.SOA, wire.ANY):
            units.append(Unit(namer.soa()))
        if qtype in (wire.NS, wire.ANY):
            units += dict.fromkeys(self._ns(servers, asked.datacenter, namer))
        return Plan(units=tuple(units)) if units else namer.negative(wire.NOERROR)

    def _ns(self, servers: Iterable[Instance], datacenter: str, namer: Namer) -> Iterator[Unit]:
        ttl_s = self._settings.soa_min_ttl_s
        for server in servers:
            address = parse_address(server.address)
            if address is None or not self._is_healthy(server):
                continue
            target = namer.name(namer.host(server.node.name, address, datacenter))
            answer = wire.record(namer.zone, wire.NS, ttl_s, target)
            glue = Extra(_address_body(address, self._settings.node_ttl_s))
            yield Unit(answer, len(answer) - len(target), (glue,))

    def pointers(self, names: Iterable[str]) -> Plan:
        """PTR records; names are complete."""
        records: list[Unit] = []
        for name in names:
            try:
                rdata = wire.encode_name(name)
            except ValueError:
                continue
            records.append(Unit(wire.record(wire.OWNER, wire.PTR, self._settings.node_ttl_s, rdata)))
        return Plan(units=tuple(records))


def _has_tag(instance: Instance, tag: str) -> bool:
    return not tag or any(own.lower() == tag for own in instance.service.tags)


def _address_body(address: IPAddress, ttl_s: int) -> bytes:
    return wire.body(wire.A if address.version == 4 else wire.AAAA, ttl_s, address.packed)


def _addresses(texts: Sequence[str], qtype: int, ttl_s: int) -> Plan | None:
    """Address records of the family asked for, each once; or one CNAME when there are host names alone; None when there is nothing."""
    parsed = [(text, parse_address(text)) for text in dict.fromkeys(texts)]
    addresses = dict.fromkeys(address for _, address in parsed if address is not None)
    if addresses:
        wanted = {wire.A: (4,), wire.AAAA: (6,), wire.ANY: (4, 6)}.get(qtype, ())
        units = tuple(
            Unit(wire.OWNER + _address_body(address, ttl_s)) for address in addresses if address.version in wanted
        )
        return Plan(units=units, shuffled=True) if units else None
    aliases: list[Unit] = []
    for text, _ in parsed:
        try:
            rdata = wire.encode_name(text)
        except ValueError:
            continue
        if len(rdata) > 1:
            aliases.append(Unit(wire.record(wire.OWNER, wire.CNAME, ttl_s, rdata)))
    return Plan(units=tuple(aliases), shuffled=True, single=True) if aliases and qtype != wire.SRV else None
