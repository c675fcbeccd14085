"""A thin client of the Kubernetes API: requests, lists in pages, watches, token reviews. Shell.

A watch is a request whose answer never ends: one JSON object a line. It goes over a connection of its own with TCP keep-alive, so that an API server
that vanished without a word is noticed within half a minute.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httptools
import msgspec

from mesh_agent.errors import (
    InvalidRequest,
    MeshError,
    NotFound,
    PermissionDenied,
    StoreConflict,
    Unreachable,
)
from mesh_agent.http.client import HttpClient
from mesh_agent.kubernetes.nesting import pruned

Object = dict[str, Any]

_PAGE = 500
_WATCH_S = 240
_TIMEOUT_S = 15.0
_REVIEWS_AT_A_TIME = 8
_MAX_LINE_BYTES = 16 * 1024 * 1024
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
_USER_TIMEOUT_MS = 25_000


class Gone(MeshError):
    """The API server does not keep history as old as that any more: list anew (HTTP 410)."""


class KubernetesApi:
    """One API server. Its roots and the token are read again when their files change; files that are not there yet are waited for (Unreachable)."""

    def __init__(self, url: str, ca_file: str = "", token_file: str = "") -> None:
        self._target = url.rstrip("/")
        self._token_file = Path(token_file) if token_file else None
        self._ca_file = Path(ca_file) if ca_file else None
        self._roots_of_ns = 0
        self._reviews = asyncio.Semaphore(_REVIEWS_AT_A_TIME)
        self._context: ssl.SSLContext | None = None
        if url.startswith("https://"):
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if ca_file else ssl.create_default_context()
        self._client = HttpClient(self._context)

    async def close(self) -> None:
        """Close the connections; watches end by being cancelled."""
        await self._client.close()

    def _load_roots(self) -> None:
        if self._context is None or self._ca_file is None:
            return
        try:
            changed_ns = self._ca_file.stat().st_mtime_ns
            if changed_ns != self._roots_of_ns:
                self._context.load_verify_locations(cafile=self._ca_file)
                self._roots_of_ns = changed_ns
        except OSError as error:  # ssl.SSLError is one
            raise Unreachable(f"kubernetes.ca_file: {self._ca_file} cannot be used: {error}") from error

    def _headers(self) -> dict[str, str]:
        found = {"Accept": "application/json", "User-Agent": "mesh-agent"}
        if self._token_file is not None:
            try:
                found["Authorization"] = f"Bearer {self._token_file.read_text(encoding='ascii').strip()}"
            except (OSError, UnicodeDecodeError) as error:
                raise Unreachable(f"kubernetes.token_file: {self._token_file} cannot be read: {error}") from error
        return found

    async def request(
        self, method: str, path: str, body: Object | None = None, *, content_type: str = "application/json"
    ) -> Object:
        """One request; NotFound, PermissionDenied, InvalidRequest, StoreConflict (409), Gone or Unreachable with the API server's own words.

        A token that is not accepted (401) is Unreachable, too: its file may be replaced at any moment. What is forbidden (403) stays so.
        """
        headers = self._headers()
        self._load_roots()
        payload = b""
        if body is not None:
            payload, headers["Content-Type"] = msgspec.json.encode(body), content_type
        answer = await self._client.request(
            method, self._target, path, headers=headers, body=payload, timeout_s=_TIMEOUT_S
        )
        if answer.status >= 300:
            raise _error(answer.status, answer.body, f"{method} {path}")
        return _decoded(answer.body)

    async def list_all(self, path: str, query: Mapping[str, str] | None = None) -> tuple[list[Object], str]:
        """Every object of a collection, and the resourceVersion from which to watch it."""
        found: list[Object] = []
        more = ""
        while True:
            asked = dict(query or {}) | {"limit": str(_PAGE)} | ({"continue": more} if more else {})
            page = await self.request("GET", f"{path}?{urlencode(asked)}")
            found += page.get("items") or ()
            more = page["metadata"].get("continue") or ""
            if not more:
                return found, str(page["metadata"]["resourceVersion"])

    async def watch(self, path: str, version: str, query: Mapping[str, str] | None = None) -> AsyncIterator[Object]:
        """Events after `version` until the API server ends the watch, which it does every few minutes; Gone, Unreachable and others as `request`."""
        asked = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_S),
        }
        target = f"{path}?{urlencode(dict(query or {}) | asked)}"
        async for line in self._lines(target):
            event = _decoded(line)
            if event.get("type") == "ERROR":
                status = event.get("object", {})
                raise _error(int(status.get("code", 500)), msgspec.json.encode(status), f"watch {path}")
            yield event

    async def review(self, token: str, audience: str) -> Object | None:
        """The status of a TokenReview if the token is good for that audience; None if it is not. A few are asked for at a time, the others wait."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        async with self._reviews:
            answer = await self.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", body)
        status: Object = answer.get("status") or {}
        good = status.get("authenticated") is True and audience in (status.get("audiences") or ())
        return status if good else None

    async def _lines(self, target: str) -> AsyncIterator[bytes]:
        self._load_roots()
        parts = urlsplit(self._target)
        secure = parts.scheme == "https"
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(
                    parts.hostname, parts.port or (443 if secure else 80), ssl=self._context, limit=_MAX_LINE_BYTES
                )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            raise Unreachable(f"{self._target}: {error or 'no connection in time'}") from error
        try:
            _notice_silence(writer)
            lines = [f"GET {parts.path}{target} HTTP/1.1", f"Host: {parts.netloc}"]
            lines += [f"{name}: {value}" for name, value in self._headers().items()]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            answer = _Answer()
            while not answer.ended:
                data = await _read(reader, self._target, _TIMEOUT_S if not answer.status else _WATCH_S + 30.0)
                answer.feed(data)
                if answer.status >= 300:
                    if answer.ended or not data:
                        raise _error(answer.status, answer.body, f"watch {target}")
                    continue
                for line in answer.lines():
                    yield line
                if not data:
                    return
        finally:
            writer.close()
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                async with asyncio.timeout(1.0):
                    await writer.wait_closed()


