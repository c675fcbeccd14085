"""A packaged serf agent and our pool in one cluster, encrypted and plain: each sees the other join, fail and leave, and hears what it says.

Every agent has a loopback address of its own, so that ports never collide. What depends on time is waited for, and what may be lost is asked again.
"""

import asyncio
import json
import os
import random
import secrets
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mesh_agent.clock import SystemClock
from mesh_agent.errors import JoinFailed
from mesh_agent.gossip import Event, GossipConfig, Keyring, MemberStatus, Query, UserEvent
from mesh_agent.gossip.runner import Pool

pytestmark = [pytest.mark.serf, pytest.mark.timeout(180)]

KEY = "AAECAwQFBgcICQoLDA0ODw=="
DEADLINE_S = 60.0


HANDLER = """#!/bin/sh
payload=$(cat)
case $SERF_EVENT in
user) echo "$SERF_USER_EVENT $payload" >> {events} ;;
query) [ "$SERF_QUERY_NAME" = load ] && printf 'serf got %s' "$payload" ;;
esac
exit 0
"""


class SerfAgent:
    """A `serf agent` process on loopback; what it hears goes to a file, and it answers the query `load`."""

    def __init__(self, name: str, directory: Path, *, key: str = KEY) -> None:
        self.name, self._key = name, key
        self.address = ".".join(["127", *(str(secrets.randbelow(200) + 20) for _ in range(3))])
        self.port = 7946
        self._log = directory / f"{name}.log"
        self.events = directory / f"{name}.events"
        self._handler = directory / f"{name}.sh"
        self._handler.write_text(HANDLER.format(events=self.events))
        self._handler.chmod(0o755)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        binary = shutil.which("serf")
        assert binary, "Debian's `serf` is not installed; `make test` installs it"
        encrypted = [f"-encrypt={self._key}"] if self._key else []
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                binary,
                "agent",
                f"-node={self.name}",
                f"-bind={self.address}:{self.port}",
                f"-rpc-addr={self.address}:7373",
                f"-event-handler={self._handler}",
                "-profile=local",
                "-tag=role=serf",
                "-log-level=debug",
                *encrypted,
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
            f"-rpc-addr={self.address}:7373",
            *arguments[1:],
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    async def member(self, name: str) -> dict[str, Any]:
        code, out = await self.run("members", "-format=json")
        found = [member for member in json.loads(out)["members"] if member["name"] == name] if not code else []
        return found[0] if found else {"status": "unknown"}

    async def sees(self, status: str, name: str = "ours") -> bool:
        return (await self.member(name))["status"] == status

    async def heard(self, line: str) -> bool:
        return self.events.exists() and line in self.events.read_text().splitlines()

    async def kill(self, how: int) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(how)
            await self._process.wait()


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

    def __init__(self, name: str, *, key: str = KEY) -> None:
        self.events: list[Event] = []
        self.pool = Pool(
            replace(GossipConfig.local(), stream_timeout_s=20.0),
            name,
            bind="127.0.0.1",
            port=0,
            advertise="127.0.0.1",
            tags={"role": "node", "dc": "dc1"},
            keyring=Keyring.from_base64([key]) if key else None,
            clock=SystemClock(),
            rng=random.Random(os.getpid()),
            on_event=self._hear,
        )

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Query) and event.name == "load":
            self.pool.respond(event, b"we got " + event.payload)

    def status_of(self, name: str) -> MemberStatus | None:
        return next((member.status for member in self.pool.members if member.name == name), None)

    def heard(self, name: str, payload: bytes) -> bool:
        return any(isinstance(e, UserEvent) and (e.name, e.payload) == (name, payload) for e in self.events)


@pytest.fixture
async def ours() -> AsyncIterator[Ours]:
    node = Ours("ours")
    await node.pool.start()
    try:
        yield node
    finally:
        await node.pool.stop()


async def joined(serf: SerfAgent, ours: Ours) -> bool:
    """Whether serf has joined us, when it has tried once more: it gives up after a second, which a busy machine may need."""
    return (await serf.run("join", f"127.0.0.1:{ours.pool.local.port}"))[0] == 0


