"""HTTP/1.1 on asyncio and httptools: keep-alive, pipelining, limits, optional client certificates, upgrade to frames.

A handler that returns a Response is answered without a task; one that returns an awaitable gets a task, which ends when the client goes away.
Requests of one connection are answered in order, one at a time; a client that asks faster than it reads its answers is not read from until it has.
"""

import asyncio
import contextlib
import logging
import os
import ssl
from collections import deque
from collections.abc import Awaitable
from typing import Any, cast

import httptools

from mesh_agent.errors import MeshError
from mesh_agent.http.message import Answer, Handler, Peer, Request, Response, Upgrade, parse_target
from mesh_agent.http.stream.runner import FrameStream

__all__ = ["FrameStream", "HttpServer"]

log = logging.getLogger(__name__)

_MAX_HEADER_BYTES = 64 * 1024
_MAX_PIPELINED = 64
_MAX_LENGTH_DIGITS = 20
_IDLE_S = 120.0
_LINGER_S = 1.0
_COPY_BYTES = 8 * 1024


class _Connection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._peer = Peer("")
        self._stream: FrameStream | None = None
        self._task: asyncio.Task[None] | None = None
        self._waiting: deque[tuple[Request, bool]] = deque()
        self._idle: asyncio.TimerHandle | None = None
        self._closing = False
        self._refused = False
        self._unread = False
        self._paused = False
        self._head_ended = False
        self._head_bytes = 0
        self._begin()

    def _begin(self) -> None:
        self._in_head = True
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0
        self._header_bytes = 0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        address = transport.get_extra_info("peername")
        host = str(address[0]) if isinstance(address, tuple) else "unix"
        self._peer = Peer(host, _spiffe_uri(transport.get_extra_info("ssl_object")))
        self._server.connections.add(self)
        self._server.drained.clear()
        self._watch_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        if not self._server.connections:
            self._server.drained.set()
        if self._idle is not None:
            self._idle.cancel()
        if self._stream is not None:
            self._stream.ended()
        elif self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.feed(data)
            return
        while data and not self._refused:
            rest = self._parse(data)
            if self._stream is not None and rest:
                self._stream.feed(rest)
                return
            data = rest  # an upgrade that nobody here speaks (h2c) was asked for: HTTP/1.1 goes on

    def _parse(self, data: bytes) -> bytes:
        """Feed the parser; returns what comes after a request for an upgrade."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            reason = error.__context__  # the parser wraps what its callbacks raise
            if isinstance(reason, _TooLarge):
                self._refuse(reason.status, str(reason))
            else:
                self._refuse(400, f"Bad request: {error}")
        else:
            self._watch_head(len(data))
        return b""

    def _watch_head(self, size: int) -> None:
        """The parser shows a header when it is whole: one without an end would only grow in there."""
        if self._head_ended or not self._in_head:
            self._head_ended, self._head_bytes = False, 0
            return
        self._head_bytes += size
        if self._head_bytes > _MAX_HEADER_BYTES:
            self._refuse(431, "Request headers too large")

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._unread = True
        if self._stream is not None:
            self._stream.pause_writing()

    def resume_writing(self) -> None:
        self._unread = False
        if self._stream is not None:
            self._stream.resume_writing()
        else:
            self._go_on()

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        self._url += url

    def _count_head(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > _MAX_HEADER_BYTES:
            raise _TooLarge(431, "Request headers too large")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_head, self._head_ended = False, True
        announced = self._headers.get("content-length", "0")  # digits: the parser has seen to that
        if len(announced) > _MAX_LENGTH_DIGITS or int(announced) > self._server.max_body_bytes:
            raise self._too_large()
        if self._headers.get("expect", "").lower() == "100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._server.max_body_bytes:
            raise self._too_large()
        self._body.append(body)

    def _too_large(self) -> "_TooLarge":
        return _TooLarge(413, f"Request body too large, max size: {self._server.max_body_bytes} bytes")

    def on_message_complete(self) -> None:
        path, query = parse_target(self._url.decode("latin-1"))
        request = Request(
            method=self._parser.get_method().decode("latin-1"),
            path=path,
            query=query,
            headers=self._headers,
            body=b"".join(self._body),
            peer=self._peer,
            target=self._url.decode("latin-1"),
        )
        keep = bool(self._parser.should_keep_alive())
        if self._task is None and not self._waiting and not self._unread:
            self._serve(request, keep)
            return
        self._waiting.append((request, keep))
        if len(self._waiting) >= _MAX_PIPELINED and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    # serving

    def _serve(self, request: Request, keep: bool) -> None:
        try:
            answer = self._server.handler(request)
        except Exception:
            answer = self._broken(request)
        if isinstance(answer, Response):
            self._write(request, answer, keep)
        elif isinstance(answer, Upgrade):
            self._upgrade(answer)
        else:
            self._task = asyncio.get_running_loop().create_task(self._finish(request, answer, keep))

    async def _finish(self, request: Request, pending: Awaitable[Answer], keep: bool) -> None:
        try:
            answer = await pending
        except asyncio.CancelledError:
            raise
        except Exception:
            answer = self._broken(request)
        self._task = None
        if isinstance(answer, Upgrade):
            self._upgrade(answer)
            return
        self._write(request, answer, keep)
        self._go_on()

    def _go_on(self) -> None:
        """Answer what waits, as far as the client reads."""
        while self._waiting and self._task is None and not self._unread and self._stream is None:
            self._serve(*self._waiting.popleft())
        if self._paused and self._transport is not None and len(self._waiting) < _MAX_PIPELINED:
            self._paused = False
            self._transport.resume_reading()

    def _broken(self, request: Request) -> Response:
        log.exception("request failed", extra={"method": request.method, "path": request.path})
        return Response.text(500, "Internal error; the agent's log says more")

    def _write(self, request: Request, response: Response, keep: bool) -> None:
        if self._transport is None or self._refused or self._transport.is_closing():
            self._waiting.clear()
            return
        close = not keep or self._closing
        without_body = request.method == "HEAD" or len(response.body) > _COPY_BYTES
        self._transport.write(response.encode(close=close, head=without_body))
        if without_body and request.method != "HEAD":
            self._transport.write(response.body)  # not copied: a thousand waiters may get the same
        if close:
            self._transport.close()
        else:
            self._watch_idle()

    def _upgrade(self, upgrade: Upgrade) -> None:
        if self._transport is None or self._refused or self._transport.is_closing():
            return
        if self._idle is not None:
            self._idle.cancel()
        self._waiting.clear()
        self._transport.write(
            f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {upgrade.protocol}\r\n\r\n".encode()
        )
        self._stream = FrameStream(self._transport)
        self._go_on()
        self._task = asyncio.get_running_loop().create_task(self._run_stream(upgrade, self._stream))

    async def _run_stream(self, upgrade: Upgrade, stream: FrameStream) -> None:
        try:
            await upgrade.on_stream(stream)
        except MeshError as error:
            log.info("a stream ended: %s", error)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("a stream failed")
        finally:
            stream.close()

    def _refuse(self, status: int, text: str) -> None:
        if self._transport is None or self._refused or self._transport.is_closing():
            return
        self._refused = True
        self._waiting.clear()
        self._transport.write(Response.text(status, text).encode(close=True))
        # Closing while the client still sends would reset the connection, and it would never read why.
        if self._transport.can_write_eof():  # TLS cannot
            self._transport.write_eof()
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(_LINGER_S, self._transport.abort)

    def _watch_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(self._server.idle_s, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self._transport is None:
            return
        if self._unread:  # it does not read what it asked for: waiting for that could take for ever
            self._transport.abort()
        elif self._task is None:
            self._transport.close()

    def shut(self, *, now: bool) -> None:
        """Close when nothing is in flight; with `now`, whatever is in flight."""
        self._closing = True
        if self._transport is None:
            return
        if now or self._task is None:
            self._transport.close()

    @property
    def streaming(self) -> bool:
        """Whether it was upgraded."""
        return self._stream is not None


class _TooLarge(Exception):
    """A limit was passed; raised inside parser callbacks, which httptools passes through."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class HttpServer:
    """Listens on TCP or unix sockets and hands requests to one handler."""

    def __init__(self, handler: Handler, *, max_body_bytes: int = 512 * 1024, idle_s: float = _IDLE_S) -> None:
        """`idle_s`: how long a connection may be silent between two requests, or within one."""
        self.handler = handler
        self.max_body_bytes = max_body_bytes
        self.idle_s = idle_s
        self.connections: set[_Connection] = set()
        self.drained = asyncio.Event()
        self.drained.set()
        self._servers: list[asyncio.Server] = []

    async def start(self, host: str, port: int, context: ssl.SSLContext | None = None) -> int:
        """Listen on TCP; returns the port (for port 0). MeshError with the reason if that cannot be."""
        try:
            server = await asyncio.get_running_loop().create_server(
                lambda: _Connection(self), host, port, ssl=context, reuse_address=True, backlog=1024
            )
        except OSError as error:
            raise MeshError(
                f"cannot listen on {host} port {port}: {error.strerror or error}; is another agent running?"
            ) from error
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def start_unix(self, path: str, mode: int) -> None:
        """Listen on a unix socket with file mode `mode`."""
        server = await asyncio.get_running_loop().create_unix_server(lambda: _Connection(self), path)
        os.chmod(path, mode)
        self._servers.append(server)

    async def stop(self, grace_s: float = 2.0) -> None:
        """Refuse new connections, finish what is in flight for at most `grace_s`, close."""
        for server in self._servers:
            server.close()
        for connection in tuple(self.connections):
            connection.shut(now=connection.streaming)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self.drained.wait()
        for connection in tuple(self.connections):
            connection.shut(now=True)
        self._servers.clear()


def _spiffe_uri(connection: Any) -> str | None:  # ssl.SSLObject or None; uvloop has a type of its own
    if connection is None:
        return None
    certificate = connection.getpeercert()
    uris = [value for kind, value in (certificate or {}).get("subjectAltName", ()) if kind == "URI"]
    return uris[0] if len(uris) == 1 else None
