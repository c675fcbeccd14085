"""One run of a check that looks at something. Whatever goes wrong is a critical result with the reason."""

import asyncio
import contextlib
import logging
import os
import signal
import ssl
from typing import Any

import httptools

from mesh_agent.agent.checks import Result, http_status
from mesh_agent.agent.definition import CheckDefinition
from mesh_agent.agent.probes import wire
from mesh_agent.errors import MeshError, RemoteProtocolError
from mesh_agent.model import Status

log = logging.getLogger(__name__)

_READ = 65536
_KEPT_BYTES = 8192
_MAX_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_NOT_FOR_SCRIPTS = ("MESH_", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY")
"""The agent's settings, which may be secrets, are not for scripts."""


class Probes:
    """Runs checks."""

    def __init__(self) -> None:
        self._contexts: dict[bool, ssl.SSLContext] = {}

    async def run(self, definition: CheckDefinition) -> Result:
        """Run the check once, within its timeout."""
        runs = {
            "http": self._http,
            "tcp": _tcp,
            "udp": _udp,
            "grpc": _grpc,
            "script": _script,
            "systemd": _systemd,
        }
        try:
            async with asyncio.timeout(definition.timeout_s):
                return await runs[definition.kind](definition)
        except TimeoutError:
            if definition.kind == "udp":  # neither an answer nor a refusal: as good as UDP can tell
                return Result(Status.PASSING, f"UDP connect {definition.udp}: Success")
            return Result(Status.CRITICAL, f"{_what(definition)}: timed out after {definition.timeout_s:g} s")
        except (OSError, ValueError, MeshError) as error:  # ValueError: a host name that no resolver takes
            return Result(Status.CRITICAL, f"{_what(definition)}: {_reason(error)}")
        except Exception as error:  # a user's check must not end the agent that runs it
            log.exception("check %s could not be run", definition.id)
            return Result(Status.CRITICAL, f"{_what(definition)}: {type(error).__name__}: {error}")

    async def _http(self, definition: CheckDefinition) -> Result:
        request = wire.HttpRequest(definition.method, definition.http, definition.header, definition.body)
        for _ in range(_MAX_REDIRECTS):
            answer = await self._exchange(request, skip_verify=definition.tls_skip_verify)
            if answer.status not in _REDIRECTS or not answer.location:
                break
            request = request.redirected(answer.status, answer.location)
        else:
            return Result(Status.CRITICAL, f"{_what(definition)}: stopped after {_MAX_REDIRECTS} redirects")
        text = bytes(answer.body[:_KEPT_BYTES]).decode("utf-8", "replace")
        return Result(http_status(answer.status), f"{_what(definition)}: {answer.line} Output: {text}")

    async def _exchange(self, request: wire.HttpRequest, *, skip_verify: bool) -> "_Answer":
        to = wire.url(request.url)
        context = self._context(skip_verify) if to.secure else None
        reader, writer = await asyncio.open_connection(to.endpoint.host, to.endpoint.port, ssl=context)
        try:
            writer.write(request.encode())
            answer = _Answer(without_body=request.method == "HEAD")
            while not answer.complete:
                part = await reader.read(_READ)
                if not part:
                    break
                answer.feed(part)
        finally:
            writer.close()
        if not answer.status:
            raise RemoteProtocolError("the connection was closed before the answer")
        return answer

    def _context(self, skip_verify: bool) -> ssl.SSLContext:
        """Loading the system's roots costs milliseconds: once is enough."""
        context = self._contexts.get(skip_verify)
        if context is None:
            context = ssl.create_default_context()
            if skip_verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            self._contexts[skip_verify] = context
        return context


class _Answer:
    """Takes the part of an HTTP answer that a check wants: its status and the beginning of its body."""

    def __init__(self, *, without_body: bool) -> None:
        self.status, self.line, self.location = 0, "", ""
        self.body = bytearray()
        self.complete = False
        self._without_body = without_body
        self._reason = ""
        self._parser: Any = httptools.HttpResponseParser(self)  # httptools has no types

    def feed(self, part: bytes) -> None:
        """Parse; RemoteProtocolError if it is no HTTP."""
        try:
            self._parser.feed_data(part)
        except httptools.HttpParserUpgrade:
            self.complete = True
        except httptools.HttpParserError as error:
            if not self.complete:
                raise RemoteProtocolError(f"not an HTTP answer: {error}") from error

    def on_status(self, reason: bytes) -> None:
        self._reason += reason.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"location":
            self.location = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        code = self._parser.get_status_code()
        if code >= 200 or code == 101:
            self.status, self.line = code, f"{code} {self._reason}".rstrip()
            self.complete = self._without_body
        self._reason = ""

    def on_body(self, body: bytes) -> None:
        self.body += body[: _KEPT_BYTES - len(self.body)]
        self.complete = self.complete or len(self.body) >= _KEPT_BYTES

    def on_message_complete(self) -> None:
        self.complete = self.complete or self.status >= 200


def _what(definition: CheckDefinition) -> str:
    texts = {
        "http": f"HTTP {definition.method} {definition.http}",
        "tcp": f"TCP connect {definition.tcp}",
        "udp": f"UDP connect {definition.udp}",
        "grpc": f"gRPC check {definition.grpc}",
        "script": " ".join(definition.args),
        "systemd": f"Unit {definition.systemd_unit}",
    }
    return texts[definition.kind]


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        known = os.strerror(error.errno) if error.errno > 0 else ""  # name resolution has negative numbers of its own
        return error.strerror or known if not known or known.startswith("Unknown") else known
    return str(error) or type(error).__name__


async def _tcp(definition: CheckDefinition) -> Result:
    to = wire.endpoint(definition.tcp, "TCP")
    _, writer = await asyncio.open_connection(to.host, to.port)
    writer.close()
    return Result(Status.PASSING, f"TCP connect {definition.tcp}: Success")


class _Echo(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _udp(definition: CheckDefinition) -> Result:
    to = wire.endpoint(definition.udp, "UDP")
    loop = asyncio.get_running_loop()
    transport, echo = await loop.create_datagram_endpoint(_Echo, remote_addr=(to.host, to.port))
    try:
        transport.sendto(b"PING")
        await echo.answer
    finally:
        transport.close()
    return Result(Status.PASSING, f"UDP connect {definition.udp}: Success")


async def _grpc(definition: CheckDefinition) -> Result:
    import grpc.aio  # late: only agents with gRPC checks carry it

    target, _, service = definition.grpc.partition("/")
    options = [("grpc.enable_http_proxy", 0)]
    if definition.grpc_use_tls:
        channel = grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(), options=options)
    else:
        channel = grpc.aio.insecure_channel(target, options=options)
    try:
        call = channel.unary_unary("/grpc.health.v1.Health/Check")
        answer = await call(wire.health_request(service), timeout=definition.timeout_s)
    except grpc.aio.AioRpcError as error:
        text = f"gRPC check {definition.grpc}: {error.code().name}: {error.details()}"
        return Result(Status.CRITICAL, text)
    finally:
        await channel.close()
    return wire.health_result(bytes(answer), definition.grpc)


async def _script(definition: CheckDefinition) -> Result:
    code, output = await _run(definition.args)
    return wire.script_result(code, output)


async def _systemd(definition: CheckDefinition) -> Result:
    name = wire.unit(definition.systemd_unit)
    code, output = await _run(("systemctl", "show", f"--property={wire.SYSTEMD_PROPERTIES}", "--", name))
    if code:
        return Result(Status.CRITICAL, f"Unit {name}: {output.strip() or f'systemctl ended with {code}'}")
    return wire.systemd_result(name, output)


async def _run(arguments: tuple[str, ...]) -> tuple[int, str]:
    """Exit code and the end of the combined output; whatever the program started is killed with it when the time is up."""
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_SCRIPTS)},
    )
    output = bytearray()
    finished = False
    try:
        assert process.stdout is not None
        while part := await process.stdout.read(_READ):
            output += part
            del output[: -2 * _READ]
        code = await process.wait()
        finished = True
        return code, output.decode("utf-8", "replace")
    finally:
        if not finished:  # also when the program itself is gone and something that it started holds the pipe
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
