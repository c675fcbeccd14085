"""The messages of memberlist: bytes <-> messages. Pure. The numbers and field names below ARE the protocol: append only.

A message is a type byte and a map of fields. Most travel in datagrams; a few (push/pull above all) have a form of their own in a stream. What is wrapped
around them is the business of `layers`, the messages inside a `User` that of `serf_wire`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mesh_agent.errors import RemoteProtocolError
from mesh_agent.gossip.fields import (
    Incomplete,
    MapReader,
    address_from_bytes,
    address_to_bytes,
    number,
    pack,
    port,
    raw,
    text,
    unpack,
)

PING, INDIRECT_PING, ACK, SUSPECT, ALIVE, DEAD, PUSH_PULL, COMPOUND, USER, COMPRESS, ENCRYPT, NACK, HAS_CRC, ERROR = (
    range(14)
)
HAS_LABEL = 244

MAX_USER_STATE = 20 * 1024 * 1024
MAX_NODES = 1 << 17
_REPEATED_BYTES = 600

OWN_VERSIONS = (1, 5, 2, 2, 5, 4)
"""Protocol min, max, current; delegate min, max, current."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you `node`? Acks go to the source address if there is one."""

    seq: int
    node: str
    source_address: str = ""
    source_port: int = 0
    source_node: str = ""


@dataclass(frozen=True, slots=True)
class IndirectPing:
    """Ping `node` at `address` for me; send a nack if it is silent and `nack` is set."""

    seq: int
    node: str
    address: str
    port: int
    nack: bool
    source_address: str = ""
    source_port: int = 0
    source_node: str = ""


@dataclass(frozen=True, slots=True)
class Ack:
    """I am alive; `payload` is a network coordinate."""

    seq: int
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Nack:
    """The node you asked me to ping is silent."""

    seq: int


@dataclass(frozen=True, slots=True)
class Suspect:
    """`accuser` could not reach `node`."""

    incarnation: int
    node: str
    accuser: str


@dataclass(frozen=True, slots=True)
class Dead:
    """`node` is dead, says `accuser`; if both are the same, it left."""

    incarnation: int
    node: str
    accuser: str


