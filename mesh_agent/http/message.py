"""Requests and responses as plain values. Pure."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import unquote

import msgspec

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_JSON = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end: its address, and the URI of its verified client certificate (None without one)."""

    address: str
    spiffe_id: str | None = None


@dataclass(slots=True)
class Request:
    """One request; header names are lower case, the path is decoded, a query flag without a value is ''."""

    method: str
    path: str
    query: dict[str, list[str]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    peer: Peer = Peer("")
    target: str = ""

    def flag(self, name: str) -> bool:
        """Whether the query has `name` with no value or a true one (Consul's `?passing`)."""
        values = self.query.get(name)
        return values is not None and values[-1].lower() not in ("0", "false")

    def first(self, name: str, default: str = "") -> str:
        """The first value of a query parameter."""
        values = self.query.get(name)
        return values[0] if values else default


@dataclass(slots=True)
class Response:
    """One response; Content-Length is added when it is written."""

    status: int = 200
    body: bytes = b""
    headers: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def json(
        cls, value: Any, status: int = 200, headers: list[tuple[str, str]] | None = None
    ) -> "Response":  # any JSON value
        """A JSON body."""
        return cls(status, _JSON.encode(value), [("Content-Type", "application/json"), *(headers or [])])

    @classmethod
    def text(cls, status: int, text: str) -> "Response":
        """A plain text body, as Consul answers errors."""
        return cls(status, text.encode(), [("Content-Type", "text/plain; charset=utf-8")])

    def header(self, name: str) -> str:
        """The value of a header, '' if it is absent."""
        folded = name.lower()
        return next((value for key, value in self.headers if key.lower() == folded), "")

    def encode(self, *, close: bool, head: bool = False) -> bytes:
        """The bytes on the wire."""
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Unknown')}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in self.headers]
        lines.append(f"Content-Length: {len(self.body)}\r\n")
        if close:
            lines.append("Connection: close\r\n")
        lines.append("\r\n")
        return "".join(lines).encode("latin-1", "replace") + (b"" if head else self.body)


class FrameStreamLike(Protocol):
    """A full-duplex stream of frames, see `frames`."""

    async def send(self, payload: bytes) -> None:
        """Send one frame; waits while the peer is slow; Unreachable when it is gone."""
        ...

    async def receive(self) -> bytes | None:
        """The next frame, None at the end."""
        ...

    def close(self) -> None:
        """End it."""
        ...


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A handler's answer that turns the connection into a stream of frames."""

    protocol: str
    on_stream: Callable[[FrameStreamLike], Awaitable[None]]


def indented(response: Response) -> Response:
    """The same answer for people: JSON with a line for each value, as Consul's `?pretty`; anything else as it is."""
    if response.header("Content-Type") != "application/json" or not response.body:
        return response
    return Response(response.status, msgspec.json.format(response.body, indent=4) + b"\n", response.headers)


Answer = Response | Upgrade
Handler = Callable[[Request], Answer | Awaitable[Answer]]


def parse_target(target: str) -> tuple[str, dict[str, list[str]]]:
    """Path and query of a request target, also of one in absolute form (RFC 9112, 3.2.2). A query key without `=` has the value ''."""
    if target.startswith(("http://", "https://")):
        target = "/" + target.split("://", 1)[1].partition("/")[2]
    raw_path, _, raw_query = target.partition("?")
    query: dict[str, list[str]] = {}
    for part in raw_query.split("&") if raw_query else ():
        key, _, value = part.partition("=")
        query.setdefault(unquote(key.replace("+", " ")), []).append(unquote(value.replace("+", " ")))
    return raw_path, query
