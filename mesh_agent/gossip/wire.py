"""The gossip wire format of memberlist: bytes <-> messages. Pure. The numbers and field names below ARE the protocol: append only.

A datagram is built from the inside out: message(s), compound, compression, CRC, encryption, label. A stream has no CRC, and its encryption carries a
length. msgpack is the old dialect: text and bytes are both "raw" (no str8, no bin), maps have sorted keys, unknown keys are ignored, missing ones are zero.
"""

import ipaddress
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgpack

from mesh_agent.errors import RemoteProtocolError
from mesh_agent.gossip import lzw
from mesh_agent.gossip.keyring import Keyring

PING, INDIRECT_PING, ACK, SUSPECT, ALIVE, DEAD, PUSH_PULL, COMPOUND, USER, COMPRESS, ENCRYPT, NACK, HAS_CRC, ERROR = (
    range(14)
)
HAS_LABEL = 244

MAX_DECOMPRESSED = 40 * 1024 * 1024
MAX_USER_STATE = 20 * 1024 * 1024
MAX_NODES = 1 << 17
MAX_STREAM = 64 * 1024 * 1024
_MAX_PARTS = 255
_MAX_DEPTH = 8
_MAX_MESSAGES = 1024
_MAX_DATAGRAM = 256 * 1024
_MAX_RATIO = 64
_MAX_LIST = 8192
_REPEATED_BYTES = 600
_U16, _U32 = 0xFFFF, 0xFFFFFFFF

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


# msgpack in the old dialect


def pack(fields: dict[str, Any]) -> bytes:
    """A map with sorted keys; values are int, str, bytes, bool, float, None, lists and maps of them."""
    return msgpack.packb({key: fields[key] for key in sorted(fields)}, use_bin_type=False)  # type: ignore[no-any-return]


def unpack(packed: bytes, *, longest_list: int = _MAX_LIST) -> dict[str, Any]:
    """The map at the start of `packed`; trailing bytes are ignored, as peers do. Lists are made before they are read, so their length has a limit."""
    try:
        value = msgpack.unpackb(packed, raw=True, strict_map_key=False, max_array_len=min(longest_list, len(packed)))
    except msgpack.ExtraData as more:
        value = more.unpacked
    except Exception as error:  # msgpack raises several unrelated types for junk
        raise RemoteProtocolError(f"broken msgpack: {error}") from error
    return _named(value)


def _named(value: Any) -> dict[str, Any]:  # whatever msgpack holds
    if not isinstance(value, dict):
        raise RemoteProtocolError("expected a msgpack map")
    return {key.decode("latin-1") if isinstance(key, bytes) else str(key): item for key, item in value.items()}


class _Incomplete(Exception):
    """A stream message is not there in full yet."""


class _Reader:
    """Reads maps one after another."""

    def __init__(self, raw: bytes) -> None:
        self._unpacker = msgpack.Unpacker(
            raw=True,
            strict_map_key=False,
            max_buffer_size=max(1, len(raw)),
            max_array_len=_MAX_LIST,
            max_map_len=_MAX_LIST,
        )
        self._unpacker.feed(raw)

    def map(self) -> dict[str, Any]:
        try:
            value = self._unpacker.unpack()
        except msgpack.OutOfData as error:
            raise _Incomplete from error
        except Exception as error:  # msgpack raises several unrelated types for junk
            raise RemoteProtocolError(f"broken msgpack: {error}") from error
        return _named(value)

    @property
    def position(self) -> int:
        return int(self._unpacker.tell())


def number(fields: dict[str, Any], key: str, largest: int = _U32) -> int:
    """An integer field from 0 to `largest`, 0 if it is missing. What is out of range could not be sent on."""
    value = fields.get(key) or 0
    if not isinstance(value, int) or not 0 <= value <= largest:
        raise RemoteProtocolError(f"{key} is not a number from 0 to {largest}")
    return int(value)


def port(fields: dict[str, Any], key: str) -> int:
    """A port."""
    return number(fields, key, _U16)


def text(fields: dict[str, Any], key: str) -> str:
    """A text field, '' if it is missing."""
    value = fields.get(key) or b""
    if not isinstance(value, bytes | str):
        raise RemoteProtocolError(f"{key} is not text")
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def raw(fields: dict[str, Any], key: str) -> bytes:
    """A bytes field, b'' if it is missing."""
    value = fields.get(key) or b""
    if isinstance(value, list) and all(isinstance(item, int) and 0 <= item < 256 for item in value):
        value = bytes(value)
    if not isinstance(value, bytes):
        raise RemoteProtocolError(f"{key} is not bytes")
    return value


def address_to_bytes(address: str) -> bytes:
    """4 or 16 bytes of an IP address; b'' for none."""
    if not address:
        return b""
    if ":" not in address:
        return bytes(int(part) for part in address.split("."))

    return ipaddress.ip_address(address).packed