@pytest.fixture
async def together(serf: SerfAgent, ours: Ours) -> tuple[SerfAgent, Ours]:
    """Both in one pool."""
    assert await ours.pool.join([f"{serf.address}:{serf.port}"]) == 1
    await until(lambda: serf.sees("alive"), "serf sees us alive")
    await until(lambda: ours.status_of("theirs") is MemberStatus.ALIVE, "we see serf alive")
    return serf, ours


Together = tuple[SerfAgent, Ours]


async def test_each_sees_the_tags_of_the_other_and_their_changes(together: Together) -> None:
    serf, ours = together
    theirs = next(member for member in ours.pool.members if member.name == "theirs")
    assert theirs.tags == {"role": "serf"}
    assert (await serf.member("ours"))["tags"] == {"role": "node", "dc": "dc1"}
    ours.pool.set_tags({"role": "node", "dc": "dc1", "colour": "red"})

    async def repainted() -> bool:
        return (await serf.member("ours")).get("tags", {}).get("colour") == "red"

    await until(repainted, "serf sees our new tag")
    assert (await serf.run("tags", "-set", "colour=blue"))[0] == 0
    await until(
        lambda: any(member.tags.get("colour") == "blue" for member in ours.pool.members), "we see serf's new tag"
    )


async def test_events_are_heard_both_ways(together: Together) -> None:
    serf, ours = together
    assert (await serf.run("event", "deploy", "v1"))[0] == 0
    await until(lambda: ours.heard("deploy", b"v1"), "serf's event arrives")
    ours.pool.user_event("restart", b"now")
    await until(lambda: serf.heard("restart now"), "our event arrives")


async def test_queries_are_answered_both_ways(together: Together) -> None:
    serf, ours = together

    async def we_answered() -> bool:
        code, out = await serf.run("query", "-timeout=5s", "-node=ours", "load", "this")
        return code == 0 and "we got this" in out

    async def they_answered() -> bool:
        return any(r.payload == b"serf got that" for r in await ours.pool.query("load", b"that", timeout_s=5.0))

    await until(we_answered, "we answer serf")
    await until(they_answered, "serf answers us")


async def test_serf_joins_us_and_sees_us_leave(serf: SerfAgent, ours: Ours) -> None:
    await until(lambda: joined(serf, ours), "serf joins us")
    await until(lambda: ours.status_of("theirs") is MemberStatus.ALIVE, "we see serf")
    await until(lambda: serf.sees("alive"), "serf sees us alive")
    await ours.pool.leave()
    await until(lambda: serf.sees("left"), "serf sees us leave")


async def test_we_see_serf_leave_and_come_back(together: Together) -> None:
    serf, ours = together
    assert (await serf.run("leave"))[0] == 0
    await until(lambda: ours.status_of("theirs") is MemberStatus.LEFT, "we see serf leave")
    await serf.kill(signal.SIGKILL)
    await serf.start()
    await until(lambda: joined(serf, ours), "serf joins us")
    await until(lambda: ours.status_of("theirs") is MemberStatus.ALIVE, "we see serf again")
    await until(lambda: serf.sees("alive"), "serf sees us again")


async def test_serf_sees_us_fail_and_tells_us_off(together: Together) -> None:
    serf, ours = together
    await ours.pool.stop()
    await until(lambda: serf.sees("failed"), "serf sees us fail")
    assert (await serf.run("force-leave", "ours"))[0] == 0
    await until(lambda: serf.sees("left"), "we have left for serf")


