"""The DNS server on real sockets: UDP, TCP, dig, recursors, and waiting for the catalog."""

import asyncio
import contextlib
import random
import shutil
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine

import dns.asyncquery
import dns.flags
import dns.message
import dns.rcode
import pytest
import uvloop

from mesh_agent.catalog.view import View
from mesh_agent.config import AgentConfig, DnsConfig
from mesh_agent.dns.server import DnsServer
from mesh_agent.errors import ConfigError
from mesh_agent.model import Node, Service, Topic
from tests.support.catalog import StaticCatalog, ViewWriter
from tests.support.ports import free_port

LOOPBACK = "127.0.0.1"
DEADLINE_S = 20.0


Run = Callable[[Coroutine[object, object, None]], None]


def on_both_loops(test: Callable[[], Coroutine[object, object, None]]) -> Callable[[Run], None]:
    """Run a test on asyncio's own loop and on uvloop, which is what agents run on."""

    @pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
    def wrapper(run: Run) -> None:
        run(test())

    wrapper.__name__, wrapper.__doc__ = test.__name__, test.__doc__
    return wrapper


def catalog() -> StaticCatalog:
    dc1, dc2 = ViewWriter("dc1"), ViewWriter("dc2")
    for at in range(1, 41):
        node = Node(name=f"n{at}", address=f"10.0.0.{at}", meta={"rack": "r1"})
        dc1.instance(Service(id="many", name="many", node=node.name, port=80), node)
    one = Node(name="n1", address="10.0.0.1", meta={"rack": "r1"})
    dc1.instance(Service(id="api", name="api", node="n1", port=8080), one)
    for name, target in (("ext", "www.example.com"), ("again", "api.service.mesh"), ("loop", "loop.service.mesh")):
        dc1.instance(Service(id=name, name=name, node="n1", address=target), one)
    dc2.instance(Service(id="far", name="far", node="m1", port=9090), Node(name="m1", address="10.2.0.1"))
    return StaticCatalog({"dc1": dc1.view, "dc2": dc2.view})


class Running:
    """A server with its catalog and its port."""

    def __init__(self, held: StaticCatalog, server: DnsServer, port: int) -> None:
        self.catalog, self.server, self.port = held, server, port

    async def udp(self, name: str, qtype: str = "A", **options: object) -> dns.message.Message:
        query = dns.message.make_query(name, qtype, **options)  # type: ignore[arg-type]
        return await dns.asyncquery.udp(query, LOOPBACK, DEADLINE_S, self.port)

    async def tcp(self, name: str, qtype: str = "A") -> dns.message.Message:
        return await dns.asyncquery.tcp(dns.message.make_query(name, qtype), LOOPBACK, DEADLINE_S, self.port)

    async def dig(self, *arguments: str) -> str:
        binary = shutil.which("dig")
        assert binary, "dig is not installed; `make packages` installs it (Debian's bind9-dnsutils)"
        command = [binary, f"@{LOOPBACK}", "-p", str(self.port), "+tries=1", "+time=15", *arguments]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        assert process.returncode == 0, output
        return output.decode()


@contextlib.asynccontextmanager
async def running(**settings: object) -> AsyncIterator[Running]:
    config = AgentConfig(node_name="n1", server=True, dns=DnsConfig(**settings))  # type: ignore[arg-type]
    held = catalog()
    server = DnsServer(config, held, random.Random(1))
    port = await server.start(LOOPBACK, 0)
    try:
        yield Running(held, server, port)
    finally:
        await server.stop()


def addresses(answer: dns.message.Message) -> list[str]:
    return sorted(item.to_text() for rrset in answer.answer for item in rrset)


@on_both_loops
async def test_udp_and_tcp_on_the_same_port() -> None:
    async with running() as it:
        assert addresses(await it.udp("api.service.mesh")) == ["10.0.0.1"]
        few = await it.udp("many.service.mesh")
        assert len(addresses(few)) == 3
        assert few.flags & dns.flags.TC
        assert len(addresses(await it.tcp("many.service.mesh"))) == 40