def address_from_bytes(packed: bytes) -> str:
    """An IP address; IPv4-mapped ones come out as IPv4."""
    if len(packed) == 16 and packed[:12] == b"\0" * 10 + b"\xff\xff":
        packed = packed[12:]
    if len(packed) == 4:
        return f"{packed[0]}.{packed[1]}.{packed[2]}.{packed[3]}"
    if len(packed) == 16:
        return str(ipaddress.IPv6Address(packed))
    if packed:
        raise RemoteProtocolError(f"an address of {len(packed)} bytes")
    return ""


# single messages


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


# datagrams


def compound(parts: list[bytes]) -> bytes:
    """Several messages as one; a single one stays as it is. At most 255."""
    if len(parts) == 1:
        return parts[0]
    lengths = b"".join(struct.pack(">H", len(part)) for part in parts)
    return bytes([COMPOUND, len(parts)]) + lengths + b"".join(parts)


def compressed(plain: bytes) -> bytes:
    """A compressed message."""
    return bytes([COMPRESS]) + pack({"Algo": 0, "Buf": lzw.compress(plain)})


def with_crc(message: bytes) -> bytes:
    """A message behind its CRC-32."""
    return bytes([HAS_CRC]) + struct.pack(">I", zlib.crc32(message)) + message


class Codec:
    """The outer layers of one pool: compression, CRC, encryption, label."""

    def __init__(
        self,
        keyring: Keyring | None,
        random_bytes: Callable[[int], bytes],
        *,
        label: str = "",
        compression: bool = True,
        compress_datagrams: bool = False,
    ) -> None:
        """Both ways are always understood. Compressing a datagram costs more CPU than all the rest of the way; a stream is long enough to be worth it."""
        self.keyring = keyring
        self._random_bytes = random_bytes
        self._label = label.encode()
        self._compression = compression
        self._compress_datagrams = compress_datagrams

    # datagrams

    def encode_packet(self, parts: list[bytes], *, crc: bool = False) -> bytes:
        """A datagram of encoded messages."""
        plain = compound(parts)
        if self._compress_datagrams:
            smaller = compressed(plain)
            plain = smaller if len(smaller) < len(plain) else plain
        if crc:
            plain = with_crc(plain)
        if self.keyring is not None:
            plain = self.keyring.encrypt(plain, self._label, self._random_bytes)
        return self._label_header() + plain

    def decode_packet(self, datagram: bytes) -> list[Message]:
        """The messages of a datagram; RemoteProtocolError if it is junk or not for this pool."""
        block = self._strip_label(datagram)
        if self.keyring is not None:
            block = self.keyring.decrypt(block, self._label)
        try:
            return list(_messages(block, 0, _Room()))
        except _Incomplete:
            raise RemoteProtocolError("message cut short") from None

    def _label_header(self) -> bytes:
        return bytes([HAS_LABEL, len(self._label)]) + self._label if self._label else b""

    def _strip_label(self, block: bytes) -> bytes:
        found = b""
        if block[:1] == bytes([HAS_LABEL]):
            if len(block) < 2 or not block[1] or len(block) < 2 + block[1]:
                raise RemoteProtocolError("broken label header")
            found, block = block[2 : 2 + block[1]], block[2 + block[1] :]
        if found != self._label:
            raise RemoteProtocolError(f"message for label {found!r}, not {self._label!r}")
        if not block:
            raise RemoteProtocolError("empty message")
        return block

    # streams

    def encode_stream(self, body: bytes) -> bytes:
        """All bytes that one side of a connection sends."""
        if self._compression:
            body = compressed(body)
        if self.keyring is not None:
            # version, nonce and tag are 29 bytes; the header is authenticated, so the length must be known before
            header = bytes([ENCRYPT]) + struct.pack(">I", len(body) + 29)
            body = header + self.keyring.encrypt(body, header + self._label, self._random_bytes)
        return self._label_header() + body

    def decode_stream(self, received: bytes) -> StreamMessage | None:
        """The message that one side sent, None while it is not there in full; RemoteProtocolError for junk."""
        if not received:
            return None
        if received[0] == HAS_LABEL and (len(received) < 2 or len(received) <= 2 + received[1]):
            return None
        block = self._strip_label(received)
        if self.keyring is not None:
            opened = self._open_stream(block)
            if opened is None:
                return None
            block = opened
        elif block[0] == ENCRYPT:
            raise RemoteProtocolError("the peer encrypts and this pool does not")
        try:
            return _stream_message(block)
        except _Incomplete:
            if self.keyring is not None:
                raise RemoteProtocolError("message cut short") from None
            return None

    def least_stream_bytes(self, received: bytes | bytearray) -> int:
        """At least so many bytes has the message that begins with these: until then there is no use in decoding."""
        at = 2 + received[1] if received[0] == HAS_LABEL and len(received) > 1 else 0
        if self.keyring is None or len(received) < at + 5 or received[at] != ENCRYPT:
            return len(received) + 1
        return at + 5 + int(struct.unpack_from(">I", received, at + 1)[0])

    def _open_stream(self, block: bytes) -> bytes | None:
        if block[0] != ENCRYPT:
            raise RemoteProtocolError("the peer does not encrypt and this pool does")
        if len(block) < 5:
            return None
        (length,) = struct.unpack_from(">I", block, 1)
        if length > MAX_STREAM:
            raise RemoteProtocolError(f"encrypted message of {length} bytes")
        if len(block) < 5 + length:
            return None
        assert self.keyring is not None
        return self.keyring.decrypt(block[5 : 5 + length], block[:5] + self._label)