async def test_we_see_serf_fail_and_tell_it_off(together: Together, tmp_path: Path) -> None:
    serf, ours = together
    witness = SerfAgent("witness", tmp_path)
    try:
        await witness.start()
        await ours.pool.join([f"{witness.address}:{witness.port}"])
        await until(lambda: witness.sees("alive", "theirs"), "the witness sees all")
        await serf.kill(signal.SIGKILL)
        await until(lambda: ours.status_of("theirs") is MemberStatus.FAILED, "we see serf fail")
        await until(lambda: witness.sees("failed", "theirs"), "the witness sees it, too")
        ours.pool.force_leave("theirs")
        assert ours.status_of("theirs") is MemberStatus.LEFT
        await until(lambda: witness.sees("left", "theirs"), "the witness hears of it")
        assert (await witness.run("force-leave", "nobody-at-all"))[0] in (0, 1)
        assert await witness.sees("alive")
    finally:
        await witness.kill(signal.SIGKILL)


async def test_telling_us_off_while_we_live_is_refuted(together: Together) -> None:
    serf, ours = together
    ours.pool.user_event("restart", b"now")
    await until(lambda: serf.heard("restart now"), "our intent to join has arrived with the event")
    assert (await serf.run("force-leave", "ours"))[0] == 0
    # Serf keeps this to itself while it has no other member: we hear of it with the next push/pull.
    await until(lambda: serf.sees("alive"), "we have objected")
    assert not ours.pool.left


FRESH = "ERERERERERERERERERERESIiIiIiIiIiIiIiIiIiIiI="


async def test_we_rotate_the_keys_of_all(together: Together) -> None:
    serf, ours = together
    for operation, key in (("install-key", FRESH), ("use-key", FRESH), ("remove-key", KEY)):
        await until(lambda o=operation, k=key: _everywhere(ours, o, k), f"{operation} is done everywhere")
    answer = await ours.pool.operate_keys("list-keys")
    assert set(answer.keys) == {FRESH}
    await until(lambda: serf.sees("alive"), "both are still together")


async def _everywhere(ours: Ours, operation: str, key: str) -> bool:
    """An operation that is repeated until everybody has answered, as an operator would."""
    answer = await ours.pool.operate_keys(operation, key)
    return (answer.heard, answer.errors) == (2, {})


async def test_serf_rotates_the_keys_of_all(together: Together) -> None:
    serf, ours = together

    async def done(flag: str, key: str) -> bool:
        return (await serf.run("keys", f"{flag}={key}"))[0] == 0

    for flag, key in (("-install", FRESH), ("-use", FRESH), ("-remove", KEY)):
        await until(lambda f=flag, k=key: done(f, k), f"serf keys {flag} is done everywhere")
    assert ours.pool.keyring is not None
    await until(lambda: ours.pool.keyring.keys() == [FRESH], "our ring is the new one")  # type: ignore[union-attr]

    async def listed() -> bool:
        code, out = await serf.run("keys", "-list")
        return code == 0 and FRESH in out and KEY not in out and "2" in out

    await until(listed, "serf lists the new key of both")
    assert (await serf.run("event", "after", "rotation"))[0] == 0
    await until(lambda: ours.heard("after", b"rotation"), "we still understand serf")


async def test_a_plain_pool_is_shared_as_well(tmp_path: Path) -> None:
    serf, ours = SerfAgent("theirs", tmp_path, key=""), Ours("ours", key="")
    try:
        await serf.start()
        await ours.pool.start()
        assert await ours.pool.join([f"{serf.address}:{serf.port}"]) == 1
        await until(lambda: serf.sees("alive"), "serf sees us alive")
        ours.pool.user_event("restart", b"now")
        await until(lambda: serf.heard("restart now"), "our event arrives")
        await ours.pool.leave()
        await until(lambda: serf.sees("left"), "serf sees us leave")
    finally:
        await ours.pool.stop()
        await serf.kill(signal.SIGKILL)


@pytest.mark.parametrize("key", ["", FRESH], ids=["plain", "another key"])
async def test_a_stranger_without_the_key_does_not_get_in(serf: SerfAgent, key: str) -> None:
    stranger = Ours("stranger", key=key)
    try:
        await stranger.pool.start()
        with pytest.raises(JoinFailed):
            await stranger.pool.join([f"{serf.address}:{serf.port}"])
        assert await serf.sees("unknown", "stranger")
    finally:
        await stranger.pool.stop()