@on_both_loops
async def test_dig_understands_the_answers() -> None:
    async with running() as it:
        assert await it.dig("api.service.mesh", "+short") == "10.0.0.1\n"
        assert await it.dig("far.service.dc2.dc.consul", "SRV", "+short") == "1 1 9090 m1.node.dc2.consul.\n"
        whole = await it.dig("many.service.mesh", "SRV")
        assert "status: NOERROR" in whole
        assert "Truncated, retrying in TCP mode" in whole
        assert "ANSWER: 40, AUTHORITY: 0, ADDITIONAL: 81" in whole
        for warning in ("WARNING", "malformed", "extra"):
            assert warning not in whole.replace(";; WARNING: recursion requested but not available\n", "")
        assert "status: NXDOMAIN" in await it.dig("nothing.service.mesh")
        assert "status: REFUSED" in await it.dig("example.com")
        assert "Transfer failed" in await it.dig("mesh", "AXFR")
        assert "status: NOERROR" in await it.dig("api.service.mesh", "+subnet=192.0.2.0/24", "+dnssec", "+cookie")
        assert "status: BADVERS" in await it.dig("api.service.mesh", "+edns=9", "+noednsnegotiation")
        assert await it.dig("-x", "10.0.0.7", "+short") == "n7.node.dc1.mesh.\n"


@on_both_loops
async def test_a_query_for_another_datacenter_waits_for_it_and_fails_honestly() -> None:
    async with running() as it:
        it.catalog.hidden.add("dc2")
        assert addresses(await it.udp("far.service.dc2.mesh")) == ["10.2.0.1"]
        it.catalog.cut["dc2"] = "No path to datacenter 'dc2': its servers do not answer"
        for answer in (await it.udp("far.service.dc2.mesh", use_edns=0), await it.tcp("far.service.dc2.mesh")):
            assert answer.rcode() == dns.rcode.SERVFAIL
        assert "do not answer" in (await it.udp("far.service.dc2.mesh", use_edns=0)).options[0].to_text()
        assert addresses(await it.udp("api.service.mesh")) == ["10.0.0.1"]
        assert (await it.udp("far.service.dc7.mesh")).rcode() == dns.rcode.NXDOMAIN
        it.catalog.cut.clear()
        assert addresses(await it.tcp("far.service.dc2.mesh")) == ["10.2.0.1"]


def framed(*names: str) -> bytes:
    queries = [dns.message.make_query(name, "A", id=at).to_wire() for at, name in enumerate(names)]
    return b"".join(struct.pack("!H", len(query)) + query for query in queries)


async def read_answer(reader: asyncio.StreamReader) -> dns.message.Message:
    async with asyncio.timeout(DEADLINE_S):
        size = int.from_bytes(await reader.readexactly(2), "big")
        return dns.message.from_wire(await reader.readexactly(size))


@on_both_loops
async def test_tcp_pipelining_in_pieces_and_end_of_stream() -> None:
    async with running() as it:
        it.catalog.hidden.add("dc2")
        reader, writer = await asyncio.open_connection(LOOPBACK, it.port)
        data = framed("api.service.mesh", "far.service.dc2.mesh", "many.service.mesh", "nothing.service.mesh")
        for at in range(0, len(data), 7):
            writer.write(data[at : at + 7])
            await writer.drain()
        writer.write_eof()
        found = {answer.id: answer for answer in [await read_answer(reader) for _ in range(4)]}
        assert [len(addresses(found[at])) for at in range(4)] == [1, 1, 40, 0]
        async with asyncio.timeout(DEADLINE_S):
            assert await reader.read() == b""
        writer.close()


@on_both_loops
async def test_a_tcp_client_that_sends_rubbish_is_dropped_and_nobody_else_notices() -> None:
    async with running() as it:
        reader, writer = await asyncio.open_connection(LOOPBACK, it.port)
        writer.write(b"\0\5hello" * 3)
        async with asyncio.timeout(DEADLINE_S):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.close()
        assert addresses(await it.tcp("api.service.mesh")) == ["10.0.0.1"]