class _Answer:
    """An HTTP answer while it comes in."""

    def __init__(self) -> None:
        self.status = 0
        self.ended = False
        self.body = b""
        self._parser: Any = httptools.HttpResponseParser(self)  # httptools has no types

    def feed(self, data: bytes) -> None:
        """More bytes; Unreachable if they are no HTTP."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise Unreachable(f"the API server's answer is not HTTP: {error}") from error

    def lines(self) -> list[bytes]:
        """Whole lines since the last call."""
        *whole, self.body = self.body.split(b"\n")
        if len(self.body) > _MAX_LINE_BYTES:
            raise Unreachable("the API server sends an event that is too large")
        return [line for line in whole if line.strip()]

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.ended = True


async def _read(reader: asyncio.StreamReader, target: str, patience_s: float) -> bytes:
    try:
        async with asyncio.timeout(patience_s):
            return await reader.read(256 * 1024)
    except TimeoutError:
        raise Unreachable(f"{target} was silent for {patience_s:g} s") from None
    except OSError as error:
        raise Unreachable(f"{target}: {error}") from error


def _notice_silence(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)


def _decoded(body: bytes) -> Object:
    try:
        try:
            found = msgspec.json.decode(body)
        except RecursionError:  # one object of a list, perhaps: the others are as good as ever
            found = msgspec.json.decode(pruned(body))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreachable(f"the API server's answer is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Unreachable("the API server's answer is not a JSON object")
    return found


def _error(status: int, body: bytes, what: str) -> MeshError:
    try:
        message = str(msgspec.json.decode(body).get("message", ""))
    except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, RecursionError):
        message = body[:200].decode("utf-8", "replace")
    text = f"{what}: the API server answers {status}: {message.strip()}"
    if status == 410:
        return Gone(text)
    if status == 403:
        return PermissionDenied(text)
    if status == 409:
        return StoreConflict(text)
    if status in (400, 422):
        return InvalidRequest(text)
    return NotFound(text) if status == 404 else Unreachable(text)
