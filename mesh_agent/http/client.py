"""A small HTTP/1.1 client: keep-alive connections per target, TLS, unix sockets, deadlines, upgrade to frames.

Every failure to get an answer is `Unreachable` with the reason. An idle connection that the server closed in the meantime is replaced once, silently.
"""

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

from mesh_agent.errors import Unreachable
from mesh_agent.http.message import Response
from mesh_agent.http.server import FrameStream

_MAX_IDLE = 8
_GOODBYE_S = 0.5
_MAX_BODY_BYTES = 256 * 1024 * 1024
Verify = Callable[[Any], None]  # gets the ssl object of the loop's own type


class _Exchange(asyncio.Protocol):
    """One connection; at most one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.stream: FrameStream | None = None
        self.reusable = True
        self.ended = asyncio.Event()
        self._parser: Any = None  # httptools has no types
        self._done: asyncio.Future[Response] | None = None
        self._status = 0
        self._headers: list[tuple[str, str]] = []
        self._body: list[bytes] = []
        self._size = 0
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self.ended.set()
        self.reusable = False
        if self.stream is not None:
            self.stream.ended()
        self._fail(f"connection lost: {exc}" if exc else "the connection was closed before the answer")

    def data_received(self, data: bytes) -> None:
        if self.stream is not None:
            self.stream.feed(data)
            return
        if self._parser is None:
            self.reusable = False
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgraded(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self.reusable = False
            self._fail(f"not an HTTP answer: {error}")

    def pause_writing(self) -> None:
        if self.stream is not None:
            self.stream.pause_writing()

    def resume_writing(self) -> None:
        if self.stream is not None:
            self.stream.resume_writing()

    # httptools callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > _MAX_BODY_BYTES:
            self._fail("the answer is too large")
            if self.transport is not None:
                self.transport.close()
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._status in (100, 101):
            return
        if not self._parser.should_keep_alive():
            self.reusable = False
        if self._done is not None and not self._done.done():
            self._done.set_result(Response(self._status, b"".join(self._body), self._headers))

    def _upgraded(self, rest: bytes) -> None:
        if self._status != 101 or self.transport is None:
            self._fail(f"the server answered {self._status}")
            return
        self.stream = FrameStream(self.transport)
        if rest:
            self.stream.feed(rest)
        if self._done is not None and not self._done.done():
            self._done.set_result(Response(101, b"", self._headers))

    async def send(self, payload: bytes) -> Response:
        """Write a request and wait for its response."""
        if self._lost or self.transport is None:
            raise Unreachable("the connection was closed")
        self._parser = httptools.HttpResponseParser(self)
        self._status, self._headers, self._body, self._size = 0, [], [], 0
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(payload)
        return await self._done

    def _fail(self, text: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(Unreachable(text))

    @property
    def usable(self) -> bool:
        """Whether another request may be sent on it."""
        return self.reusable and not self._lost and self.transport is not None and not self.transport.is_closing()

    def close(self) -> None:
        """Close the connection."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Close it without another word."""
        if self.transport is not None and not self._lost:
            self.transport.abort()