@dataclass(slots=True)
class _Room:
    """How much one datagram may still unfold to, however it is nested."""

    inflated: int = _MAX_DATAGRAM
    messages: int = _MAX_MESSAGES

    def take(self, inflated: int, messages: int) -> None:
        self.inflated -= inflated
        self.messages -= messages
        if self.inflated < 0 or self.messages < 0:
            raise RemoteProtocolError("a datagram unfolds to more than it may hold")


def _messages(block: bytes, depth: int, room: _Room) -> Iterable[Message]:
    if not block or depth > _MAX_DEPTH:
        raise RemoteProtocolError("empty or nested too deeply")
    kind = block[0]
    if kind == COMPOUND:
        for part in _parts(block):
            room.take(0, 1)
            yield from _messages(part, depth + 1, room)
    elif kind == COMPRESS:
        plain = _inflate(unpack(block[1:]), room.inflated)
        room.take(len(plain), 1)
        yield from _messages(plain, depth + 1, room)
    elif kind == HAS_CRC:
        if len(block) < 6 or struct.unpack_from(">I", block, 1)[0] != zlib.crc32(block[5:]):
            raise RemoteProtocolError("wrong checksum")
        yield from _messages(block[5:], depth + 1, room)
    elif kind == USER:
        yield User(block[1:])
    elif len(block) <= _REPEATED_BYTES:
        yield _decode_repeated(block)
    else:
        yield _decode_single(block)


def _decode_single(block: bytes) -> Message:
    decoder = _DECODERS.get(block[0])
    if decoder is None:
        raise RemoteProtocolError(f"unknown message type {block[0]}")
    return decoder(unpack(block[1:]))


# Gossip brings the same few messages again and again.
_decode_repeated = lru_cache(maxsize=1024)(_decode_single)


def _parts(block: bytes) -> Iterable[bytes]:
    """The parts of a compound message; of a truncated one, those that are whole."""
    if len(block) < 2 or len(block) < 2 + 2 * block[1]:
        raise RemoteProtocolError("broken compound message")
    lengths = struct.unpack_from(f">{block[1]}H", block, 2)
    at = 2 + 2 * len(lengths)
    for length in lengths:
        if at + length > len(block):
            return
        yield block[at : at + length]
        at += length


def _inflate(fields: dict[str, Any], limit: int) -> bytes:
    if number(fields, "Algo") != 0:
        raise RemoteProtocolError("unknown compression")
    return lzw.decompress(raw(fields, "Buf"), limit)


# stream messages


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


def encode_user_stream(payload: bytes) -> bytes:
    """A message of the layer above, over TCP."""
    return bytes([USER]) + pack({"UserMsgLen": len(payload)}) + payload


def encode_error(reason: str) -> bytes:
    """Tell the peer that its request could not be read."""
    return bytes([ERROR]) + pack({"Error": reason})


def _stream_message(block: bytes) -> StreamMessage:
    kind = block[0]
    if kind == COMPRESS:
        fields = _Reader(block[1:]).map()
        # What nobody's state is compressed to is a bomb.
        block = _inflate(fields, min(MAX_DECOMPRESSED, max(_MAX_DATAGRAM, _MAX_RATIO * len(block))))
        if not block:
            raise RemoteProtocolError("empty message")
        kind = block[0]
    reader = _Reader(block[1:])
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
        raise _Incomplete
    return block[at : at + length]


def _decode_push_pull(header: dict[str, Any], reader: _Reader, block: bytes) -> PushPull:
    count = number(header, "Nodes", MAX_NODES)
    entries = tuple(_decode_entry(reader.map()) for _ in range(count))
    return PushPull(
        entries,
        _tail(block, 1 + reader.position, number(header, "UserStateLen", MAX_USER_STATE)),
        bool(header.get("Join")),
    )


def _node_name(f: dict[str, Any]) -> str:
    name = text(f, "Name")
    if not name:
        raise RemoteProtocolError("a node without a name")
    return name


def _decode_entry(f: dict[str, Any]) -> StateEntry:
    return StateEntry(
        _node_name(f),
        address_from_bytes(raw(f, "Addr")),
        port(f, "Port"),
        raw(f, "Meta"),
        number(f, "Incarnation"),
        number(f, "State"),
        tuple(raw(f, "Vsn")),
    )
