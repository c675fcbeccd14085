"""Shell: DNS over UDP and TCP on one port. It moves bytes between sockets and the `Responder`, and waits where that cannot."""

import asyncio
import logging
import random
import socket
from collections.abc import Callable
from typing import cast

from mesh_agent.catalog.reader import CatalogReader
from mesh_agent.config import AgentConfig
from mesh_agent.dns.answer import Follow, NeedTopic, Recurse, Responder
from mesh_agent.dns.client import Recursor
from mesh_agent.errors import ConfigError, Unreachable

log = logging.getLogger(__name__)

_MAX_WAITING = 2048
"""Queries that wait for the catalog or a recursor at once; more are dropped, and their clients ask again."""
_MAX_CONNECTIONS = 512
_IDLE_S = 10.0
_MAX_TOPICS_PER_QUERY = 4
_MAX_ALIASES = 3
_BIND_ATTEMPTS = 20
_RECEIVE_BUFFER_BYTES = 2 * 1024 * 1024

Reply = Callable[[bytes], None]


class DnsServer:
    """Answers on `start`ed addresses until `stop`. One per agent."""

    def __init__(
        self, config: AgentConfig, catalog: CatalogReader, rng: random.Random, *, catalog_timeout_s: float = 2.0
    ) -> None:
        self.responder = Responder(config, catalog, rng)
        self._catalog = catalog
        self._catalog_timeout_s = catalog_timeout_s
        # Ids of forwarded queries guard against forged answers: they must not be guessable.
        self._recursor = Recursor(
            config.dns.recursors, timeout_s=config.dns.recursor_timeout_s, rng=random.SystemRandom()
        )
        self._datagrams: list[asyncio.DatagramTransport] = []
        self._streams: list[asyncio.Server] = []
        self._connections: set[_Connection] = set()
        self._waiting: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen on UDP and TCP; returns the port (that of both, also when 0 was asked for). ConfigError if it is not free."""
        loop = asyncio.get_running_loop()
        for attempt in range(_BIND_ATTEMPTS):
            datagrams = await _bind_udp(host, port)
            bound = int(datagrams.getsockname()[1])
            if (host, bound) in self._recursor.servers:
                datagrams.close()
                raise ConfigError(f"dns.recursors: {host} port {bound} is this agent itself; name another DNS server")
            try:
                stream = await loop.create_server(lambda: _Connection(self), host, bound)
            except OSError as error:
                datagrams.close()
                if port or attempt == _BIND_ATTEMPTS - 1:
                    raise ConfigError(f"ports.dns: cannot listen on {host} port {bound}/tcp: {error}") from error
                continue  # port 0 found a UDP port whose TCP twin is taken
            transport, _ = await loop.create_datagram_endpoint(lambda: _Udp(self), sock=datagrams)
            self._datagrams.append(transport)
            self._streams.append(stream)
            return bound
        raise AssertionError("unreachable")

    async def stop(self) -> None:
        """Close the sockets and drop what is still waiting."""
        for transport in self._datagrams:
            transport.close()
        for stream in self._streams:
            stream.close()
        for connection in tuple(self._connections):
            connection.abort()
        waiting = tuple(self._waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in self._streams:
            await stream.wait_closed()
        self._datagrams.clear()
        self._streams.clear()

    def adopt(self, connection: "_Connection") -> bool:
        """Count a new connection; False when there are too many."""
        if len(self._connections) >= _MAX_CONNECTIONS:
            return False
        self._connections.add(connection)
        return True

    def forget(self, connection: "_Connection") -> None:
        """A connection ended."""
        self._connections.discard(connection)

    def wait(self, query: bytes, *, tcp: bool, reply: Reply) -> bool:
        """Answer later; False when too many wait already."""
        if len(self._waiting) >= _MAX_WAITING:
            return False
        task = asyncio.ensure_future(self._answer_later(query, tcp, reply))
        self._waiting.add(task)
        task.add_done_callback(self._done)
        return True

    def _done(self, task: asyncio.Task[None]) -> None:
        self._waiting.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a DNS query was lost", exc_info=task.exception())

    async def _answer_later(self, query: bytes, tcp: bool, reply: Reply) -> None:
        answer = await self._resolve(query, tcp)
        if answer is not None:
            reply(answer)

    async def _resolve(self, query: bytes, tcp: bool, depth: int = 0) -> bytes | None:
        for _ in range(_MAX_TOPICS_PER_QUERY):
            outcome = self.responder.answer(query, tcp=tcp)
            if isinstance(outcome, Recurse):
                return await self._recurse(query, tcp)
            if isinstance(outcome, Follow):
                deeper = depth < _MAX_ALIASES
                found = await self._resolve(outcome.query, True, depth + 1) if deeper else None
                return self.responder.followed(query, outcome, found, tcp=tcp)
            if not isinstance(outcome, NeedTopic):
                return outcome
            try:
                await self._catalog.ensure(outcome.topic, self._catalog_timeout_s)
            except Unreachable as error:
                return self.responder.unreachable(query, outcome.topic, str(error), tcp=tcp)
        return self.responder.failed(query, "the catalog comes and goes; ask again")

    async def _recurse(self, query: bytes, tcp: bool) -> bytes:
        try:
            return await self._recursor.ask(query, tcp=tcp)
        except Unreachable as error:
            return self.responder.failed(query, str(error))


async def _bind_udp(host: str, port: int) -> socket.socket:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        family, _, _, _, address = found[0]
        bound = socket.socket(family, socket.SOCK_DGRAM)
        try:
            bound.setblocking(False)
            # A burst while the loop is busy must wait, not be lost; the kernel cuts this to net.core.rmem_max.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise ConfigError(f"ports.dns: cannot listen on {host} port {port}/udp: {error}") from error
    return bound


class _Udp(asyncio.DatagramProtocol):
    """One UDP socket. The hot path of the whole server is `datagram_received`."""

    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._answer = server.responder.answer
        self._send: Callable[[bytes, tuple[str, int]], None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._send = cast("asyncio.DatagramTransport", transport).sendto

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._answer(data)
        if type(answer) is bytes:
            self._send(answer, addr)
        elif answer is not None:
            self._server.wait(data, tcp=False, reply=lambda late: self._send(late, addr))

    def error_received(self, exc: Exception) -> None:
        log.debug("a DNS client cannot be reached: %s", exc)


class _Connection(asyncio.Protocol):
    """One TCP client: queries with a length in front, pipelined, answered in the order in which the answers are ready (RFC 7766)."""

    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.Transport
        self._buffer = b""
        self._paused = False
        self._open = 0
        self._at_end = False
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if not self._server.adopt(self):
            self._transport.abort()
            return
        self._rearm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.forget(self)
        if self._deadline is not None:
            self._deadline.cancel()

    def abort(self) -> None:
        """Close without waiting for the peer."""
        self._transport.abort()

    def pause_writing(self) -> None:
        self._paused = True  # who does not take answers may not ask more
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        self._transport.resume_reading()
        self._serve()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._serve()

    def eof_received(self) -> bool:
        self._at_end = True
        return self._open > 0 or self._paused  # answers may still be under way

    def _serve(self) -> None:
        at = 0
        while len(self._buffer) >= at + 2 and not self._paused and not self._transport.is_closing():
            end = at + 2 + int.from_bytes(self._buffer[at : at + 2], "big")
            if len(self._buffer) < end:
                break
            self._rearm()
            self._answer(self._buffer[at + 2 : end])
            at = end
        self._buffer = self._buffer[at:]

    def _answer(self, query: bytes) -> None:
        answer = self._server.responder.answer(query, tcp=True)
        if type(answer) is bytes:
            self._write(answer)
        elif answer is None:
            self._transport.abort()
        elif self._server.wait(query, tcp=True, reply=self._write_late):
            self._open += 1

    def _write_late(self, answer: bytes) -> None:
        self._open -= 1
        if not self._transport.is_closing():
            self._write(answer)
            if self._at_end and not self._open:
                self._transport.close()

    def _write(self, answer: bytes) -> None:
        self._transport.write(len(answer).to_bytes(2, "big") + answer)

    def _rearm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(_IDLE_S, self._transport.abort)
