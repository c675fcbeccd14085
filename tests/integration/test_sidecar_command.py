"""`mesh sidecar` as an operator runs it: a real process that supervises a real Envoy."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh_agent.errors import Unreachable
from mesh_agent.http.client import HttpClient
from mesh_agent.http.message import Request, Response
from mesh_agent.http.server import HttpServer
from mesh_agent.model import Action
from tests.support.callers import GREETING, Closed, Line, greeting_echo
from tests.support.ports import free_port
from tests.support.sidecars import PATIENCE_S, Town, envoy_binary, eventually, until

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(120)]


class Agent:
    """The part of an agent's HTTP API that `mesh sidecar` asks for."""

    def __init__(self, town: Town) -> None:
        self._town = town
        self._server = HttpServer(self._answer)
        self.asked = 0
        self.port = 0

    async def start(self) -> None:
        self.port = await self._server.start("127.0.0.1", 0)

    async def stop(self) -> None:
        await self._server.stop()

    def _answer(self, request: Request) -> Response:
        assert request.path == "/v1/agent/services"
        self.asked += 1
        found = {}
        for each in self._town.registrations.services():
            assert each.proxy is not None
            names = {
                "DestinationServiceName": each.proxy.destination_service,
                "DestinationServiceID": each.proxy.destination_id,
            }
            found[each.id] = {"ID": each.id, "Service": each.name, "Kind": each.kind, "Proxy": names}
        return Response.json(found)


class Command:
    """A running `mesh sidecar`."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def text(self) -> str:
        return self.log.read_text()

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()

    async def end(self) -> None:
        """Leave nothing of it behind, even if a test failed while it drains."""
        if self.process.returncode is None:
            for pid in (self.process.pid, envoy_of(self)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid or self.process.pid, signal.SIGKILL)
            await self.process.wait()


@contextlib.asynccontextmanager
async def sidecar(town: Town, agent: Agent, *words: str) -> AsyncIterator[Command]:
    log = town.directory / "command.log"
    environ = os.environ | {"MESH_ENVOY": envoy_binary(), "MESH_HTTP_ADDR": f"127.0.0.1:{agent.port}"}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", "from mesh_agent.cli.sidecar import app; app()", *words, "--xds-socket", str(town.ads_socket)),
            env=environ,
            stdout=output,
            stderr=output,
        )
    command = Command(process, log)
    try:
        yield command
    finally:
        await command.end()


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with Town(tmp_path) as found:
        yield found


@pytest.fixture
async def agent(town: Town) -> AsyncIterator[Agent]:
    found = Agent(town)
    await found.start()
    yield found
    await found.stop()


def envoy_of(command: Command) -> int:
    """The process id of Envoy as the command last logged it."""
    words = [line for line in command.text.splitlines() if "Envoy runs as process" in line]
    return int(words[-1].split("Envoy runs as process ")[1].split()[0]) if words else 0


async def live(admin_port: int) -> bool:
    client = HttpClient(None)
    try:
        answer = await client.request("GET", f"http://127.0.0.1:{admin_port}", "/ready", timeout_s=2.0)
        return answer.body.strip() == b"LIVE"
    except Unreachable:
        return False
    finally:
        await client.close()


async def test_it_waits_for_the_registration_runs_envoy_and_starts_it_again(town: Town, agent: Agent) -> None:
    admin = free_port()
    async with sidecar(town, agent, "run", "--service", "web", "--admin-port", str(admin)) as command:
        await eventually(
            lambda: "no sidecar of service 'web' is registered on this node" in command.text,
            "it says what it waits for",
        )
        town.register("web", calls=("api",))
        await until(lambda: live(admin), "Envoy is configured")
        first = envoy_of(command)
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: envoy_of(command) not in (0, first), "it was started again")
        assert "Envoy ended with signal SIGKILL; starting it again in 0.5 s" in command.text
        await until(lambda: live(admin), "the new Envoy is configured")
        assert await command.stop() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(envoy_of(command), 0)  # Envoy ended with it


async def test_on_sigterm_open_connections_may_end_first(town: Town, agent: Agent) -> None:
    async with greeting_echo() as echo:
        api = town.register("api", app_port=echo)
        web = town.register("web", calls=("api",))
        town.intend("web", "api", Action.ALLOW)
        await town.envoy(web)
        assert web.proxy is not None
        port = web.proxy.upstreams[0].local_bind_port
        async with sidecar(town, agent, "run", "--service", "api", "--drain-s", "60") as command:

            async def through() -> bool:
                line = await Line.to(port)
                with contextlib.suppress(Closed), contextlib.closing(line):
                    return await line.read(len(GREETING)) == GREETING
                return False

            await until(through, "api is reached")
            line = await Line.to(port)
            assert await line.read(len(GREETING)) == GREETING
            command.process.send_signal(signal.SIGTERM)
            await eventually(lambda: "draining for at most 60 s" in command.text, "it drains")

            async def turned_away() -> bool:
                return not await through()

            await until(turned_away, "no new connection is taken")
            assert await line.say(b"one last word") == b"one last word"
            line.close()
            assert await command.stop() == 0
        assert api.port


async def test_the_bootstrap_is_printed(town: Town, agent: Agent) -> None:
    town.register("web", calls=("api",))
    async with sidecar(town, agent, "bootstrap", "--service", "web") as command:
        async with asyncio.timeout(PATIENCE_S):
            assert await command.process.wait() == 0
    assert json.loads(command.text)["node"] == {"id": "web-sidecar-proxy", "cluster": "web"}
