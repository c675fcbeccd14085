"""The HTTP server and client over real sockets: keep-alive, pipelining, limits, junk, slow readers, upgrades, unix sockets."""

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from mesh_agent.errors import InvalidRequest, MeshError, RemoteProtocolError, Unreachable
from mesh_agent.http.client import HttpClient
from mesh_agent.http.frames import MAX_FRAME_BYTES
from mesh_agent.http.message import Answer, FrameStreamLike, Handler, Request, Response, Upgrade
from mesh_agent.http.server import HttpServer

# The hook that replaces it applies to every test of the suite at once; these are the ones that need both loops.
pytestmark = pytest.mark.filterwarnings('ignore:Overriding the "event_loop_policy" fixture')

DEADLINE_S = 20.0
LARGE = 4 * 1024 * 1024
HUGE = 64 * 1024 * 1024
"""More than a kernel buffers for a connection."""


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Agents run on uvloop, commands on asyncio."""
    return request.param()  # type: ignore[no-any-return]


class Service:
    """Handlers that show what a connection does: `/hold` waits for `release`, `/large` and `/huge` fill buffers."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.held = asyncio.Event()
        self.given_up = asyncio.Event()
        self.asked = asyncio.Event()
        self.served = 0

    def handle(self, request: Request) -> Answer | Awaitable[Answer]:
        self.served += 1
        self.asked.set()
        if request.path == "/hold":
            return self._hold()
        if request.path == "/stream":
            return Upgrade("echo/1", echo)
        if request.path == "/broken":
            raise ValueError("a bug")
        if request.path == "/large":
            return Response(200, bytes(LARGE))
        if request.path == "/huge":
            return Response(200, bytes(HUGE))
        return Response.json([request.method, request.target, len(request.body)])

    async def _hold(self) -> Answer:
        self.held.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        return Response.text(200, "held")


async def echo(stream: FrameStreamLike) -> None:
    while (frame := await stream.receive()) is not None:
        await stream.send(frame[::-1])


@pytest.fixture
async def service() -> Service:
    return Service()


@contextlib.asynccontextmanager
async def serving(handler: Handler, **limits: float) -> AsyncIterator[int]:
    server = HttpServer(handler, **limits)  # type: ignore[arg-type]  # max_body_bytes, idle_s
    port = await server.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await server.stop(grace_s=0.5)


@pytest.fixture
async def port(service: Service) -> AsyncIterator[int]:
    async with serving(service.handle) as found:
        yield found


