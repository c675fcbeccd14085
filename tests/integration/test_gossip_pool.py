"""Two pools on loopback sockets, and strangers who behave badly."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from mesh_agent.clock import SystemClock
from mesh_agent.errors import JoinFailed, MeshError
from mesh_agent.gossip import Event, GossipConfig, Keyring, MemberStatus, UserEvent, layers, wire
from mesh_agent.gossip.runner import Pool
from tests.support.agents import DEADLINE_S, until

KEY = b"0123456789abcdef"
CONFIG = replace(GossipConfig.local(), stream_timeout_s=2.0)


class Node:
    """A pool and what it told."""

    def __init__(
        self, name: str, *, keys: tuple[bytes, ...] = (KEY,), config: GossipConfig = CONFIG, port: int = 0
    ) -> None:
        self.events: list[Event] = []
        self.kept: list[list[str]] = []
        self.full_disk = False
        self.pool = Pool(
            config,
            name,
            bind="127.0.0.1",
            port=port,
            advertise="127.0.0.1",
            tags={"role": "node"},
            keyring=Keyring(keys) if keys else None,
            clock=SystemClock(),
            rng=random.Random(len(name)),
            on_event=self.events.append,
            on_keyring=self._keep,
        )
        self.port = 0

    def _keep(self, ring: Keyring) -> None:
        if self.full_disk:
            raise OSError(28, "No space left on device")
        self.kept.append(ring.keys())

    def status_of(self, name: str) -> MemberStatus | None:
        return next((member.status for member in self.pool.members if member.name == name), None)


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    try:
        for node in nodes:
            node.port = await node.pool.start()
        yield
    finally:
        for node in nodes:
            await node.pool.stop()


@pytest.mark.parametrize("keys", [(KEY,), ()], ids=["encrypted", "plain"])
async def test_hundreds_of_events_arrive_once_each(keys: tuple[bytes, ...]) -> None:
    a, b = Node("a", keys=keys), Node("b", keys=keys)
    async with running(a, b):
        assert await b.pool.join([f"127.0.0.1:{a.port}"]) == 1
        for number in range(300):
            a.pool.user_event(f"e{number}", b"x" * 200)
        await until(lambda: sum(isinstance(e, UserEvent) for e in b.events) >= 300, "all events arrive")
        assert sorted(e.name for e in b.events if isinstance(e, UserEvent)) == sorted(f"e{n}" for n in range(300))


@pytest.mark.parametrize("keys", [(KEY,), ()], ids=["encrypted", "plain"])
async def test_a_large_state_is_exchanged(keys: tuple[bytes, ...]) -> None:
    config = replace(CONFIG, compression=False, stream_timeout_s=20.0)
    a, b = Node("a", keys=keys, config=config), Node("b", keys=keys, config=config)
    async with running(a, b):
        entries = tuple(
            wire.StateEntry(f"left-{number}", "10.0.0.1", 7946, b"m" * 200, 1, 0, wire.OWN_VERSIONS)
            for number in range(2000)
        )
        request = wire.encode_push_pull(wire.PushPull(entries, b"", True))
        codec = layers.Codec(Keyring(keys) if keys else None, random.Random(1).randbytes, compression=False)
        reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
        writer.write(codec.encode_stream(request))
        answer = bytearray()
        async with asyncio.timeout(DEADLINE_S):
            while codec.decode_stream(bytes(answer)) is None:
                answer += await reader.read(65536)
        writer.close()
        await until(lambda: len(a.pool.members) == 2001, "the state is taken over")
        assert await b.pool.join([f"127.0.0.1:{a.port}"]) == 1
        assert len(b.pool.members) == 2002


async def test_a_peer_that_neither_reads_nor_speaks_costs_a_bounded_time() -> None:
    a = Node("a")
    with socket.socket() as stuck:
        stuck.bind(("127.0.0.1", 0))
        stuck.listen()
        async with running(a):
            with pytest.raises(JoinFailed, match="no answer"):
                async with asyncio.timeout(DEADLINE_S):
                    await a.pool.join([f"127.0.0.1:{stuck.getsockname()[1]}"])


async def test_silent_connections_are_closed_and_do_not_keep_others_out() -> None:
    a, b = Node("a"), Node("b")
    async with running(a, b):
        silent = [await asyncio.open_connection("127.0.0.1", a.port) for _ in range(130)]
        for reader, _ in silent:
            async with asyncio.timeout(DEADLINE_S):
                try:
                    assert await reader.read() == b""
                except ConnectionError:
                    continue
        assert await b.pool.join([f"127.0.0.1:{a.port}"]) == 1
        for _, writer in silent:
            writer.close()


async def test_who_has_another_key_is_told_so_in_the_reason_of_the_failed_join() -> None:
    a, b, plain = Node("a"), Node("b", keys=(b"x" * 16,)), Node("plain", keys=())
    async with running(a, b, plain):
        for stranger in (b, plain):
            with pytest.raises(JoinFailed):
                await stranger.pool.join([f"127.0.0.1:{a.port}"])
        assert [member.name for member in a.pool.members] == ["a"]


async def test_junk_is_counted_and_harmless_and_spares_the_rest_of_its_packet() -> None:
    a, b = Node("a", keys=()), Node("b", keys=())
    async with running(a, b):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for blob in (b"", b"\xff", b"\x00\xc1", b"\x08\x02\x81\xa6Events\x05", b"\x07\xff", b"\x09\x80" * 100):
                stranger.sendto(blob, ("127.0.0.1", a.port))
            good = wire.encode(wire.Alive(1, "fresh", "127.0.0.9", 7946, b"", wire.OWN_VERSIONS))
            stranger.sendto(layers.compound([b"\x08\x02\xc0", good]), ("127.0.0.1", a.port))
        await until(lambda: a.status_of("fresh") is MemberStatus.ALIVE, "the good message is heard")
        assert await b.pool.join([f"127.0.0.1:{a.port}"]) == 1


async def test_keys_are_changed_on_every_disk_or_the_operator_hears_of_it() -> None:
    a, b = Node("a"), Node("b")
    fresh = "ERERERERERERERERERERESIiIiIiIiIiIiIiIiIiIiI="
    async with running(a, b):
        await b.pool.join([f"127.0.0.1:{a.port}"])
        await until(lambda: a.status_of("b") is MemberStatus.ALIVE, "both are there")

        async def installed() -> bool:
            answer = await a.pool.operate_keys("install-key", fresh)
            return (answer.heard, answer.errors) == (2, {})

        await until(installed, "both have answered")  # an answer that comes late is asked for again
        assert fresh in a.kept[-1]
        assert fresh in b.kept[-1]
        b.full_disk = True

        async def errors() -> dict[str, str]:
            return (await a.pool.operate_keys("use-key", fresh)).errors

        heard = await until(errors, "b's failure is heard of")
        assert set(heard) == {"b"}
        assert "No space left" in heard["b"]
        await until(lambda: b.status_of("a") is MemberStatus.ALIVE, "the two still understand each other")


async def test_a_stopped_pool_is_silent_even_if_a_stream_ends_later() -> None:
    a = Node("a")
    async with running(a):
        _, writer = await asyncio.open_connection("127.0.0.1", a.port)
        writer.write(b"\x0a")
        await writer.drain()
        await a.pool.stop()
        writer.close()
        await until(lambda: _is_free(a.port), "its port is free")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", port))
    return True


async def test_a_taken_port_is_named() -> None:
    first = Node("first")
    async with running(first):
        with pytest.raises(MeshError, match=f"127.0.0.1 port {first.port}: .*another agent running"):
            await Node("second", port=first.port).pool.start()