class HttpClient:
    """Speaks to any number of targets: `http://host:port`, `https://host:port`, `unix:///path`."""

    def __init__(
        self, context: ssl.SSLContext | None = None, *, verify: Verify | None = None, connect_timeout_s: float = 5.0
    ) -> None:
        """`verify(ssl object)` may look at the peer's certificate after the handshake and raise Unreachable."""
        self._context = context
        self._verify = verify
        self._connect_timeout_s = connect_timeout_s
        self._idle: dict[str, list[_Exchange]] = {}
        self._busy: set[_Exchange] = set()

    async def request(
        self,
        method: str,
        target: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 10.0,
    ) -> Response:
        """One request; Unreachable when there is no answer within `timeout_s`."""
        payload = _encode(method, target, path, headers or {}, body)
        try:
            async with asyncio.timeout(timeout_s):
                while (kept := self._take(target)) is not None:
                    try:
                        return await self._exchange(target, kept, payload)
                    except Unreachable:
                        if kept.stream is not None or method == "POST":
                            raise
                return await self._exchange(target, await self._open(target), payload)
        except TimeoutError:
            raise Unreachable(f"{target} gave no answer within {timeout_s:g} s") from None

    async def upgrade(self, target: str, path: str, protocol: str, *, timeout_s: float = 5.0) -> FrameStream:
        """Turn a fresh connection into a stream of frames; Unreachable if the server does not want to."""
        payload = _encode("GET", target, path, {"Connection": "Upgrade", "Upgrade": protocol}, b"")
        try:
            async with asyncio.timeout(timeout_s):
                exchange = await self._open(target)
                response = await exchange.send(payload)
        except TimeoutError:
            raise Unreachable(f"{target} gave no answer within {timeout_s:g} s") from None
        if exchange.stream is None:
            exchange.close()
            raise Unreachable(
                f"{target} refused the stream: {response.status} {response.body.decode('utf-8', 'replace').strip()}"
            )
        return exchange.stream

    async def close(self) -> None:
        """Close every connection, and wait a moment for the other ends: TLS says goodbye."""
        every = [*(kept for idle in self._idle.values() for kept in idle), *self._busy]
        for exchange in every:
            exchange.close()
        self._idle.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                for exchange in every:
                    await exchange.ended.wait()
        for exchange in every:
            exchange.abort()
        await asyncio.sleep(0)

    def _take(self, target: str) -> _Exchange | None:
        idle = self._idle.get(target, [])
        while idle:
            exchange = idle.pop()
            if exchange.usable:
                return exchange
            exchange.close()
        return None

    async def _exchange(self, target: str, exchange: _Exchange, payload: bytes) -> Response:
        self._busy.add(exchange)
        finished = False
        try:
            response = await exchange.send(payload)
            finished = True
            return response
        finally:
            self._busy.discard(exchange)
            idle = self._idle.setdefault(target, [])
            if finished and exchange.usable and len(idle) < _MAX_IDLE:
                idle.append(exchange)
            else:
                exchange.close()

    async def _open(self, target: str) -> _Exchange:
        loop = asyncio.get_running_loop()
        parts = urlsplit(target)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                if parts.scheme == "unix":
                    _, exchange = await loop.create_unix_connection(_Exchange, parts.path)
                    return exchange
                secure = parts.scheme == "https"
                port = parts.port or (443 if secure else 80)
                _, exchange = await loop.create_connection(
                    _Exchange,
                    parts.hostname or "localhost",
                    port,
                    ssl=self._context if secure else None,
                    server_hostname=self._server_hostname(parts.hostname or "") if secure else None,
                )
        except TimeoutError:
            raise Unreachable(f"{target} did not accept a connection within {self._connect_timeout_s:g} s") from None
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise Unreachable(f"{target}: {_reason(error)}") from error
        self._check(exchange)
        return exchange

    def _server_hostname(self, host: str) -> str:
        """The mesh's peers are known by their SPIFFE ID and get no name; others are verified by theirs."""
        return host if self._context is not None and self._context.check_hostname else ""

    def _check(self, exchange: _Exchange) -> None:
        if self._verify is None or exchange.transport is None:
            return
        connection = exchange.transport.get_extra_info("ssl_object")
        try:
            if connection is not None:
                self._verify(connection)
        except Unreachable:
            exchange.close()
            raise


def _reason(error: OSError | ValueError) -> str:
    """asyncio, uvloop and name resolution each have words and numbers of their own for it."""
    if isinstance(error, OSError) and error.errno and error.errno > 0 and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    return getattr(error, "strerror", None) or str(error)


def _encode(method: str, target: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    host = "localhost" if target.startswith("unix:") else urlsplit(target).netloc
    lines = [f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
    if body or method in ("POST", "PUT"):
        lines.append(f"Content-Length: {len(body)}\r\n")
    lines.append("\r\n")
    return "".join(lines).encode("latin-1", "replace") + body
