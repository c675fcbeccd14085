"""Aliases: an instance registered with a host name is answered by CNAME, and a stub resolver expects the addresses behind it as well.

The target is asked like any client's question (it may be a name of ours or a recursor's); from its answer the addresses are taken and
put under the target's name, which shortens a chain of further CNAMEs to its end.
"""

import struct
from collections.abc import Iterator

from mesh_agent.dns import wire

_FIXED = struct.Struct("!HHIH")


def target_query(target: bytes, qtype: int, ident: int) -> bytes:
    """The query for `target` (an encoded name), with recursion desired."""
    return wire.header(ident, wire.RD, (1, 0, 0, 0)) + target + struct.pack("!HH", qtype, wire.IN)


def addresses(answer: bytes, qtype: int) -> Iterator[tuple[int, bytes]]:
    """(TTL, RDATA) of every record of `qtype` in the answer section; stops without complaint where the message is broken."""
    try:
        questions, count = struct.unpack_from("!HH", answer, 4)
        at = wire.HEADER_BYTES
        for _ in range(questions):
            at = wire.skip_name(answer, at) + 4
        for _ in range(count):
            at = wire.skip_name(answer, at)
            rtype, rclass, ttl_s, length = _FIXED.unpack_from(answer, at)
            at += _FIXED.size
            rdata = answer[at : at + length]
            at += length
            if rtype == qtype and rclass == wire.IN and len(rdata) == (4 if qtype == wire.A else 16):
                yield ttl_s, rdata
    except (struct.error, wire.Malformed):
        return
