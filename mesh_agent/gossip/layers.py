"""The outer layers of gossip: what is wrapped around the messages of a datagram or a stream. Pure.

A datagram is built from the inside out: message(s), compound, compression, CRC, encryption, label. A stream has no CRC, and its encryption carries a
length. A receiver takes any of the layers or none, but encryption: that and the label are the same for the whole pool. What a stranger's bytes may
unfold to is bounded at every step.
"""

import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mesh_agent.errors import RemoteProtocolError
from mesh_agent.gossip import lzw, wire
from mesh_agent.gossip.fields import Incomplete, MapReader, number, pack, raw, unpack
from mesh_agent.gossip.keyring import OVERHEAD, Keyring
from mesh_agent.gossip.wire import COMPOUND, COMPRESS, ENCRYPT, HAS_CRC, HAS_LABEL, Message, StreamMessage

MAX_DECOMPRESSED = 40 * 1024 * 1024
MAX_STREAM = 64 * 1024 * 1024
_MAX_DEPTH = 8
_MAX_MESSAGES = 1024
_MAX_DATAGRAM = 256 * 1024
_MAX_RATIO = 64


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
        except Incomplete:
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
            # The header is authenticated, so the length must be known before.
            header = bytes([ENCRYPT]) + struct.pack(">I", len(body) + OVERHEAD)
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
            opened = self._open_stream(self.keyring, block)
            if opened is None:
                return None
            block = opened
        elif block[0] == ENCRYPT:
            raise RemoteProtocolError("the peer encrypts and this pool does not")
        try:
            return wire.decode_stream(_inflated_stream(block))
        except Incomplete:
            if self.keyring is not None:
                raise RemoteProtocolError("message cut short") from None
            return None

    def least_stream_bytes(self, received: bytes | bytearray) -> int:
        """At least so many bytes has the message that begins with these: until then there is no use in decoding."""
        at = 2 + received[1] if received[0] == HAS_LABEL and len(received) > 1 else 0
        if self.keyring is None or len(received) < at + 5 or received[at] != ENCRYPT:
            return len(received) + 1
        return at + 5 + int(struct.unpack_from(">I", received, at + 1)[0])

    def _open_stream(self, keyring: Keyring, block: bytes) -> bytes | None:
        if block[0] != ENCRYPT:
            raise RemoteProtocolError("the peer does not encrypt and this pool does")
        if len(block) < 5:
            return None
        (length,) = struct.unpack_from(">I", block, 1)
        if length > MAX_STREAM:
            raise RemoteProtocolError(f"encrypted message of {length} bytes")
        if len(block) < 5 + length:
            return None
        return keyring.decrypt(block[5 : 5 + length], block[:5] + self._label)


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
    else:
        yield wire.decode(block)


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


def _inflated_stream(block: bytes) -> bytes:
    if block[0] != COMPRESS:
        return block
    # What nobody's state is compressed to is a bomb.
    limit = min(MAX_DECOMPRESSED, max(_MAX_DATAGRAM, _MAX_RATIO * len(block)))
    plain = _inflate(MapReader(block[1:]).map(), limit)
    if not plain:
        raise RemoteProtocolError("empty message")
    return plain
