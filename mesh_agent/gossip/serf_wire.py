"""Messages of the serf layer, inside memberlist's user messages and push/pull state. Pure. Numbers and names are the protocol: append only."""

from dataclasses import dataclass, field
from typing import Any

import msgpack

from mesh_agent.errors import RemoteProtocolError
from mesh_agent.gossip.fields import (
    address_from_bytes,
    address_to_bytes,
    items,
    number,
    pack,
    port,
    raw,
    text,
    to_text,
    unpack,
)

LEAVE, JOIN, PUSH_PULL, USER_EVENT, QUERY, QUERY_RESPONSE, CONFLICT_RESPONSE, KEY_REQUEST, KEY_RESPONSE, RELAY = range(
    10
)
FLAG_ACK, FLAG_NO_BROADCAST = 1, 2
_TAGS_MAGIC = 0xFF
_MAX_LAMPORT = 1 << 62
_MAX_TIMEOUT_NS = 3600 * 10**9
_MAX_STATE_LIST = 1 << 20


@dataclass(frozen=True, slots=True)
class Leave:
    """`node` is about to leave (or is told off by another); `prune` forgets it at once."""

    lamport: int
    node: str
    prune: bool = False


@dataclass(frozen=True, slots=True)
class Join:
    """`node` is there and means to stay."""

    lamport: int
    node: str


@dataclass(frozen=True, slots=True)
class EventMessage:
    """A user event."""

    lamport: int
    name: str
    payload: bytes
    coalesce: bool = False


@dataclass(frozen=True, slots=True)
class SerfState:
    """What two nodes exchange on push/pull."""

    lamport: int
    status_lamports: dict[str, int]
    left: tuple[str, ...] = ()
    event_lamport: int = 0
    events: tuple[tuple[int, tuple[tuple[str, bytes], ...]], ...] = ()
    query_lamport: int = 0