@on_both_loops
async def test_a_tcp_client_that_does_not_read_is_not_served_on() -> None:
    """It asks for far more than it takes: the server stops reading it, so its own sending stalls; everybody else is served."""
    async with running() as it:
        reader, writer = await asyncio.open_connection(LOOPBACK, it.port, limit=1024)
        writer.transport.set_write_buffer_limits(high=0)
        query = framed("many.service.mesh")
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):  # how long to push; nothing depends on it but the strength of the test
                while sent < 64 * 1024 * 1024:
                    writer.write(query * 1000)
                    sent += len(query) * 1000
                    await writer.drain()
        assert sent < 64 * 1024 * 1024
        assert addresses(await it.udp("api.service.mesh")) == ["10.0.0.1"]
        for _ in range(5):
            assert len(addresses(await read_answer(reader))) == 40
        writer.transport.abort()


class StuckCatalog(StaticCatalog):
    """A catalog that never comes."""

    def __init__(self, views: dict[str, View]) -> None:
        super().__init__(views)
        self.asked = asyncio.Event()

    async def ensure(self, topic: Topic, timeout_s: float = 2.0) -> View:
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")


@on_both_loops
async def test_stopping_does_not_wait_for_those_who_wait() -> None:
    held = StuckCatalog({"dc1": ViewWriter("dc1").view})
    server = DnsServer(AgentConfig(node_name="x"), held, random.Random(1))
    port = await server.start(LOOPBACK, 0)
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    writer.write(framed("api.service.dc2.mesh"))
    async with asyncio.timeout(DEADLINE_S):
        await held.asked.wait()
        await server.stop()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()
    with pytest.raises(OSError, match=r"Connect|connect"):
        await asyncio.open_connection(LOOPBACK, port)


@on_both_loops
async def test_junk_datagrams_leave_the_server_alive() -> None:
    async with running() as it:
        rng = random.Random(20)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as junk:
            for _ in range(10):  # in portions that no receive buffer drops
                for _ in range(30):
                    junk.sendto(rng.randbytes(rng.randrange(200)), (LOOPBACK, it.port))
                assert addresses(await it.udp("api.service.mesh")) == ["10.0.0.1"]


@on_both_loops
async def test_a_taken_port_is_a_clear_error() -> None:
    async with running() as it:
        with pytest.raises(ConfigError, match=rf"ports\.dns: cannot listen on 127\.0\.0\.1 port {it.port}/udp"):
            await DnsServer(AgentConfig(node_name="x"), it.catalog, random.Random(1)).start(LOOPBACK, it.port)


class Upstream(asyncio.DatagramProtocol):
    """A recursor that answers every name with its own address, or misbehaves on purpose."""

    def __init__(self, address: str, mood: str = "good") -> None:
        self.address, self.mood = address, mood
        self.asked = 0
        self.port = 0

    async def start(self) -> "Upstream":
        loop = asyncio.get_running_loop()
        self.port = free_port()
        self.stream = await asyncio.start_server(self._serve, LOOPBACK, self.port)
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(LOOPBACK, self.port))
        return self

    async def stop(self) -> None:
        self.transport.close()
        self.stream.close()
        await self.stream.wait_closed()

    def _reply(self, data: bytes) -> dns.message.Message:
        reply = dns.message.make_response(dns.message.from_wire(data), recursion_available=True)
        if self.mood == "servfail":
            reply.set_rcode(dns.rcode.SERVFAIL)
        else:
            reply.answer.append(dns.rrset.from_text(reply.question[0].name, 60, "IN", "A", self.address))
        return reply

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked += 1
        if self.mood == "silent":
            return
        reply = self._reply(data)
        if self.mood == "forging":
            forged = self._reply(data)
            forged.id ^= 1
            self.transport.sendto(forged.to_wire(), addr)
            self.transport.sendto(b"junk", addr)
        if self.mood == "truncating":
            reply.flags |= dns.flags.TC
            reply.answer.clear()
        self.transport.sendto(reply.to_wire(), addr)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        reply = self._reply(await reader.readexactly(size)).to_wire()
        writer.write(struct.pack("!H", len(reply)) + reply)
        writer.close()


@contextlib.asynccontextmanager
async def recursing(*moods: str, timeout_s: float = DEADLINE_S) -> AsyncIterator[tuple[Running, list[Upstream]]]:
    """A server with one recursor per mood; `gone` is a port on which nobody listens."""
    upstreams = [await Upstream(f"192.0.2.{at}", mood).start() for at, mood in enumerate(moods, 1)]
    for upstream in upstreams:
        if upstream.mood == "gone":
            await upstream.stop()
    recursors = tuple(f"{LOOPBACK}:{upstream.port}" for upstream in upstreams)
    try:
        async with running(recursors=recursors, recursor_timeout_s=timeout_s) as it:
            yield it, upstreams
    finally:
        for upstream in upstreams:
            if upstream.mood != "gone":
                await upstream.stop()


