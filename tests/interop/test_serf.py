"""A packaged serf agent and our pool in one cluster, encrypted: each sees the other join, fail and leave."""

import asyncio
import json
import os
import random
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh_agent.clock import SystemClock
from mesh_agent.gossip import Event, GossipConfig, Keyring, MemberStatus, UserEvent
from mesh_agent.gossip.runner import Pool

pytestmark = [pytest.mark.serf, pytest.mark.timeout(180)]

KEY = "AAECAwQFBgcICQoLDA0ODw=="
DEADLINE_S = 60.0


class SerfAgent:
    """A `serf agent` process on loopback."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.port, self.rpc = _free_port(), _free_port()
        self._log = directory / f"{name}.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        binary = shutil.which("serf")
        assert binary, "Debian's `serf` is not installed; `make test` installs it"
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                binary,
                "agent",
                f"-node={self.name}",
                f"-bind=127.0.0.1:{self.port}",
                f"-rpc-addr=127.0.0.1:{self.rpc}",
                f"-encrypt={KEY}",
                "-profile=local",
                "-tag=role=serf",
                stdout=log,
                stderr=log,
            )
        await until(self._answers, f"serf agent {self.name} answers")

    async def _answers(self) -> bool:
        return (await self.run("members"))[0] == 0

    async def run(self, *arguments: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            "serf",
            arguments[0],
            f"-rpc-addr=127.0.0.1:{self.rpc}",
            *arguments[1:],
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    async def status_of(self, name: str) -> str:
        code, out = await self.run("members", "-format=json")
        if code:
            return "?"
        found = [member["status"] for member in json.loads(out)["members"] if member["name"] == name]
        return found[0] if found else "unknown"

    async def kill(self, how: int) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(how)
            await self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(condition, what: str) -> None:  # type: ignore[no-untyped-def]
    """Wait until `condition` (sync or async) holds."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                held = condition()
                if asyncio.iscoroutine(held):
                    held = await held
                if held:
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail(f"not within {DEADLINE_S} s: {what}")


@pytest.fixture
async def serf(tmp_path: Path) -> AsyncIterator[SerfAgent]:
    agent = SerfAgent("theirs", tmp_path)
    try:
        await agent.start()
        yield agent
    finally:
        await agent.kill(signal.SIGKILL)


class Ours:
    """Our pool, with the events that it saw."""

    def __init__(self, name: str) -> None:
        self.events: list[Event] = []
        self.pool = Pool(
            GossipConfig.local(),
            name,
            bind="127.0.0.1",
            port=0,
            advertise="127.0.0.1",
            tags={"role": "node", "dc": "dc1"},
            keyring=Keyring.from_base64([KEY]),
            clock=SystemClock(),
            rng=random.Random(os.getpid()),
            on_event=self.events.append,
        )

    def status_of(self, name: str) -> MemberStatus | None:
        return next((member.status for member in self.pool.members if member.name == name), None)


@pytest.fixture
async def ours() -> AsyncIterator[Ours]:
    node = Ours("ours")
    node.port = await node.pool.start()  # type: ignore[attr-defined]
    try:
        yield node
    finally:
        await node.pool.stop()


async def test_we_join_serf_and_see_its_tags_events_and_farewell(serf: SerfAgent, ours: Ours) -> None:
    assert await ours.pool.join([f"127.0.0.1:{serf.port}"]) == 1
    theirs = next(member for member in ours.pool.members if member.name == "theirs")
    assert theirs.tags == {"role": "serf"}
    await until(lambda: _alive(serf), "serf sees us alive")
    assert (await serf.run("event", "deploy", "v1"))[0] == 0
    await until(
        lambda: any(isinstance(e, UserEvent) and (e.name, e.payload) == ("deploy", b"v1") for e in ours.events),
        "serf's event arrives",
    )
    await serf.kill(signal.SIGINT)
    await until(lambda: ours.status_of("theirs") is MemberStatus.LEFT, "we see serf leave")


async def test_serf_joins_us_and_sees_us_leave(serf: SerfAgent, ours: Ours) -> None:
    code, out = await serf.run("join", f"127.0.0.1:{ours.pool.local.port}")
    assert code == 0, out
    await until(lambda: ours.status_of("theirs") is MemberStatus.ALIVE, "we see serf")
    await until(lambda: _alive(serf), "serf sees us alive")
    await ours.pool.leave()
    await until(lambda: _has(serf, "left"), "serf sees us leave")


async def test_each_sees_the_other_fail(serf: SerfAgent, ours: Ours) -> None:
    await ours.pool.join([f"127.0.0.1:{serf.port}"])
    await until(lambda: _alive(serf), "serf sees us alive")
    await ours.pool.stop()
    await until(lambda: _has(serf, "failed"), "serf sees us fail")


async def test_we_see_serf_fail(serf: SerfAgent, ours: Ours) -> None:
    await ours.pool.join([f"127.0.0.1:{serf.port}"])
    await until(lambda: _alive(serf), "serf sees us alive")
    await serf.kill(signal.SIGKILL)
    await until(lambda: ours.status_of("theirs") is MemberStatus.FAILED, "we see serf fail")


async def test_keys_are_rotated_together(serf: SerfAgent, ours: Ours) -> None:
    await ours.pool.join([f"127.0.0.1:{serf.port}"])
    await until(lambda: _alive(serf), "serf sees us alive")
    fresh = "ERERERERERERERERERERESIiIiIiIiIiIiIiIiIiIiI="
    for operation in ("install-key", "use-key"):
        answer = await ours.pool.operate_keys(operation, fresh)
        assert (answer.heard, answer.errors) == (2, {})
    answer = await ours.pool.operate_keys("remove-key", KEY)
    assert (answer.heard, answer.errors) == (2, {})
    answer = await ours.pool.operate_keys("list-keys")
    assert answer.keys == {fresh: 2}
    await until(lambda: _alive(serf), "both are still together")


async def test_a_query_of_serf_is_answered(serf: SerfAgent, ours: Ours) -> None:
    await ours.pool.join([f"127.0.0.1:{serf.port}"])
    await until(lambda: _alive(serf), "serf sees us alive")
    code, out = await serf.run("keys", "-list")
    assert code == 0, out
    assert "2" in out
    assert KEY in out


async def _alive(serf: SerfAgent) -> bool:
    return await serf.status_of("ours") == "alive"


async def _has(serf: SerfAgent, status: str) -> bool:
    return await serf.status_of("ours") == status
