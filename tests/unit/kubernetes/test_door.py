"""Who is let in at the port for pods, and what strangers cost."""

import asyncio
from typing import Any

from mesh_agent.clock import ManualClock
from mesh_agent.http.message import Peer, Request, Response
from mesh_agent.kubernetes.door import Caller, Door, Remembered
from mesh_agent.kubernetes.pods import Pod


class NoPods:
    """A node without pods."""

    async def verified(self, uid: str, *, account: str, name: str) -> Pod:
        raise AssertionError("no pod asks")

    def session(self, pod: Pod) -> str:
        raise AssertionError("no pod asks")


class World:
    """A door before an API server that knows one token, and answers once `answering` is set."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.answering = asyncio.Event()
        self.asked: list[str] = []
        self.door = Door(
            datacenter="dc1",
            trust_domain="mesh.internal",
            agent_id="",
            controllers=("mesh-system/mesh-controller",),
            injectors=(),
            pods=NoPods(),
            review=self._review,
            sign_webhook=self._sign,
            public=lambda request: Response(200),
            clock=self.clock,
        )

    async def _review(self, token: str, audience: str) -> dict[str, Any] | None:
        self.asked.append(token)
        await self.answering.wait()
        return {"user": {"username": "system:serviceaccount:mesh-system:mesh-controller"}} if token == "good" else None

    async def _sign(self, csr: str, names: tuple[str, ...]) -> dict[str, Any]:
        raise AssertionError("nobody asks for a certificate")

    async def ask(self, token: str, address: str = "10.0.0.1") -> int:
        """The status of the answer to a controller's request."""
        headers = {"authorization": f"Bearer {token}"}
        answer = await self.door.handle(Request("GET", "/v1/agent/self", headers=headers, peer=Peer(address)))
        assert isinstance(answer, Response)
        return answer.status


async def test_an_address_has_few_questions_at_a_time_and_others_do_not_wait_for_it() -> None:
    world = World()
    bad = [asyncio.ensure_future(world.ask(f"bad-{number}", "10.0.0.66")) for number in range(100)]
    good = asyncio.ensure_future(world.ask("good"))
    done, _ = await asyncio.wait(bad, return_when=asyncio.FIRST_COMPLETED)
    assert {each.result() for each in done} == {429}
    assert len(world.asked) == 5
    world.answering.set()
    assert sorted(await asyncio.gather(*bad)) == [401] * 4 + [429] * 96
    assert await good == 200
    assert await world.ask("another", "10.0.0.66") == 401, "its questions are over"


async def test_a_refusal_is_remembered_for_a_moment_and_a_good_token_for_longer() -> None:
    world = World()
    world.answering.set()
    for _ in range(3):
        assert (await world.ask("bad"), await world.ask("good")) == (401, 200)
    assert world.asked == ["bad", "good"]
    world.clock.advance(3.0)
    assert (await world.ask("bad"), await world.ask("good")) == (401, 200)
    assert world.asked == ["bad", "good", "bad"]


async def test_bad_tokens_push_out_no_good_one() -> None:
    world = World()
    world.answering.set()
    assert await world.ask("good") == 200
    for number in range(2000):
        await world.ask(f"bad-{number}")
    before = len(world.asked)
    assert await world.ask("good") == 200
    assert len(world.asked) == before


def test_the_oldest_is_forgotten_first() -> None:
    memory = Remembered(10.0, most=2)
    for name in (b"a", b"b", b"c"):
        memory.add(name, Caller("n/a"), 0.0)
    assert [memory.find(name, 1.0) is None for name in (b"a", b"b", b"c")] == [True, False, False]
    assert memory.find(b"c", 10.0) is None
