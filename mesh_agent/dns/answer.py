"""The Responder: a query's bytes in, an answer's bytes out. Pure; it reads Views and never waits.

Three roads, from hot to cold:
1. the very same bytes were asked before and the topic's index still stands: the prepared answer with the new id in front;
2. the same question in another dress (case, EDNS, transport): its `Plan` is still valid, only the message is put together;
3. the plan is made from the View.
Both caches hold the View object and the index they were made from, so they cannot outlive a change, a cut-off datacenter (no View), or a
stream that began anew (another View). What cannot be answered here comes back as an effect for the shell: `NeedTopic` (wait for the catalog,
then ask again), `Recurse` (not ours), or `Follow` (an alias whose addresses are elsewhere).

Where Consul 1.8 and the RFCs part we follow the RFCs: NODATA for a name without the asked type, empty non-terminals, SOA under the zone asked for,
REFUSED for other classes, NOTIMP for other opcodes.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mesh_agent.catalog.reader import CatalogReader
from mesh_agent.catalog.view import View
from mesh_agent.config import AgentConfig
from mesh_agent.dns import alias, wire
from mesh_agent.dns.cache import Bounded
from mesh_agent.dns.compose import Frame, Wheel, message
from mesh_agent.dns.names import SERVERS, Asked, Kind, NameParser
from mesh_agent.dns.plan import Namer, Plan, Planner, Unit
from mesh_agent.dns.reverse import ReverseNames
from mesh_agent.model import Topic

_WIRE_CACHE_BYTES = 3 * 1024 * 1024
_WIRE_ENTRY_BYTES = 1000
"""What an entry occupies beside its answers, roughly."""
_PLAN_CACHE_UNITS = 20_000
_PLAN_ENTRY_UNITS = 8
"""What an entry without units occupies, as if it were units (about 150 bytes each)."""


@dataclass(frozen=True, slots=True)
class NeedTopic:
    """The catalog must provide `topic` first: ensure it, then call `answer` again; or call `unreachable`."""

    topic: Topic


@dataclass(frozen=True, slots=True)
class Recurse:
    """The name is not ours: pass the query to the recursors; if none answers call `failed`."""


@dataclass(frozen=True, slots=True)
class Follow:
    """The answer is an alias: resolve `query` like a client's, then call `followed` with what came out (None if nothing did)."""

    alias: Unit
    target: bytes
    query: bytes


Outcome = bytes | NeedTopic | Recurse | Follow | None
_RECURSE = Recurse()


class _Source(NamedTuple):
    """What an answer was made from; None: from nothing that can change."""

    topic: Topic
    view: View
    revision: int


class _Hot:
    """An entry of the wire cache."""

    __slots__ = ("count", "index", "topic", "view", "wheel")

    def __init__(self, source: _Source, wheel: Wheel, count: list[int]) -> None:
        self.topic, self.view, self.index = source
        self.wheel = wheel
        self.count = count


