"""What probes send and understand: endpoints, HTTP requests, gRPC's health messages, systemd's properties. Pure."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urljoin, urlsplit

from mesh_agent.agent.checks import Result
from mesh_agent.errors import InvalidRequest
from mesh_agent.model import Status

_PRINTABLE = re.compile(r"[!-~]+")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+")
_DEFAULT_HEADERS = {
    "User-Agent": "Consul Health Check",
    "Accept": "text/plain, text/*, */*",
    "Connection": "close",
}
_PRIVATE = ("authorization", "cookie")
SYSTEMD_PROPERTIES = "LoadState,ActiveState,SubState,Result"
_SERVING = 1
_SERVING_STATES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and a port."""

    host: str
    port: int


def endpoint(text: str, what: str = "endpoint") -> Endpoint:
    """`host:port` or `[ipv6]:port`; InvalidRequest names `what` is wrong."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (colon and host and _PRINTABLE.fullmatch(host) and port.isascii() and port.isdigit()):
        raise InvalidRequest(f"{what}: {text!r} is not host:port")
    if not 0 < int(port) <= 65535:
        raise InvalidRequest(f"{what}: {port} is not a port (1 to 65535)")
    return Endpoint(host, int(port))


@dataclass(frozen=True, slots=True)
class Url:
    """A place to ask over HTTP. `path` has the query; `authorization` is what user:password@ stands for."""

    secure: bool
    endpoint: Endpoint
    authority: str
    path: str
    authorization: str = ""


def url(text: str, what: str = "HTTP") -> Url:
    """An http:// or https:// URL; InvalidRequest says what is wrong."""
    if not _PRINTABLE.fullmatch(text):
        raise InvalidRequest(
            f"{what}: {text!r} is not a URL; blanks and other special characters are written as %20 ..."
        )
    try:
        found = urlsplit(text)
        host, port = found.hostname or "", found.port
    except ValueError as error:
        raise InvalidRequest(f"{what}: {text!r} is not a URL: {error}") from error
    if found.scheme not in ("http", "https") or not host:
        raise InvalidRequest(f"{what}: {text!r} is not a URL like http://127.0.0.1:8080/health")
    if port == 0:
        raise InvalidRequest(f"{what}: 0 is not a port (1 to 65535)")
    secure = found.scheme == "https"
    authorization = ""
    if found.username is not None:
        pair = f"{unquote(found.username)}:{unquote(found.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    path = (found.path or "/") + (f"?{found.query}" if found.query else "")
    default = 443 if secure else 80
    return Url(secure, Endpoint(host, port or default), found.netloc.rpartition("@")[2], path, authorization)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request of an HTTP check."""

    method: str
    url: str
    headers: Mapping[str, list[str]]
    body: str

    def encode(self) -> bytes:
        """Its bytes."""
        to = url(self.url)
        given = {name.lower() for name in self.headers}
        lines = [f"{self.method} {to.path} HTTP/1.1"]
        defaults = {"Host": to.authority, **_DEFAULT_HEADERS}
        if to.authorization:
            defaults["Authorization"] = to.authorization
        lines += [f"{name}: {value}" for name, value in defaults.items() if name.lower() not in given]
        lines += [f"{name}: {value}" for name, values in self.headers.items() for value in values]
        body = self.body.encode()
        if body or self.method in ("POST", "PUT", "PATCH"):
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body

    def redirected(self, status: int, location: str) -> "HttpRequest":
        """Where a redirection leads, as Go's client goes there; InvalidRequest for a place that is none. Secrets stay with the host they are for."""
        there = urljoin(self.url, location)
        method, body = self.method, self.body
        if status in (301, 302, 303) and method != "HEAD":
            method, body = "GET", ""
        headers = dict(self.headers)
        if url(there).endpoint != url(self.url).endpoint:
            headers = {name: values for name, values in headers.items() if name.lower() not in (*_PRIVATE, "host")}
        return HttpRequest(method, there, headers, body)


def health_request(service: str) -> bytes:
    """grpc.health.v1.HealthCheckRequest."""
    name = service.encode()
    return b"\x0a" + _varint(len(name)) + name if name else b""


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def health_result(answer: bytes, target: str) -> Result:
    """What a grpc.health.v1.HealthCheckResponse says. Its only field is `status` (1, an enum); proto3 leaves out zero."""
    state = answer[1] if len(answer) >= 2 and answer[0] == 0x08 else 0
    if state == _SERVING:
        return Result(Status.PASSING, f"gRPC check {target}: success")
    return Result(Status.CRITICAL, f"gRPC check {target}: {_SERVING_STATES.get(state, str(state))}")


def unit(text: str, what: str = "SystemdUnit") -> str:
    """The name of one unit; InvalidRequest for patterns and options."""
    if not _UNIT.fullmatch(text) or text.startswith("-") or len(text) > 255:
        raise InvalidRequest(f"{what}: {text!r} is not the name of a systemd unit")
    return text


def systemd_result(name: str, properties: str) -> Result:
    """What `systemctl show` says of a unit. Only a unit that runs is passing: one that still starts may never get there."""
    found = dict(line.partition("=")[::2] for line in properties.splitlines())
    if found.get("LoadState", "") in ("not-found", ""):
        return Result(Status.CRITICAL, f"Unit {name} could not be found.")
    active, sub = found.get("ActiveState", "unknown"), found.get("SubState", "unknown")
    text = f"Unit {name} is {active} ({sub})"
    if found.get("Result", "success") not in ("success", ""):
        text += f": {found['Result']}"
    return Result(Status.PASSING if active in ("active", "reloading", "refreshing") else Status.CRITICAL, text)


def script_result(code: int, output: str) -> Result:
    """Exit code 0 is passing, 1 warning, anything else critical."""
    return Result({0: Status.PASSING, 1: Status.WARNING}.get(code, Status.CRITICAL), output)
