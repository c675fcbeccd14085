"""The sockets of a pool: UDP and TCP on one port. They move bytes between the network and the machine, and count what is junk."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

from mesh_agent.clock import Clock
from mesh_agent.errors import MeshError, RemoteProtocolError
from mesh_agent.gossip.client import exchange, read_message
from mesh_agent.gossip.effects import Address, Exchange, SendPacket
from mesh_agent.gossip.layers import Codec
from mesh_agent.gossip.swim import Swim
from mesh_agent.gossip.wire import StreamMessage, encode_error
from mesh_agent.telemetry import Metrics

log = logging.getLogger(__name__)

_SOCKET_BUFFER_BYTES = 2 * 1024 * 1024
_STREAMS = 128
_PORT_TRIES = 20


class Sockets:
    """Call `bind`, then `serve`, and `close` last. What comes before `serve` or after `close` is turned away."""

    def __init__(
        self,
        codec: Codec,
        clock: Clock,
        metrics: Metrics,
        *,
        stream_timeout_s: float,
        settle: Callable[[], None],
        warn: Callable[[str], None],
    ) -> None:
        """`settle` is called after each input to the machine; `warn` is told of junk."""
        self._codec, self._clock, self._metrics = codec, clock, metrics
        self._stream_timeout_s = stream_timeout_s
        self._settle, self._warn = settle, warn
        self._swim: Swim | None = None
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._streams = 0

    async def bind(self, address: str, port: int) -> int:
        """The port: with 0 any that is free for both UDP and TCP. MeshError with the reason if it cannot be had."""
        try:
            return await self._bind(address, port)
        except OSError as error:
            reason = error.strerror or str(error)
            raise MeshError(f"gossip cannot use {address} port {port}: {reason}; is another agent running?") from error

    async def _bind(self, address: str, port: int) -> int:
        loop = asyncio.get_running_loop()
        for _ in range(_PORT_TRIES):
            self._tcp = await asyncio.start_server(self._on_connection, address, port, backlog=_STREAMS)
            bound = int(self._tcp.sockets[0].getsockname()[1])
            try:
                self._udp, _ = await loop.create_datagram_endpoint(
                    lambda: _Datagrams(self._on_datagram), local_addr=(address, bound)
                )
            except OSError:
                self._tcp.close()
                if port:
                    raise
            else:
                udp = self._udp.get_extra_info("socket")
                udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
                return bound
        raise OSError(f"no port of {address} is free for both UDP and TCP")

    def serve(self, swim: Swim) -> None:
        """From now on what comes is for this machine."""
        self._swim = swim

    def close(self) -> None:
        """Fall silent; streams that are open end by themselves."""
        self._swim = None
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()

    # datagrams

    def send(self, packet: SendPacket) -> None:
        """One datagram."""
        if self._udp is None or self._udp.is_closing():
            return
        datagram = self._codec.encode_packet(list(packet.parts), crc=packet.crc)
        self._metrics.count("mesh_gossip_sent_bytes_total", len(datagram))
        # An unreachable network is what gossip is there to find out: the loss of a packet is no error.
        with contextlib.suppress(OSError):
            self._udp.sendto(datagram, packet.to)

    def _on_datagram(self, datagram: bytes, sender: Address) -> None:
        if self._swim is None:
            return
        now = self._clock.now()
        self._metrics.count("mesh_gossip_received_bytes_total", len(datagram))
        try:
            messages = self._codec.decode_packet(datagram)
        except RemoteProtocolError as error:
            self._drop(f"packet of {sender[0]}:{sender[1]}", error)
            return
        for message in messages:
            try:
                self._swim.receive(message, sender, now)
            except RemoteProtocolError as error:  # the other messages of the packet may be good
                self._drop(f"packet of {sender[0]}:{sender[1]}", error)
        self._settle()

    # streams

    async def exchange(self, wanted: Exchange) -> None:
        """A request, and its answer for the machine."""
        answer: StreamMessage | None = None
        to = f"{wanted.to[0]}:{wanted.to[1]}"
        try:
            answer = await exchange(self._codec, wanted)
        except (OSError, TimeoutError) as error:
            log.debug("no exchange with %s: %s", to, error or "timeout")
        except RemoteProtocolError as error:
            self._warn(f"exchange with {to} failed: {error}")
        if self._swim is not None:
            with self._junk_from(f"stream of {wanted.to[0]}"):
                self._swim.reply(wanted.token, answer, self._clock.now())
            self._settle()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._streams >= _STREAMS or self._swim is None:
            writer.transport.abort()
            return
        self._streams += 1
        peer = (writer.get_extra_info("peername") or ("?",))[0]
        try:
            with self._junk_from(f"stream of {peer}"):
                async with asyncio.timeout(self._stream_timeout_s):
                    await self._answer(self._swim, reader, writer)
        except (OSError, TimeoutError) as error:
            log.debug("a stream of %s broke off: %s", peer, error or "timeout")
            writer.transport.abort()
        finally:
            self._streams -= 1
            writer.close()
            self._settle()

    async def _answer(self, swim: Swim, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await read_message(self._codec, reader)
        except RemoteProtocolError as error:
            writer.write(self._codec.encode_stream(encode_error(str(error))))
            await writer.drain()
            raise
        if request is None:
            return
        answer = swim.answer(request)
        if answer is not None:
            writer.write(self._codec.encode_stream(answer))
            await writer.drain()
        swim.accept(request, self._clock.now())

    @contextlib.contextmanager
    def _junk_from(self, source: str) -> Iterator[None]:
        try:
            yield
        except RemoteProtocolError as error:
            self._drop(source, error)

    def _drop(self, source: str, error: RemoteProtocolError) -> None:
        self._metrics.count("mesh_gossip_junk_total", 1)
        self._warn(f"a {source} is dropped: {error}")


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, on_datagram: Callable[[bytes, Address], None]) -> None:
        self._on_datagram = on_datagram

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:  # asyncio's own type
        self._on_datagram(data, (str(addr[0]), int(addr[1])))
