"""DNS wire format, the small strict part that a server of two zones needs (RFC 1035, 3596, 2782, 6891, 7871, 8914).

Queries are parsed strictly: one question, no compression in it, at most one OPT, nothing behind the last record. Answers are built from
position-independent records: an owner is a pointer to the question (offset 12), other names are whole or end in a pointer to the zone's name
inside the question, so a record may stand anywhere in a message whose question has the same length. Additional records alone point to answers.
Numbers are assigned by IANA: they are the protocol, never change one.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from mesh_agent.errors import RemoteProtocolError

HEADER_BYTES: Final = 12
UDP_BYTES: Final = 512
"""What every DNS client accepts over UDP (RFC 1035, 4.2.1)."""
UDP_RECEIVE_BYTES: Final = 1232
"""What we tell peers to send us: fits an IPv6 path of 1280 bytes without fragments (DNS flag day 2020)."""
UDP_SEND_BYTES: Final = 4096
"""More than this is never sent in one datagram, whatever a client offers to take."""
TCP_BYTES: Final = 65535

A: Final = 1
NS: Final = 2
CNAME: Final = 5
SOA: Final = 6
PTR: Final = 12
TXT: Final = 16
AAAA: Final = 28
SRV: Final = 33
OPT: Final = 41
IXFR: Final = 251
AXFR: Final = 252
ANY: Final = 255
TYPE_NAMES: Final = {
    A: "A", NS: "NS", CNAME: "CNAME", SOA: "SOA", PTR: "PTR", TXT: "TXT", AAAA: "AAAA", SRV: "SRV", IXFR: "IXFR", AXFR: "AXFR", ANY: "ANY",
}  # fmt: skip

IN: Final = 1
CLASS_ANY: Final = 255

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
BADVERS: Final = 16
RCODE_NAMES: Final = {
    NOERROR: "NOERROR", FORMERR: "FORMERR", SERVFAIL: "SERVFAIL", NXDOMAIN: "NXDOMAIN", NOTIMP: "NOTIMP", REFUSED: "REFUSED", BADVERS: "BADVERS",
}  # fmt: skip

QR: Final = 0x8000
OPCODE: Final = 0x7800
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
CD: Final = 0x0010

OPTION_CLIENT_SUBNET: Final = 8
OPTION_ERROR: Final = 15
EDE_NOT_AUTHORITATIVE: Final = 20
EDE_NOT_SUPPORTED: Final = 21
EDE_NO_REACHABLE_AUTHORITY: Final = 22

OWNER: Final = b"\xc0\x0c"
"""A pointer to the question's name."""

POINTER_LIMIT: Final = 0x4000
"""Names from here on cannot be pointed to."""

_DO: Final = 0x8000
_HEADER = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")
_OPT = struct.Struct("!BHHIH")
_TWO = struct.Struct("!HH")
_THREE = struct.Struct("!HHH")
_MAX_NAME_BYTES: Final = 255
_MAX_LABEL_BYTES: Final = 63


class Malformed(RemoteProtocolError):
    """The query is not a DNS message that can be answered otherwise than by FORMERR; nothing was kept of it."""


class Edns(NamedTuple):
    """The OPT record of a query: the datagram size the client takes, its flags and options."""

    size: int
    version: int
    dnssec_ok: bool
    options: tuple[tuple[int, bytes], ...]


class Query(NamedTuple):
    """A parsed query. `question` is the bytes of the question section as asked; `labels` is its name in lower case, root excluded."""

    id: int
    flags: int
    question: bytes
    labels: tuple[bytes, ...]
    qtype: int
    qclass: int
    edns: Edns | None


def parse_query(data: bytes) -> Query:
    """The query in `data`, whose header was looked at already (at least 12 bytes, QR clear, opcode QUERY); raises Malformed."""
    ident, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(data)
    if questions != 1 or answers or authorities:
        raise Malformed("a query has exactly one question and neither answers nor authorities")
    labels, at = _parse_name(data, HEADER_BYTES)
    if len(data) < at + 4:
        raise Malformed("the question is cut off")
    qtype, qclass = _TWO.unpack_from(data, at)
    at += 4
    question = data[HEADER_BYTES:at]
    edns: Edns | None = None
    for _ in range(additionals):
        found, at = _parse_additional(data, at)
        if found is not None:
            if edns is not None:
                raise Malformed("two OPT records")
            edns = found
    if at != len(data):
        raise Malformed("bytes behind the last record")
    return Query(ident, flags, question, labels, qtype, qclass, edns)


def _parse_name(data: bytes, at: int) -> tuple[tuple[bytes, ...], int]:
    """The lower-case labels of an uncompressed name, and where it ends."""
    labels: list[bytes] = []
    start = at
    while True:
        if at >= len(data):
            raise Malformed("a name is cut off")
        size = data[at]
        at += 1
        if size == 0:
            return tuple(labels), at
        if size > _MAX_LABEL_BYTES:
            raise Malformed("a compressed or unknown label in a question")
        at += size
        if at - start >= _MAX_NAME_BYTES:
            raise Malformed("a name of more than 255 bytes")
        labels.append(data[at - size : at].lower())