async def answers(port: int, *parts: bytes) -> bytes:
    """Everything that the server sends until it closes the connection, after each part was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(DEADLINE_S):
            for part in parts:
                writer.write(part)
                await writer.drain()
            return await reader.read()
    finally:
        writer.close()


class Talk:
    """A connection that stays open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def until(self, end: bytes) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await self.reader.readuntil(end)

    async def response(self) -> tuple[bytes, bytes]:
        """Status line and body of the next response."""
        head = await self.until(b"\r\n\r\n")
        size = next(int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length: "))
        async with asyncio.timeout(DEADLINE_S):
            return head.split(b"\r\n")[0], await self.reader.readexactly(size)


@contextlib.asynccontextmanager
async def talking(port: int) -> AsyncIterator[Talk]:
    talk = Talk(*await asyncio.open_connection("127.0.0.1", port))
    try:
        yield talk
    finally:
        talk.writer.close()


GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSE = b"GET /end HTTP/1.1\r\nConnection: close\r\n\r\n"


async def test_one_connection_answers_many_requests(port: int) -> None:
    async with talking(port) as talk:
        for at in range(3):
            talk.writer.write(GET % b"/%d" % at)
            assert await talk.response() == (b"HTTP/1.1 200 OK", b'["GET","/%d",0]' % at)


async def test_a_request_may_arrive_in_pieces(port: int) -> None:
    request = b"PUT /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
    async with talking(port) as talk:
        for at in range(len(request)):
            talk.writer.write(request[at : at + 1])
            await talk.writer.drain()
        assert await talk.response() == (b"HTTP/1.1 200 OK", b'["PUT","/x",5]')


async def test_a_chunked_body_and_expect_continue(port: int) -> None:
    head = b"PUT /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    async with talking(port) as talk:
        talk.writer.write(head)
        assert await talk.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        talk.writer.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        assert await talk.response() == (b"HTTP/1.1 200 OK", b'["PUT","/x",5]')


@pytest.mark.parametrize("count", [2, 64, 300])
async def test_pipelined_requests_are_answered_in_order(port: int, count: int) -> None:
    found = await answers(port, b"".join(GET % b"/%d" % at for at in range(count)), CLOSE)
    bodies = [line for line in found.split(b"\r\n") if line.startswith(b'["')]
    assert len(found.split(b"HTTP/1.1 200 OK")) == count + 2
    assert all(b'"/%d"' % at in found for at in range(count)), bodies[:3]
    assert found.index(b'"/0"') < found.index(b'"/1"') < found.index(b'"/end"')


async def test_a_slow_answer_holds_up_those_behind_it_and_no_others(port: int, service: Service) -> None:
    async with talking(port) as talk, talking(port) as other:
        talk.writer.write(GET % b"/hold" + b"".join(GET % b"/%d" % at for at in range(200)))
        await service.held.wait()
        other.writer.write(GET % b"/other")
        assert (await other.response())[1] == b'["GET","/other",0]'
        service.release.set()
        assert (await talk.response())[1] == b"held"
        for at in range(200):
            assert (await talk.response())[1] == b'["GET","/%d",0]' % at


async def test_a_client_that_goes_away_ends_what_it_waited_for(port: int, service: Service) -> None:
    async with talking(port) as talk:
        talk.writer.write(GET % b"/hold")
        await service.held.wait()
    async with asyncio.timeout(DEADLINE_S):
        await service.given_up.wait()


async def test_a_client_that_does_not_read_is_not_read_from(port: int, service: Service) -> None:
    """Else some kilobytes of requests would fill the memory with megabytes of answers."""
    count = 200
    async with talking(port) as talk:
        talk.writer.write((GET % b"/large") * count)
        await service.asked.wait()
        async with talking(port) as other:  # a round trip later everything that was sent has been looked at
            other.writer.write(GET % b"/other")
            await other.response()
        assert service.served < 10
        for _ in range(5):
            assert len((await talk.response())[1]) == LARGE
        assert service.served < 20


async def test_one_that_never_reads_is_cut_off() -> None:
    service = Service()
    server = HttpServer(service.handle, idle_s=0.5)
    async with talking(await server.start("127.0.0.1", 0)) as talk:
        talk.writer.write(GET % b"/huge")
        await service.asked.wait()
        async with asyncio.timeout(DEADLINE_S):
            await server.drained.wait()
        with contextlib.suppress(ConnectionError):
            assert len(await talk.reader.read()) < HUGE
    await server.stop()


@pytest.mark.parametrize("size", [1000, 1001, 300_000])
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_that_is_too_large_is_413(size: int, chunked: bool) -> None:
    length, body = f"Content-Length: {size}".encode(), bytes(size)
    if chunked:
        length, body = b"Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
    async with serving(Service().handle, max_body_bytes=1000) as port:
        found = await answers(port, b"PUT /x HTTP/1.1\r\nConnection: close\r\n" + length + b"\r\n\r\n", body)
    if size <= 1000:
        assert found.startswith(b"HTTP/1.1 200 OK")
        return
    assert found.startswith(b"HTTP/1.1 413 ")
    assert found.endswith(b"Request body too large, max size: 1000 bytes")


@pytest.mark.parametrize("length", [b"1001", b"9" * 18])
async def test_a_body_that_is_announced_as_too_large_is_not_waited_for(length: bytes) -> None:
    async with serving(Service().handle, max_body_bytes=1000) as port:
        found = await answers(
            port, b"PUT /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: " + length + b"\r\n\r\n"
        )
    assert found.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", id="target"),
        pytest.param(b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", id="one header"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 40_000 + b"\r\n", id="many headers"),
        pytest.param(b"GET / HTTP/1.1\r\nx: " + b"a" * 2_000_000, id="a header without an end"),
        pytest.param(b"GET /" + b"a" * 2_000_000, id="a target without an end"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"x" * 2_000_000, id="a name without an end"),
    ],
)
async def test_a_head_that_is_too_large_is_431(port: int, head: bytes) -> None:
    found = await answers(port, head)
    assert found.startswith(b"HTTP/1.1 431 ")
    assert found.endswith(b"Request headers too large")


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS client
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"PUT / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"PUT / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    ],
)
async def test_junk_is_400_and_the_end(port: int, junk: bytes) -> None:
    found = await answers(port, junk)
    assert found.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nConnection: close\r\n" in found