class Responder:
    """See the module's text. `answer` may be called for UDP and TCP in any order, from one thread."""

    def __init__(self, config: AgentConfig, catalog: CatalogReader, rng: random.Random) -> None:
        self._settings = config.dns
        self._is_server = config.server
        self._catalog = catalog
        self._rng = rng
        zones = dict.fromkeys(_zone(name) for name in (config.domain, config.alt_domain) if _zone(name))
        self._zones = tuple(zones)
        self._names = NameParser(self._zones, config.datacenter, self._is_datacenter)
        self._planner = Planner(config.dns)
        self._reverse = ReverseNames(self._zones[0])
        self._recursion = bool(config.dns.recursors)
        self._plans: Bounded[bytes, tuple[_Source, Plan]] = Bounded(_PLAN_CACHE_UNITS)
        self._hot: dict[bool, Bounded[bytes, _Hot]] = {
            False: Bounded(_WIRE_CACHE_BYTES),
            True: Bounded(_WIRE_CACHE_BYTES // 4),
        }
        self._counts: dict[tuple[str, str], list[int]] = {}

    # -- entrances

    def answer(self, query: bytes, *, tcp: bool = False) -> Outcome:
        """The answer to `query`, an effect for the shell, or None when it deserves no answer (not a query at all)."""
        hot = self._hot[tcp].get(query[2:])
        if hot is not None:
            view = hot.view
            if self._catalog.view(hot.topic) is view and view.topic_index(hot.topic) == hot.index:
                hot.count[0] += 1
                return query[:2] + hot.wheel.next()
        return self._cold(query, tcp)

    def unreachable(self, query: bytes, topic: Topic, text: str, *, tcp: bool = False) -> bytes:
        """The answer when `topic` cannot be had: SERVFAIL with the reason (RFC 8914); NXDOMAIN only for a datacenter that certainly does not exist.

        Servers are members of the WAN pool and know every datacenter; a client agent knows its own and must not deny the others.
        """
        parsed = wire.parse_query(query)
        if self._is_server and not self._is_datacenter(topic.datacenter):
            plan = self._namer(parsed, self._names.parse(parsed.labels)).negative(wire.NXDOMAIN)
            return self._assemble(parsed, plan, tcp)
        reason = wire.extended_error(wire.EDE_NO_REACHABLE_AUTHORITY, text)
        return self._refusal(parsed, wire.SERVFAIL, reason)

    def failed(self, query: bytes, text: str) -> bytes:
        """SERVFAIL: no recursor answered."""
        reason = wire.extended_error(wire.EDE_NO_REACHABLE_AUTHORITY, text)
        return self._refusal(wire.parse_query(query), wire.SERVFAIL, reason)

    def followed(self, query: bytes, follow: Follow, answer: bytes | None, *, tcp: bool = False) -> bytes:
        """The alias with the addresses that `answer` has for its target; the alias alone if there are none: a resolver in front of us can go on."""
        parsed = wire.parse_query(query)
        found = () if answer is None else alias.addresses(answer, parsed.qtype)
        behind = tuple(Unit(wire.record(follow.target, parsed.qtype, ttl_s, rdata)) for ttl_s, rdata in found)
        return self._assemble(parsed, Plan(units=(follow.alias, *behind)), tcp)

    def counts(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Answers given so far, as (metric name, labels, value)."""
        for (qtype, rcode), count in sorted(self._counts.items()):
            yield "mesh_dns_answers_total", {"type": qtype, "rcode": rcode}, float(count[0])

    @property
    def cached(self) -> int:
        """Entries in both caches."""
        return len(self._plans) + sum(len(cache) for cache in self._hot.values())

    # -- the cold roads

    def _cold(self, query: bytes, tcp: bool) -> Outcome:
        if len(query) < wire.HEADER_BYTES or query[2] & 0x80:
            return None  # answering an answer would start a loop
        if int.from_bytes(query[2:4], "big") & wire.OPCODE:
            return self._bare(query, wire.NOTIMP)
        try:
            parsed = wire.parse_query(query)
            refusal = self._refuse(parsed)
        except wire.Malformed:
            return self._bare(query, wire.FORMERR)
        if refusal is not None:
            return refusal
        found = self._plan(parsed)
        if isinstance(found, NeedTopic | Recurse):
            return found
        source, plan = found
        if plan.single and parsed.qtype in (wire.A, wire.AAAA):
            follow = self._follow(plan, parsed)
            if follow is not None:
                return follow
        if source is None or not _is_plain(query, parsed):
            return self._assemble(parsed, plan, tcp)
        wheel = Wheel(plan, self._frame(parsed, tcp), self._rng)
        hot = _Hot(source, wheel, self._counter(parsed.qtype, plan.rcode))
        self._hot[tcp].put(query[2:], hot, _WIRE_ENTRY_BYTES + len(query) + wheel.bytes)
        hot.count[0] += 1
        return query[:2] + wheel.next()

    def _follow(self, plan: Plan, query: wire.Query) -> Follow | None:
        """How to go on with an alias; None if nobody could be asked for its target."""
        unit = self._rng.choice(plan.units)
        target = wire.cname_target(unit.answer)
        asked = alias.target_query(target, query.qtype, query.id)
        is_ours = self._names.parse(wire.parse_query(asked).labels).kind is not Kind.FOREIGN
        return Follow(unit, target, asked) if is_ours or self._recursion else None

    def _refuse(self, query: wire.Query) -> bytes | None:
        """What is refused whatever the name is."""
        if query.edns is not None:
            for code, value in query.edns.options:
                if code == wire.OPTION_CLIENT_SUBNET:
                    wire.echo_client_subnet(value)
            if query.edns.version != 0:
                return self._refusal(query, wire.BADVERS)
        if query.qtype in (wire.AXFR, wire.IXFR):
            return self._refusal(query, wire.NOTIMP, wire.extended_error(wire.EDE_NOT_SUPPORTED, "no zone transfers"))
        if query.qclass not in (wire.IN, wire.CLASS_ANY):
            return self._refusal(query, wire.REFUSED, wire.extended_error(wire.EDE_NOT_SUPPORTED, "only class IN"))
        return None

    def _plan(self, query: wire.Query) -> tuple[_Source | None, Plan] | NeedTopic | Recurse:
        key = query.question.lower()
        known = self._plans.get(key)
        if known is not None and self._is_current(known[0]):
            return known
        asked = self._names.parse(query.labels)
        topic = self._topic(asked, query.qtype)
        if topic is None:
            return self._plan_without_catalog(query, asked)
        view = self._catalog.view(topic)
        if view is None:
            return NeedTopic(topic)
        plan = self._plan_from(view, asked, query)
        if plan is None:
            return self._plan_without_catalog(query, Asked(Kind.FOREIGN))
        source = _Source(topic, view, view.topic_index(topic))
        self._plans.put(key, (source, plan), _PLAN_ENTRY_UNITS + len(plan.units))
        return source, plan

    def _topic(self, asked: Asked, qtype: int) -> Topic | None:
        """What must be known of the catalog to answer."""
        if asked.kind in (Kind.SERVICE, Kind.CONNECT, Kind.NODE):
            return Topic(self._datacenter(asked.datacenter), asked.kind.value, asked.name)
        if asked.kind is Kind.APEX and qtype in (wire.NS, wire.ANY):
            return Topic(self._catalog.datacenter, "service", SERVERS)
        if asked.kind is Kind.REVERSE and self._is_server:
            return Topic(self._catalog.datacenter, "all")
        return None

    def _plan_without_catalog(self, query: wire.Query, asked: Asked) -> tuple[None, Plan] | Recurse:
        if asked.kind is Kind.ADDRESS and asked.address is not None:
            return None, self._planner.address(asked.address, query.qtype, self._namer(query, asked))
        if asked.kind is Kind.APEX:
            return None, self._planner.apex(asked, query.qtype, (), self._namer(query, asked))
        if asked.zone_labels:
            rcode = wire.NOERROR if asked.kind is Kind.EMPTY else wire.NXDOMAIN
            return None, self._namer(query, asked).negative(rcode)
        return _RECURSE if self._recursion else (None, Plan(wire.REFUSED))

    def _plan_from(self, view: View, asked: Asked, query: wire.Query) -> Plan | None:
        """The plan as `view` has it; None if the name is not ours after all (an address that no node has)."""
        if asked.kind is Kind.REVERSE:
            names = [] if asked.address is None else self._reverse.names(view, asked.address)
            wanted = names if query.qtype in (wire.PTR, wire.ANY) else ()
            return self._planner.pointers(wanted) if names else None
        namer = self._namer(query, asked)
        if asked.kind is Kind.NODE:
            return self._planner.node(view.node(asked.name), query.qtype, namer)
        if asked.kind is Kind.APEX:
            return self._planner.apex(asked, query.qtype, view.instances(SERVERS), namer)
        asked = asked._replace(datacenter=view.datacenter)
        instances = view.instances(asked.name, connect=asked.kind is Kind.CONNECT)
        return self._planner.service(asked, query.qtype, instances, namer)

    # -- small questions

    def _namer(self, query: wire.Query, asked: Asked) -> Namer:
        return Namer(query.question, query.labels, asked.zone_labels, self._settings)

    def _is_current(self, source: _Source) -> bool:
        view = self._catalog.view(source.topic)
        return view is source.view and view.topic_index(source.topic) == source.revision

    def _is_datacenter(self, label: str) -> bool:
        return any(known.lower() == label.lower() for known in self._catalog.datacenters())

    def _datacenter(self, label: str) -> str:
        """The datacenter as it spells itself; names in questions have no case."""
        return next((known for known in self._catalog.datacenters() if known.lower() == label.lower()), label)

    def _counter(self, qtype: int, rcode: int) -> list[int]:
        labels = wire.TYPE_NAMES.get(qtype, "other"), wire.RCODE_NAMES.get(rcode, "other")
        return self._counts.setdefault(labels, [0])

    # -- messages

    def _frame(self, query: wire.Query, tcp: bool, rcode: int = 0, options: Sequence[tuple[int, bytes]] = ()) -> Frame:
        flags = wire.QR | wire.AA | query.flags & (wire.RD | wire.CD) | (wire.RA if self._recursion else 0)
        if rcode in (wire.REFUSED, wire.SERVFAIL, wire.NOTIMP, wire.BADVERS):
            flags &= ~wire.AA
        opt, limit = b"", wire.UDP_BYTES
        if query.edns is not None:
            subnets = [
                (code, wire.echo_client_subnet(value))
                for code, value in query.edns.options
                if code == wire.OPTION_CLIENT_SUBNET
            ]
            opt = wire.opt_record(rcode, dnssec_ok=query.edns.dnssec_ok, options=[*subnets, *options])
            limit = min(max(query.edns.size, wire.UDP_BYTES), wire.UDP_SEND_BYTES)
        few = None if tcp or limit > wire.UDP_BYTES else self._settings.udp_answer_limit or None
        return Frame(
            flags, query.question, opt, wire.TCP_BYTES if tcp else limit, few, self._settings.enable_truncate or tcp
        )

    def _assemble(self, query: wire.Query, plan: Plan, tcp: bool) -> bytes:
        self._counter(query.qtype, plan.rcode)[0] += 1
        options = []
        if plan.rcode == wire.REFUSED:
            text = f"only names under {' and '.join(self._zones)} are answered here, and no recursors are configured"
            options.append(wire.extended_error(wire.EDE_NOT_AUTHORITATIVE, text))
        units = list(plan.units)
        if plan.shuffled:
            self._rng.shuffle(units)
        return query.id.to_bytes(2, "big") + message(plan, units, self._frame(query, tcp, plan.rcode, options))

    def _refusal(self, query: wire.Query, rcode: int, *options: tuple[int, bytes]) -> bytes:
        """A reply without records: header, question, and OPT with the reason if the client speaks EDNS."""
        self._counter(query.qtype, rcode)[0] += 1
        return query.id.to_bytes(2, "big") + message(Plan(rcode), (), self._frame(query, False, rcode, options))

    def _bare(self, query: bytes, rcode: int) -> bytes:
        """A reply to what could not be read: its id, opcode and RD."""
        self._counter(0, rcode)[0] += 1
        flags = wire.QR | int.from_bytes(query[2:4], "big") & (wire.OPCODE | wire.RD) | rcode
        return wire.header(int.from_bytes(query[:2], "big"), flags, (0, 0, 0, 0))


def _zone(name: str) -> str:
    return name.strip(".").lower()


def _is_plain(query: bytes, parsed: wire.Query) -> bool:
    """Whether the same bytes will come again: options carry cookies, mixed case is drawn at random by some resolvers."""
    end = wire.HEADER_BYTES + len(parsed.question)
    return (parsed.edns is None or not parsed.edns.options) and query[12:end] == query[12:end].lower()