def _parse_additional(data: bytes, at: int) -> tuple[Edns | None, int]:
    """One record of the additional section: OPT, or anything else (TSIG, SIG(0)), which is skipped."""
    root = data[at : at + 1] == b"\0"
    at = skip_name(data, at)
    if len(data) < at + _RECORD.size:
        raise Malformed("an additional record is cut off")
    rtype, size, ttl, length = _RECORD.unpack_from(data, at)
    at += _RECORD.size
    rdata = data[at : at + length]
    if len(rdata) != length:
        raise Malformed("an additional record is cut off")
    if rtype != OPT:
        return None, at + length
    if not root:
        raise Malformed("the owner of an OPT record is the root")
    return Edns(size, ttl >> 16 & 0xFF, bool(ttl & _DO), _parse_options(rdata)), at + length


def skip_name(data: bytes, at: int) -> int:
    """Where the name at `at`, compressed or not, ends; raises Malformed."""
    while at < len(data):
        size = data[at]
        if size >= 0xC0:
            return at + 2
        at += 1 + size
        if size == 0:
            return at
    raise Malformed("a name is cut off")


def _parse_options(rdata: bytes) -> tuple[tuple[int, bytes], ...]:
    options: list[tuple[int, bytes]] = []
    at = 0
    while at < len(rdata):
        if len(rdata) < at + 4:
            raise Malformed("an EDNS option is cut off")
        code, length = _TWO.unpack_from(rdata, at)
        at += 4
        value = rdata[at : at + length]
        if len(value) != length:
            raise Malformed("an EDNS option is cut off")
        options.append((code, value))
        at += length
    return tuple(options)


def encode_labels(labels: Sequence[str]) -> bytes:
    """Labels without the final root, so that a zone or a pointer can follow. ValueError if one cannot stand in a name."""
    encoded = bytearray()
    for label in labels:
        raw = label.encode()
        if not 0 < len(raw) <= _MAX_LABEL_BYTES:
            raise ValueError(f"{label!r} cannot be a label of a domain name (1-63 bytes)")
        encoded.append(len(raw))
        encoded += raw
    if len(encoded) >= _MAX_NAME_BYTES:
        raise ValueError("a domain name has at most 255 bytes")
    return bytes(encoded)


def encode_name(name: str) -> bytes:
    """A full name from its text form (no escapes), trailing dot or not. ValueError if it is not a domain name."""
    stripped = name.rstrip(".")
    return encode_labels(stripped.split(".") if stripped else ()) + b"\0"


def pointer(offset: int) -> bytes:
    """A compression pointer to `offset` in the message, which must be below `POINTER_LIMIT`."""
    return (0xC000 | offset).to_bytes(2, "big")


def record(owner: bytes, rtype: int, ttl_s: int, rdata: bytes) -> bytes:
    """A resource record of class IN."""
    return owner + body(rtype, ttl_s, rdata)


def body(rtype: int, ttl_s: int, rdata: bytes) -> bytes:
    """A resource record of class IN without its owner."""
    return _RECORD.pack(rtype, IN, ttl_s, len(rdata)) + rdata


def cname_target(answer: bytes) -> bytes:
    """The target of a CNAME record that `record` made with `OWNER`."""
    return answer[len(OWNER) + _RECORD.size :]


def srv_rdata(priority: int, weight: int, port: int, target: bytes) -> bytes:
    """RDATA of SRV (RFC 2782); `target` is an encoded name."""
    return _THREE.pack(priority, weight, port) + target


def txt_rdata(text: str) -> bytes:
    """RDATA of TXT: the text in strings of at most 255 bytes."""
    raw = text.encode()
    parts = [raw[at : at + 255] for at in range(0, len(raw), 255)] or [b""]
    return b"".join(bytes((len(part),)) + part for part in parts)


def soa_rdata(primary: bytes, mailbox: bytes, serial: int, minimum_s: int) -> bytes:
    """RDATA of SOA with Consul's timers; `primary` and `mailbox` are encoded names."""
    return primary + mailbox + struct.pack("!5I", serial & 0xFFFFFFFF, 3600, 600, 86400, minimum_s)


def opt_record(rcode: int, *, dnssec_ok: bool, options: Sequence[tuple[int, bytes]]) -> bytes:
    """The OPT record of an answer; `rcode` is the full one, its upper bits travel here."""
    rdata = b"".join(_TWO.pack(code, len(value)) + value for code, value in options)
    return _OPT.pack(0, OPT, UDP_RECEIVE_BYTES, (rcode >> 4) << 24 | (_DO if dnssec_ok else 0), len(rdata)) + rdata


def extended_error(code: int, text: str) -> tuple[int, bytes]:
    """An extended DNS error (RFC 8914) as an EDNS option; long texts are cut, so that a refusal always fits."""
    return OPTION_ERROR, code.to_bytes(2, "big") + text.encode()[:160]


def echo_client_subnet(value: bytes) -> bytes:
    """The client subnet option of an answer that does not depend on it: the same prefix with scope 0 (RFC 7871, 7.2.1)."""
    if len(value) < 4 or int.from_bytes(value[:2], "big") not in (1, 2):
        raise Malformed("a malformed client subnet option")
    longest = 32 if value[1] == 1 else 128
    if value[2] > longest or len(value) != 4 + (value[2] + 7) // 8:
        raise Malformed("a malformed client subnet option")
    return value[:3] + b"\0" + value[4:]


def header(ident: int, flags: int, counts: tuple[int, int, int, int]) -> bytes:
    """A message header; counts are those of the question, answer, authority and additional sections."""
    return _HEADER.pack(ident, flags, *counts)
