"""Real agents as processes on loopback: each has an address of its own, so they use the usual ports without meeting anybody else's."""

import asyncio
import base64
import contextlib
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.asyncquery
import dns.exception
import dns.message
import dns.rcode
import pytest

from mesh_agent.errors import Unreachable
from mesh_agent.http.client import HttpClient
from mesh_agent.http.message import Response

DEADLINE_S = 40.0


async def until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Wait for `condition` (sync or async) to hold; returns what it gave."""
    last: object = None
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                try:
                    last = condition()
                    if asyncio.iscoroutine(last):
                        last = await last
                    if last:
                        return last
                except (OSError, AssertionError) as error:
                    last = error
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"not within {deadline_s:g} s: {what} (last: {last!r})")


def environment(**more: str) -> dict[str, str]:
    """That of the tests, without what would be a setting of the mesh or make its output another one."""
    colours = ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TTY_COMPATIBLE")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MESH_", "CONSUL_")) and k not in colours}
    return {**kept, "COLUMNS": "120", **more}


def of_ansible() -> dict[str, str]:
    """That of the tests, without settings of Ansible, in a locale that it accepts and every machine has."""
    return {**{k: v for k, v in os.environ.items() if not k.startswith("ANSIBLE_")}, "LC_ALL": "C.UTF-8"}


class AgentProcess:
    """One `mesh_agent.app` process."""

    def __init__(self, cluster: "Cluster", name: str, datacenter: str, address: str, settings: dict[str, Any]) -> None:
        self.name, self.datacenter, self.address = name, datacenter, address
        self.directory = cluster.directory / name
        self.directory.mkdir(parents=True)
        (self.directory / "services").mkdir()
        self._log = self.directory / "log"
        self._config = self.directory / "mesh.toml"
        self._process: asyncio.subprocess.Process | None = None
        self._client = HttpClient()
        self._config.write_text(
            "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()), encoding="utf-8"
        )

    async def start(self) -> None:
        """Start it and wait until its API answers."""
        given = {"config_file": str(self._config), "dev": False, "flags": {}}
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "mesh_agent.app",
                env=environment(MESH_CONFIG_FILE_FLAGS=json.dumps(given)),
                stdout=log,
                stderr=log,
            )
        await until(self._answers, f"{self.name} answers; its log: {self._log}")

    async def _answers(self) -> bool:
        process = self._process
        if process is not None and process.returncode is not None:
            pytest.fail(f"{self.name} exited with {process.returncode}: {self.log()[-3000:]}")
        return (await self.get("/v1/agent/self")).status == 200

    async def in_catalog(self) -> bool:
        """Whether its servers know it."""
        checks = await self.json(f"/v1/health/node/{self.name}")
        return any(check["CheckID"] == "serfHealth" and check["Status"] == "passing" for check in checks)

    async def until_open(self, port: int) -> None:
        """Wait for a port that is not open from the start: those for pods need the agent's certificate, or a first sidecar."""

        async def connects() -> bool:
            _, writer = await asyncio.open_connection(self.address, port)
            writer.close()
            return True

        await until(connects, f"{self.name} listens on port {port}; its log: {self._log}")

    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    async def signal(self, number: int) -> None:
        """Send a signal; after SIGTERM and SIGKILL wait for its end."""
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            self._process.send_signal(number)
        if number in (signal.SIGTERM, signal.SIGKILL):
            await self._process.wait()

    async def exited(self) -> int:
        """Wait for its end."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> None:
        """End it, whatever it takes."""
        await self.signal(signal.SIGCONT)
        await self.signal(signal.SIGKILL)
        await self._client.close()

    # talking to it

    async def call(
        self, method: str, path: str, body: object = None, *, timeout_s: float = 15.0, raw: bytes | None = None
    ) -> Response:
        """One HTTP request."""
        payload = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        try:
            return await self._client.request(
                method, f"http://{self.address}:8500", path, body=payload, timeout_s=timeout_s
            )
        except Unreachable as error:
            raise OSError(str(error)) from error

    async def get(self, path: str, *, timeout_s: float = 15.0) -> Response:
        """GET."""
        return await self.call("GET", path, timeout_s=timeout_s)

    async def json(self, path: str) -> Any:
        """GET, decoded; AssertionError for an error status."""
        response = await self.get(path)
        assert response.status == 200, (response.status, response.body)
        return json.loads(response.body)

    async def put(self, path: str, body: object = None) -> Response:
        """PUT; AssertionError for an error status."""
        response = await self.call("PUT", path, body)
        assert response.status == 200, (response.status, response.body)
        return response

    async def addresses(self, name: str) -> list[str] | str:
        """A records of a name, sorted; the rcode if it is not NOERROR."""
        question = dns.message.make_query(name, "A")
        try:
            answer = await dns.asyncquery.udp(question, self.address, port=8600, timeout=15.0)
        except dns.exception.Timeout:
            return "TIMEOUT"
        if answer.rcode():
            return dns.rcode.to_text(answer.rcode())
        return sorted(record.address for rrset in answer.answer for record in rrset if record.rdtype == 1)


class Cluster:
    """Agents of one mesh."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._net = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
        self._keys = {dc: _key() for dc in ("dc1", "dc2", "wan")}
        self._token = secrets.token_hex(16)
        self.agents: dict[str, AgentProcess] = {}

    def address(self, datacenter: str, number: int) -> str:
        """Where the n-th agent of a datacenter (dc1 or dc2) is."""
        return f"{self._net}.{int(datacenter.removeprefix('dc')) * 100 + number}"

    def add(self, name: str, datacenter: str, number: int, *, server: bool = False, **extra: Any) -> AgentProcess:
        """Define an agent; number 1 is the server."""
        address = self.address(datacenter, number)
        settings: dict[str, Any] = {
            "node_name": name,
            "datacenter": datacenter,
            "server": server,
            "data_dir": str(self.directory / name / "data"),
            "runtime_dir": str(self.directory / name / "run"),
            "services_dir": str(self.directory / name / "services"),
            "bind_addr": address,
            "client_addr": address,
            "retry_join": [] if server else [self.address(datacenter, 1)],
            "retry_interval_s": 0.3,
            "encrypt": self._keys[datacenter],
            "encrypt_wan": self._keys["wan"],
            "join_token": self._token,
        }
        if server:
            settings["retry_join_wan"] = [self.address("dc2" if datacenter == "dc1" else "dc1", 1)]
        agent = AgentProcess(self, name, datacenter, address, settings | extra)
        self.agents[name] = agent
        return agent

    async def start(self, *names: str) -> None:
        """Start agents side by side and wait until each is in its catalog."""
        wanted = [self.agents[name] for name in names or self.agents]
        await asyncio.gather(*(agent.start() for agent in wanted))
        await asyncio.gather(*(until(agent.in_catalog, f"{agent.name} is in the catalog") for agent in wanted))

    async def stop(self) -> None:
        """End every agent."""
        await asyncio.gather(*(agent.stop() for agent in self.agents.values()))


def _key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()
