"""One run of a check that looks at something."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable

from mesh_agent.agent.checks import Result, http_status
from mesh_agent.agent.definition import CheckDefinition
from mesh_agent.errors import InvalidRequest, MeshError
from mesh_agent.model import Status

HttpCall = Callable[[CheckDefinition], Awaitable[tuple[int, bytes]]]
"""Performs the request of an HTTP check: (status, body); Unreachable without an answer."""

_READ = 65536
_SERVING = b"\x08\x01"


class Probes:
    """Runs checks. `http_call` is handed in, because the HTTP client belongs to a layer above."""

    def __init__(self, http_call: HttpCall) -> None:
        self._http_call = http_call

    async def run(self, definition: CheckDefinition) -> Result:
        """Run the check once, within its timeout; every failure is a critical result."""
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
            return Result(Status.CRITICAL, f"Timeout exceeded ({definition.timeout_s:g} s)")
        except (OSError, MeshError) as error:
            return Result(Status.CRITICAL, str(error) or type(error).__name__)

    async def _http(self, definition: CheckDefinition) -> Result:
        status, body = await self._http_call(definition)
        text = body.decode("utf-8", "replace")
        return Result(http_status(status), f"HTTP {definition.method} {definition.http}: {status} Output: {text}")


def _endpoint(text: str, what: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not host:
        raise InvalidRequest(f"{what} {text!r} is not host:port")
    return host.strip("[]"), int(port)


async def _tcp(definition: CheckDefinition) -> Result:
    _, writer = await asyncio.open_connection(*_endpoint(definition.tcp, "TCP"))
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
    loop = asyncio.get_running_loop()
    transport, echo = await loop.create_datagram_endpoint(_Echo, remote_addr=_endpoint(definition.udp, "UDP"))
    try:
        transport.sendto(b"PING")
        await echo.answer
    finally:
        transport.close()
    return Result(Status.PASSING, f"UDP connect {definition.udp}: Success")


async def _grpc(definition: CheckDefinition) -> Result:
    import grpc.aio  # late: only agents with gRPC checks carry it

    target, _, service = definition.grpc.partition("/")
    secure = definition.grpc_use_tls
    credentials = grpc.ssl_channel_credentials() if secure else None
    channel = grpc.aio.secure_channel(target, credentials) if secure else grpc.aio.insecure_channel(target)
    name = service.encode()
    request = b"\x0a" + bytes([len(name)]) + name if name else b""  # HealthCheckRequest{service}
    try:
        call = channel.unary_unary("/grpc.health.v1.Health/Check")
        answer = await call(request, timeout=definition.timeout_s)
    except grpc.aio.AioRpcError as error:
        return Result(Status.CRITICAL, f"gRPC check {definition.grpc}: {error.code().name}: {error.details()}")
    finally:
        await channel.close()
    serving = bytes(answer) == _SERVING
    return Result(
        Status.PASSING if serving else Status.CRITICAL,
        f"gRPC check {definition.grpc}: {'success' if serving else 'not serving'}",
    )


async def _script(definition: CheckDefinition) -> Result:
    code, output = await _run(definition.args)
    status = {0: Status.PASSING, 1: Status.WARNING}.get(code, Status.CRITICAL)
    return Result(status, output)


async def _systemd(definition: CheckDefinition) -> Result:
    code, output = await _run(("systemctl", "is-active", "--", definition.systemd_unit))
    text = f"{definition.systemd_unit}: {output.strip() or 'unknown'}"
    return Result(Status.PASSING if code == 0 else Status.CRITICAL, text)


async def _run(arguments: tuple[str, ...]) -> tuple[int, str]:
    """Exit code and combined output; whatever the program started is killed with it when the time is up."""
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        output = await process.stdout.read(_READ)
        while await process.stdout.read(_READ):
            pass
        return await process.wait(), output.decode("utf-8", "replace")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