@on_both_loops
async def test_foreign_names_go_to_the_first_recursor_that_answers() -> None:
    async with recursing("gone", "servfail", "good", "good") as (it, upstreams):
        for _ in range(2):
            answer = await it.udp("www.example.com", use_edns=0)
            assert addresses(answer) == ["192.0.2.3"]
            assert answer.flags & dns.flags.RA
        assert addresses(await it.tcp("www.example.com")) == ["192.0.2.3"]
        assert upstreams[3].asked == 0
        assert addresses(await it.udp("api.service.mesh")) == ["10.0.0.1"]
        assert upstreams[2].asked == 3


@on_both_loops
async def test_a_silent_recursor_is_passed_over_after_its_time() -> None:
    async with recursing("silent", "good", timeout_s=1.0) as (it, _):
        assert addresses(await it.udp("www.example.com")) == ["192.0.2.2"]


@on_both_loops
async def test_without_any_answer_it_is_servfail() -> None:
    async with recursing("silent", "gone", timeout_s=0.2) as (it, _):
        answer = await it.udp("www.example.com", use_edns=0)
        assert answer.rcode() == dns.rcode.SERVFAIL
        assert "did not answer within 0.2 s" in answer.options[0].to_text()
    async with recursing("servfail") as (it, _):
        assert (await it.udp("www.example.com")).rcode() == dns.rcode.SERVFAIL


@on_both_loops
async def test_forged_answers_are_ignored() -> None:
    async with recursing("forging") as (it, _):
        assert addresses(await it.udp("www.example.com")) == ["192.0.2.1"]


@on_both_loops
async def test_truncated_answers_are_passed_on_over_udp_and_completed_over_tcp() -> None:
    async with recursing("truncating") as (it, _):
        answer = await it.udp("www.example.com")
        assert answer.flags & dns.flags.TC
        assert addresses(await it.tcp("www.example.com")) == ["192.0.2.1"]


@on_both_loops
async def test_unknown_reverse_names_go_to_the_recursors() -> None:
    async with recursing("good") as (it, upstreams):
        await it.udp("9.9.9.9.in-addr.arpa", "PTR")
        assert upstreams[0].asked == 1


@on_both_loops
async def test_the_addresses_behind_an_alias_come_with_it() -> None:
    async with recursing("good") as (it, upstreams):
        for answer in (await it.udp("ext.service.mesh"), await it.tcp("ext.service.mesh")):
            assert addresses(answer) == ["192.0.2.1", "www.example.com."]
        answer = await it.udp("again.service.mesh")
        assert [rrset.to_text() for rrset in answer.answer] == [
            "again.service.mesh. 0 IN CNAME api.service.mesh.",
            "api.service.mesh. 0 IN A 10.0.0.1",
        ]
        assert addresses(await it.udp("loop.service.mesh")) == ["loop.service.mesh."]
        assert addresses(await it.udp("ext.service.mesh", "CNAME")) == ["www.example.com."]
        assert upstreams[0].asked == 2
    async with recursing("gone", timeout_s=0.2) as (it, _):
        assert addresses(await it.udp("ext.service.mesh")) == ["www.example.com."]


@on_both_loops
async def test_an_agent_is_not_its_own_recursor() -> None:
    port = free_port()
    config = AgentConfig(node_name="x", dns=DnsConfig(recursors=(f"{LOOPBACK}:{port}",)))
    with pytest.raises(ConfigError, match="is this agent itself"):
        await DnsServer(config, catalog(), random.Random(1)).start(LOOPBACK, port)


@pytest.mark.parametrize("text", ["dns.example.com", "1.2.3.4:x", "1.2.3.4:0", "[::1", "1.2.3.4:70000", ""])
def test_a_recursor_that_is_no_address_is_a_clear_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"dns\.recursors"):
        DnsServer(AgentConfig(node_name="x", dns=DnsConfig(recursors=(text,))), catalog(), random.Random(1))
