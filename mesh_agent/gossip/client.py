"""The way to another agent: its addresses, one request over a fresh connection, and one message read from a stream."""

import asyncio
import socket
from collections.abc import Iterable

from mesh_agent.errors import InvalidRequest, RemoteProtocolError
from mesh_agent.gossip.effects import Address, Exchange
from mesh_agent.gossip.layers import Codec
from mesh_agent.gossip.wire import StreamMessage

_MAX_STREAM_BYTES = 40 * 1024 * 1024
_LONG_BYTES = 256 * 1024
_READ_BYTES = 64 * 1024
_LULL_S = 0.02


async def exchange(codec: Codec, wanted: Exchange) -> StreamMessage | None:
    """The answer, None if the peer closes without one. OSError, TimeoutError or RemoteProtocolError if it goes wrong."""
    async with asyncio.timeout(wanted.timeout_s):
        reader, writer = await asyncio.open_connection(*wanted.to)
        try:
            writer.write(codec.encode_stream(wanted.request))
            await writer.drain()
            return await read_message(codec, reader)
        finally:
            # All has been said, or the peer is stuck: what it has not taken it does not get.
            writer.transport.abort()


async def read_message(codec: Codec, reader: asyncio.StreamReader) -> StreamMessage | None:
    """One message. It is decoded when all of it can be there: of an encrypted one the length is known, of a long plain one when nothing more comes."""
    received, least = bytearray(), 1
    while True:
        part, lull = b"", False
        try:
            async with asyncio.timeout(_LULL_S if len(received) > _LONG_BYTES else None):
                part = await reader.read(_READ_BYTES)
        except TimeoutError:
            lull = True
        received += part
        if len(received) > _MAX_STREAM_BYTES:
            raise RemoteProtocolError(f"a stream of more than {_MAX_STREAM_BYTES} bytes")
        if part and (len(received) < least or (codec.keyring is None and len(received) > _LONG_BYTES)):
            continue
        message = codec.decode_stream(bytes(received)) if len(received) >= least else None
        if message is not None or not (part or lull):
            return message
        least = codec.least_stream_bytes(received)


async def resolve(contacts: Iterable[str], default_port: int) -> tuple[list[Address], list[str]]:
    """All addresses of each `host[:port]`, once each, and what went wrong."""
    found: list[Address] = []
    errors: list[str] = []
    for contact in contacts:
        try:
            host, port = split_address(contact, default_port)
            resolved = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found += [(str(each[4][0]), int(each[4][1])) for each in resolved]
        # UnicodeError: a name with an empty or an endless label.
        except (OSError, UnicodeError, InvalidRequest) as error:
            errors.append(f"{contact}: {error}")
    return list(dict.fromkeys(found)), errors


def split_address(address: str, default_port: int) -> tuple[str, int]:
    """`host`, `host:port`, `[v6]:port` or a bare v6 address; InvalidRequest otherwise."""
    host, port = address.strip(), ""
    if host.startswith("["):
        host, _, rest = host[1:].partition("]")
        port = rest.removeprefix(":")
    elif host.count(":") == 1:
        host, port = host.split(":")
    if not host or (port and not port.isdigit()) or int(port or 0) > 65535:
        raise InvalidRequest(f"{address!r} is not host or host:port")
    return host, int(port or default_port)