async def test_random_junk_never_stops_the_server(port: int) -> None:
    seed = 20240607
    rng = random.Random(seed)
    good = b"PUT /x?y=z HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello"
    for _ in range(60):
        wire = bytearray(good * rng.randint(1, 3))
        for _ in range(rng.randint(1, 6)):
            wire[rng.randrange(len(wire))] = rng.randrange(256)
        async with talking(port) as talk:
            talk.writer.write(bytes(wire))
            talk.writer.write_eof()
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(DEADLINE_S):
                    await talk.reader.read()
    assert (await answers(port, CLOSE)).startswith(b"HTTP/1.1 200 OK"), f"seed {seed}"


async def test_a_bug_in_a_handler_is_500_and_the_connection_goes_on(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    found = await answers(port, GET % b"/broken", CLOSE)
    assert found.startswith(b"HTTP/1.1 500 ")
    assert b'"/end"' in found
    assert "request failed" in caplog.text


async def test_an_idle_connection_is_closed() -> None:
    async with serving(Service().handle, idle_s=0.5) as port:
        assert await answers(port) == b""
        assert (await answers(port, GET % b"/x")).startswith(b"HTTP/1.1 200 OK")
        assert await answers(port, b"GET / HT") == b"", "half a request is no sign of life"


async def test_a_request_that_is_worked_on_is_not_idle() -> None:
    service = Service()
    async with serving(service.handle, idle_s=0.5) as port, talking(port) as talk:
        talk.writer.write(GET % b"/hold")
        await service.held.wait()
        asyncio.get_running_loop().call_later(1.5, service.release.set)
        assert (await talk.response())[1] == b"held"


async def test_http_1_0_and_head(port: int) -> None:
    found = await answers(port, b"GET /x HTTP/1.0\r\n\r\n")
    assert b"\r\nConnection: close\r\n" in found
    found = await answers(port, b"HEAD /x HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert found.endswith(b"Content-Length: 15\r\nConnection: close\r\n\r\n"), "a length and no body"


async def test_what_is_under_way_is_finished_before_a_stop(service: Service) -> None:
    server = HttpServer(service.handle)
    port = await server.start("127.0.0.1", 0)
    async with talking(port) as talk, talking(port) as idle:
        talk.writer.write(GET % b"/hold")
        await service.held.wait()
        stopping = asyncio.create_task(server.stop(grace_s=DEADLINE_S))
        async with asyncio.timeout(DEADLINE_S):
            assert await idle.reader.read() == b""
        service.release.set()
        assert (await talk.response())[1] == b"held"
        await stopping
    with pytest.raises(OSError, match=r".*"):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_taken_port_is_named(port: int) -> None:
    with pytest.raises(MeshError, match=f"cannot listen on 127.0.0.1 port {port}"):
        await HttpServer(Service().handle).start("127.0.0.1", port)


# upgrades


async def test_a_stream_of_frames(port: int) -> None:
    client = HttpClient()
    stream = await client.upgrade(f"http://127.0.0.1:{port}", "/stream", "echo/1")
    payloads = [b"", b"abc", bytes(range(256)) * 4096]
    for payload in payloads:
        await stream.send(payload)
    async with asyncio.timeout(DEADLINE_S):
        assert [await stream.receive() for _ in payloads] == [payload[::-1] for payload in payloads]
    stream.close()
    assert await stream.receive() is None
    with pytest.raises(Unreachable):
        await stream.send(b"late")
    await client.close()


async def test_frames_that_come_with_the_request_are_not_lost(port: int) -> None:
    async with talking(port) as talk:
        upgrade = b"GET /stream HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n"
        talk.writer.write(upgrade + b"\0\0\0\3abc" + b"\0\0\0\2")
        assert (await talk.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        talk.writer.write(b"de")
        async with asyncio.timeout(DEADLINE_S):
            assert await talk.reader.readexactly(13) == b"\0\0\0\3cba\0\0\0\2ed"


async def test_many_frames_against_slow_readers_on_both_sides(port: int) -> None:
    client = HttpClient()
    stream = await client.upgrade(f"http://127.0.0.1:{port}", "/stream", "echo/1")
    count, frame = 2000, bytes(8192)

    async def send() -> None:
        for _ in range(count):
            await stream.send(frame)

    async with asyncio.timeout(DEADLINE_S * 2), asyncio.TaskGroup() as group:
        group.create_task(send())
        for _ in range(count):
            assert await stream.receive() == frame
    stream.close()
    await client.close()


async def test_a_frame_that_is_too_large_ends_the_stream(port: int) -> None:
    upgrade = b"GET /stream HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n"
    found = await answers(port, upgrade, (MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
    assert found.startswith(b"HTTP/1.1 101 ")


async def test_an_upgrade_that_nobody_speaks_stays_http_1_1(port: int) -> None:
    """As `curl --http2` and some Java clients begin."""
    ask = b"GET /x HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    found = await answers(port, ask + GET % b"/y", CLOSE)
    assert found.count(b"HTTP/1.1 200 OK") == 3
    with pytest.raises(Unreachable, match="refused the stream: 200"):
        await HttpClient().upgrade(f"http://127.0.0.1:{port}", "/x", "echo/1")


@pytest.mark.parametrize(
    ("error", "logged"),
    [(RemoteProtocolError("told so"), "a stream ended: told so"), (ValueError("bug"), "a stream failed")],
)
async def test_a_stream_that_fails_is_closed(error: Exception, logged: str, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(stream: FrameStreamLike) -> None:
        raise error

    caplog.set_level("INFO")
    async with serving(lambda _: Upgrade("x", fail)) as port:
        client = HttpClient()
        stream = await client.upgrade(f"http://127.0.0.1:{port}", "/", "x")
        async with asyncio.timeout(DEADLINE_S):
            assert await stream.receive() is None
    assert logged in caplog.text


# the client


async def test_the_client_keeps_connections_and_replaces_dead_ones(service: Service) -> None:
    client = HttpClient()
    peers: list[int] = []

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers two requests, then closes without a word."""
        peers.append(writer.get_extra_info("peername")[1])
        for _ in range(2):
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    async with await asyncio.start_server(count, "127.0.0.1", 0) as server:
        target = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for _ in range(6):
            assert (await client.request("GET", target, "/")).body == b"ok"
        assert len(peers) == 3
        await client.close()


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"", "closed before the answer"),
        (b"SSH-2.0-OpenSSH\r\n", "not an HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "closed before the answer"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", ""),
    ],
)
async def test_answers_that_are_none(wire: bytes, reason: str) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(wire)
        writer.close()

    client = HttpClient()
    async with await asyncio.start_server(say, "127.0.0.1", 0) as server:
        target = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        if not reason:
            assert (await client.request("GET", target, "/")).status == 101
        else:
            with pytest.raises(Unreachable, match=reason):
                await client.request("GET", target, "/")
        await client.close()


async def test_no_answer_in_time_and_nobody_there(port: int) -> None:
    client = HttpClient()
    with pytest.raises(Unreachable, match=r"gave no answer within 0\.2 s"):
        await client.request("GET", f"http://127.0.0.1:{port}", "/hold", timeout_s=0.2)
    async with serving(Service().handle) as gone:
        pass
    with pytest.raises(Unreachable, match=f"http://127.0.0.1:{gone}: Connection refused"):
        await client.request("GET", f"http://127.0.0.1:{gone}", "/")
    with pytest.raises(Unreachable, match="nowhere"):
        await client.request("GET", "unix:///nowhere", "/")
    await client.close()


async def test_a_unix_socket_has_the_mode_that_it_was_given(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    server = HttpServer(Service().handle)
    await server.start_unix(str(path), 0o600)
    assert path.stat().st_mode & 0o777 == 0o600
    client = HttpClient()
    assert (await client.request("PUT", f"unix://{path}", "/x", body=b"abc")).body == b'["PUT","/x",3]'
    await client.close()
    await server.stop(grace_s=0.5)


async def test_a_peer_that_the_verifier_refuses_gets_no_request(service: Service) -> None:
    checks: list[Callable[[], None]] = []
    client = HttpClient(ssl.create_default_context(), verify=lambda _: checks.append(lambda: None))
    async with serving(service.handle) as port:  # plain HTTP behind an https target
        with pytest.raises(Unreachable):
            await client.request("GET", f"https://127.0.0.1:{port}", "/")
    assert not checks
    assert service.served == 0
    await client.close()


async def test_errors_of_awaited_handlers() -> None:
    async def fail(request: Request) -> Answer:
        raise InvalidRequest("not caught by any table")

    async with serving(fail) as port:
        assert (await answers(port, CLOSE)).startswith(b"HTTP/1.1 500 ")