@dataclass(frozen=True, slots=True)
class Alive:
    """`node` lives at `address`, with metadata and versions."""

    incarnation: int
    node: str
    address: str
    port: int
    meta: bytes
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class User:
    """A message of the layer above."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class StateEntry:
    """A node in a push/pull: `state` is 0 alive, 1 suspect, 2 dead, 3 left."""

    node: str
    address: str
    port: int
    meta: bytes
    incarnation: int
    state: int
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PushPull:
    """The whole state of one side; `join` when the sender is joining."""

    entries: tuple[StateEntry, ...]
    user_state: bytes
    join: bool


@dataclass(frozen=True, slots=True)
class Error:
    """The peer could not read what we sent."""

    text: str


Message = Ping | IndirectPing | Ack | Nack | Suspect | Dead | Alive | User
StreamMessage = PushPull | Ping | Ack | User | Error


# datagrams


def _source(message: Ping | IndirectPing) -> dict[str, Any]:
    if not message.source_address:
        return {}
    return {
        "SourceAddr": address_to_bytes(message.source_address),
        "SourcePort": message.source_port,
        "SourceNode": message.source_node,
    }


def encode(message: Message) -> bytes:
    """Type byte and body."""
    return _ENCODERS[type(message)](message)


def _encode_alive(m: Alive) -> bytes:
    fields = {"Incarnation": m.incarnation, "Node": m.node, "Addr": address_to_bytes(m.address), "Port": m.port}
    return bytes([ALIVE]) + pack(fields | {"Meta": m.meta or None, "Vsn": bytes(m.versions)})


def _encode_indirect(m: IndirectPing) -> bytes:
    fields = {"SeqNo": m.seq, "Target": address_to_bytes(m.address), "Port": m.port, "Node": m.node, "Nack": m.nack}
    return bytes([INDIRECT_PING]) + pack(fields | _source(m))


_ENCODERS: dict[type, Callable[[Any], bytes]] = {
    Ping: lambda m: bytes([PING]) + pack({"SeqNo": m.seq, "Node": m.node} | _source(m)),
    IndirectPing: _encode_indirect,
    Ack: lambda m: bytes([ACK]) + pack({"SeqNo": m.seq, "Payload": m.payload or None}),
    Nack: lambda m: bytes([NACK]) + pack({"SeqNo": m.seq}),
    Suspect: lambda m: bytes([SUSPECT]) + pack({"Incarnation": m.incarnation, "Node": m.node, "From": m.accuser}),
    Dead: lambda m: bytes([DEAD]) + pack({"Incarnation": m.incarnation, "Node": m.node, "From": m.accuser}),
    Alive: _encode_alive,
    User: lambda m: bytes([USER]) + m.payload,
}


def _decode_ping(f: dict[str, Any]) -> Ping:
    source = address_from_bytes(raw(f, "SourceAddr"))
    return Ping(number(f, "SeqNo"), text(f, "Node"), source, port(f, "SourcePort"), text(f, "SourceNode"))


def _decode_indirect(f: dict[str, Any]) -> IndirectPing:
    target, source = address_from_bytes(raw(f, "Target")), address_from_bytes(raw(f, "SourceAddr"))
    return IndirectPing(
        number(f, "SeqNo"),
        text(f, "Node"),
        target,
        port(f, "Port"),
        bool(f.get("Nack")),
        source,
        port(f, "SourcePort"),
        text(f, "SourceNode"),
    )


def _decode_alive(f: dict[str, Any]) -> Alive:
    address = address_from_bytes(raw(f, "Addr"))
    return Alive(
        number(f, "Incarnation"), text(f, "Node"), address, port(f, "Port"), raw(f, "Meta"), tuple(raw(f, "Vsn"))
    )


_DECODERS: dict[int, Callable[[dict[str, Any]], Message]] = {
    PING: _decode_ping,
    INDIRECT_PING: _decode_indirect,
    ACK: lambda f: Ack(number(f, "SeqNo"), raw(f, "Payload")),
    NACK: lambda f: Nack(number(f, "SeqNo")),
    SUSPECT: lambda f: Suspect(number(f, "Incarnation"), text(f, "Node"), text(f, "From")),
    DEAD: lambda f: Dead(number(f, "Incarnation"), text(f, "Node"), text(f, "From")),
    ALIVE: _decode_alive,
}


def decode(block: bytes) -> Message:
    """A single message of a datagram; RemoteProtocolError if it is junk."""
    if block[0] == USER:
        return User(block[1:])
    return _decode_repeated(block) if len(block) <= _REPEATED_BYTES else _decode_fields(block)


def _decode_fields(block: bytes) -> Message:
    decoder = _DECODERS.get(block[0])
    if decoder is None:
        raise RemoteProtocolError(f"unknown message type {block[0]}")
    return decoder(unpack(block[1:]))


# Gossip brings the same few messages again and again.
_decode_repeated = lru_cache(maxsize=1024)(_decode_fields)


# streams


def encode_push_pull(state: PushPull) -> bytes:
    """Header, nodes and user state, one after the other."""
    chunks = [
        bytes([PUSH_PULL]),
        pack({"Nodes": len(state.entries), "UserStateLen": len(state.user_state), "Join": state.join}),
    ]
    for e in state.entries:
        fields = {"Name": e.node, "Addr": address_to_bytes(e.address), "Port": e.port, "Meta": e.meta or None}
        chunks.append(pack(fields | {"Incarnation": e.incarnation, "State": e.state, "Vsn": bytes(e.versions)}))
    return b"".join([*chunks, state.user_state])


def encode_error(reason: str) -> bytes:
    """Tell the peer that its request could not be read."""
    return bytes([ERROR]) + pack({"Error": reason})


def decode_stream(block: bytes) -> StreamMessage:
    """The message of a stream; Incomplete while it is not there in full, RemoteProtocolError for junk."""
    kind = block[0]
    reader = MapReader(block[1:])
    fields = reader.map()
    if kind == PUSH_PULL:
        return _decode_push_pull(fields, reader, block)
    if kind == USER:
        return User(_tail(block, 1 + reader.position, number(fields, "UserMsgLen", MAX_USER_STATE)))
    if kind == PING:
        return _decode_ping(fields)
    if kind == ACK:
        return Ack(number(fields, "SeqNo"), raw(fields, "Payload"))
    if kind == ERROR:
        return Error(text(fields, "Error"))
    raise RemoteProtocolError(f"unknown message type {kind}")


def _tail(block: bytes, at: int, length: int) -> bytes:
    if len(block) < at + length:
        raise Incomplete
    return block[at : at + length]


def _decode_push_pull(header: dict[str, Any], reader: MapReader, block: bytes) -> PushPull:
    count = number(header, "Nodes", MAX_NODES)
    entries = tuple(_decode_entry(reader.map()) for _ in range(count))
    return PushPull(
        entries,
        _tail(block, 1 + reader.position, number(header, "UserStateLen", MAX_USER_STATE)),
        bool(header.get("Join")),
    )


def _decode_entry(f: dict[str, Any]) -> StateEntry:
    name = text(f, "Name")
    if not name:
        raise RemoteProtocolError("a node without a name")
    return StateEntry(
        name,
        address_from_bytes(raw(f, "Addr")),
        port(f, "Port"),
        raw(f, "Meta"),
        number(f, "Incarnation"),
        number(f, "State"),
        tuple(raw(f, "Vsn")),
    )