@dataclass(frozen=True, slots=True)
class QueryMessage:
    """A question to (some of) the pool; answers go to `address`:`port`; `timeout_s` is its life."""

    lamport: int
    id: int
    address: str
    port: int
    source: str
    name: str
    payload: bytes
    timeout_s: float
    flags: int = 0
    relay: int = 0
    filters: tuple[bytes, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class ResponseMessage:
    """An answer or an acknowledgement."""

    lamport: int
    id: int
    node: str
    payload: bytes = b""
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Relay:
    """Pass `message` (complete, with its type byte) on to an address."""

    address: str
    port: int
    node: str
    message: bytes


SerfMessage = Leave | Join | EventMessage | SerfState | QueryMessage | ResponseMessage | Relay
EVENT_SLOTS = 512


def encode(message: SerfMessage) -> bytes:
    """Type byte and body."""
    kind, fields = _fields(message)
    tail = message.message if isinstance(message, Relay) else b""
    return bytes([kind]) + pack(fields) + tail


def _fields(m: SerfMessage) -> tuple[int, dict[str, Any]]:
    if isinstance(m, Leave):
        return LEAVE, {"LTime": m.lamport, "Node": m.node, "Prune": m.prune}
    if isinstance(m, Join):
        return JOIN, {"LTime": m.lamport, "Node": m.node}
    if isinstance(m, EventMessage):
        return USER_EVENT, {"LTime": m.lamport, "Name": m.name, "Payload": m.payload or None, "CC": m.coalesce}
    if isinstance(m, QueryMessage):
        return QUERY, _query_fields(m)
    if isinstance(m, ResponseMessage):
        return QUERY_RESPONSE, {
            "LTime": m.lamport,
            "ID": m.id,
            "From": m.node,
            "Flags": m.flags,
            "Payload": m.payload or None,
        }
    if isinstance(m, Relay):
        return RELAY, {"DestAddr": {"IP": address_to_bytes(m.address), "Port": m.port, "Zone": ""}, "DestName": m.node}
    return PUSH_PULL, _state_fields(m)


def _query_fields(m: QueryMessage) -> dict[str, Any]:
    return {
        "LTime": m.lamport,
        "ID": m.id,
        "Addr": address_to_bytes(m.address),
        "Port": m.port,
        "SourceNode": m.source,
        "Filters": list(m.filters) or None,
        "Flags": m.flags,
        "RelayFactor": m.relay,
        "Timeout": round(m.timeout_s * 1e9),
        "Name": m.name,
        "Payload": m.payload or None,
    }


def _state_fields(m: SerfState) -> dict[str, Any]:
    slots: list[dict[str, Any] | None] = [None] * EVENT_SLOTS
    for lamport, events in m.events:
        slots[lamport % EVENT_SLOTS] = {
            "LTime": lamport,
            "Events": [{"Name": name, "Payload": payload or None} for name, payload in events],
        }
    return {
        "LTime": m.lamport,
        "StatusLTimes": m.status_lamports,
        "LeftMembers": list(m.left),
        "EventLTime": m.event_lamport,
        "Events": slots,
        "QueryLTime": m.query_lamport,
    }


def decode(payload: bytes) -> SerfMessage | None:
    """The message, None for a type that is not ours to understand; RemoteProtocolError for junk."""
    if not payload:
        raise RemoteProtocolError("empty serf message")
    kind = payload[0]
    if kind == RELAY:
        return _decode_relay(payload)
    if kind not in _DECODERS:
        return None
    fields = unpack(payload[1:], longest_list=_MAX_STATE_LIST if kind == PUSH_PULL else EVENT_SLOTS)
    decoded: SerfMessage = _DECODERS[kind](fields)
    return decoded


def lamport(fields: dict[str, Any], key: str) -> int:
    """A Lamport time. One near the end of its range would stop the clocks of the whole pool, as no later one could be sent."""
    return number(fields, key, _MAX_LAMPORT)


def _decode_relay(payload: bytes) -> Relay:
    unpacker = msgpack.Unpacker(raw=True, strict_map_key=False, max_buffer_size=len(payload), max_array_len=0)
    unpacker.feed(payload[1:])
    try:
        header = unpacker.unpack()
        where = {to_text(key): value for key, value in header[b"DestAddr"].items()}
        name = to_text(header.get(b"DestName", b""))
    except Exception as error:  # msgpack raises several unrelated types for junk
        raise RemoteProtocolError(f"broken relay: {error}") from error
    relay = Relay(address_from_bytes(raw(where, "IP")), port(where, "Port"), name, payload[1 + unpacker.tell() :])
    if not relay.address or not relay.port or not relay.message:
        raise RemoteProtocolError("a relay of nothing or to nowhere")
    return relay


def _decode_query(f: dict[str, Any]) -> QueryMessage:
    filters = f.get("Filters") or []
    if not isinstance(filters, list) or not all(isinstance(each, bytes) for each in filters):
        raise RemoteProtocolError("broken filters")
    return QueryMessage(
        lamport(f, "LTime"),
        number(f, "ID"),
        address_from_bytes(raw(f, "Addr")),
        port(f, "Port"),
        text(f, "SourceNode"),
        text(f, "Name"),
        raw(f, "Payload"),
        number(f, "Timeout", _MAX_TIMEOUT_NS) / 1e9,
        number(f, "Flags"),
        number(f, "RelayFactor", 255),
        tuple(filters),
    )


def _decode_state(f: dict[str, Any]) -> SerfState:
    lamports = f.get("StatusLTimes") or {}
    if not isinstance(lamports, dict):
        raise RemoteProtocolError("broken serf state")
    times = {to_text(name): time for name, time in lamports.items()}
    return SerfState(
        lamport(f, "LTime"),
        {name: lamport(times, name) for name in times},
        tuple(to_text(name) for name in items(f, "LeftMembers")),
        lamport(f, "EventLTime"),
        tuple(_decode_slot(slot) for slot in items(f, "Events") if isinstance(slot, dict)),
        lamport(f, "QueryLTime"),
    )


def _decode_slot(slot: dict[Any, Any]) -> tuple[int, tuple[tuple[str, bytes], ...]]:
    fields = {to_text(key): value for key, value in slot.items()}
    found = []
    for event in items(fields, "Events"):
        if isinstance(event, dict):
            named = {to_text(key): value for key, value in event.items()}
            found.append((text(named, "Name"), raw(named, "Payload")))
    return lamport(fields, "LTime"), tuple(found)


_DECODERS: dict[int, Any] = {  # callables of different result types
    LEAVE: lambda f: Leave(lamport(f, "LTime"), text(f, "Node"), bool(f.get("Prune"))),
    JOIN: lambda f: Join(lamport(f, "LTime"), text(f, "Node")),
    PUSH_PULL: _decode_state,
    USER_EVENT: lambda f: EventMessage(lamport(f, "LTime"), text(f, "Name"), raw(f, "Payload"), bool(f.get("CC"))),
    QUERY: _decode_query,
    QUERY_RESPONSE: lambda f: ResponseMessage(
        lamport(f, "LTime"), number(f, "ID"), text(f, "From"), raw(f, "Payload"), number(f, "Flags")
    ),
}


def encode_tags(tags: dict[str, str]) -> bytes:
    """Tags as node metadata."""
    return bytes([_TAGS_MAGIC]) + pack(dict(tags))


def decode_tags(meta: bytes) -> dict[str, str]:
    """Tags of node metadata; metadata without the magic byte is the value of the tag `role`; junk is no tags."""
    if not meta or meta[0] != _TAGS_MAGIC:
        return {"role": meta.decode("utf-8", "replace")} if meta else {}
    try:
        return {
            key.encode("latin-1").decode("utf-8", "replace"): to_text(value) for key, value in unpack(meta[1:]).items()
        }
    except Exception:  # metadata of a stranger: whatever it is, it is not tags
        return {}


def encode_conflict_response(
    name: str, address: str, port: int, tags: dict[str, str], versions: tuple[int, ...]
) -> bytes:
    """What we know of the member whose name is claimed twice."""
    numbers = ("ProtocolMin", "ProtocolMax", "ProtocolCur", "DelegateMin", "DelegateMax", "DelegateCur")
    fields = {"Name": name, "Addr": address_to_bytes(address), "Port": port, "Tags": dict(tags), "Status": 1}
    return bytes([CONFLICT_RESPONSE]) + pack(fields | dict(zip(numbers, versions, strict=True)))
