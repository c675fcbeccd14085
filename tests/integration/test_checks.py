"""Every kind of check against a small real server on loopback, and the local agent with its disk and a catalog."""

import asyncio
import contextlib
import json
import os
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mesh_agent.agent import CheckDefinition, ServiceDefinition
from mesh_agent.agent.probes.client import Probes
from mesh_agent.agent.runner import LocalAgent
from mesh_agent.catalog.view import View
from mesh_agent.clock import Clock, ManualClock, SystemClock
from mesh_agent.config.settings import AgentConfig, ChecksConfig
from mesh_agent.errors import InvalidRequest, NoServers, NotFound, StoreUnavailable
from mesh_agent.http.message import Request, Response
from mesh_agent.http.server import HttpServer
from mesh_agent.model import SERF_HEALTH, Check, Node, Record, Status
from tests.support.agents import until
from tests.support.catalog import StaticCatalog, ViewWriter
from tests.support.ports import free_port

pytestmark = pytest.mark.filterwarnings('ignore:Overriding the "event_loop_policy" fixture')

OK, WARN, BAD = Status.PASSING, Status.WARNING, Status.CRITICAL


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """The loop that agents run on."""
    return uvloop.EventLoopPolicy()


async def _probe(timeout_s: float = 30.0, **fields: Any) -> tuple[Status, str]:
    result = await Probes().run(CheckDefinition(id="c", interval_s=1.0, timeout_s=timeout_s, **fields))
    return result.status, result.output


# HTTP


@contextlib.asynccontextmanager
async def _http(
    handler: Callable[[Request], Response | Awaitable[Response]], context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    server = HttpServer(handler)
    try:
        yield await server.start("127.0.0.1", 0, context)
    finally:
        await server.stop(0.1)


@pytest.mark.parametrize(("code", "status"), [(200, OK), (204, OK), (299, OK), (429, WARN), (404, BAD), (503, BAD)])
async def test_http_statuses(code: int, status: Status) -> None:
    async with _http(lambda _: Response.text(code, "body")) as port:
        found, output = await _probe(http=f"http://127.0.0.1:{port}/health")
    assert found is status
    assert output.startswith(f"HTTP GET http://127.0.0.1:{port}/health: {code}")


async def test_http_sends_what_the_check_says() -> None:
    seen: list[Request] = []

    def handler(request: Request) -> Response:
        seen.append(request)
        return Response.text(200, "fine")

    async with _http(handler) as port:
        found = await _probe(
            http=f"http://127.0.0.1:{port}/a?b=c",
            method="POST",
            body="hello",
            header={"X-Token": ["secret"], "Host": ["web"]},
        )
    assert found == (OK, f"HTTP POST http://127.0.0.1:{port}/a?b=c: 200 OK Output: fine")
    [request] = seen
    assert (request.method, request.path, request.query, request.body) == ("POST", "/a", {"b": ["c"]}, b"hello")
    assert (request.headers["x-token"], request.headers["host"]) == ("secret", "web")


async def test_http_follows_redirections_but_not_for_ever() -> None:
    def handler(request: Request) -> Response:
        where = {"/start": "/end", "/loop": "/loop"}.get(request.path)
        return Response(302, b"", [("Location", where)]) if where else Response.text(200, "here")

    async with _http(handler) as port:
        assert (await _probe(http=f"http://127.0.0.1:{port}/start"))[0] is OK
        status, output = await _probe(http=f"http://127.0.0.1:{port}/loop")
    assert status is BAD
    assert "stopped after 10 redirects" in output


async def test_http_reads_no_more_than_it_shows_and_waits_no_longer_than_its_timeout() -> None:
    hang = asyncio.Event()

    async def handler(request: Request) -> Response:
        if request.path == "/hang":
            await hang.wait()
        return Response(200, b"x" * 50_000_000)

    async with _http(handler) as port:
        status, output = await _probe(http=f"http://127.0.0.1:{port}/large")
        assert (status, len(output) < 10_000) == (OK, True)
        assert (await _probe(http=f"http://127.0.0.1:{port}/large", method="HEAD"))[0] is OK
        status, output = await _probe(http=f"http://127.0.0.1:{port}/hang", timeout_s=0.2)
        assert (status, "timed out after 0.2 s" in output) == (BAD, True)
        hang.set()


async def test_what_answers_no_http_is_critical() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answers.pop())
        writer.close()

    answers = [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.0 200 OK\r\n\r\nuntil the end"]
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        assert await _probe(http=url) == (OK, f"HTTP GET {url}: 200 OK Output: until the end")
        status, output = await _probe(http=url)
        assert (status, "not an HTTP answer" in output) == (BAD, True)
        status, output = await _probe(http=url)
        assert (status, "closed before the answer" in output) == (BAD, True)


def _certificate(directory: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1)
    )
    certificate = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False).sign(
        key, hashes.SHA256()
    )
    path = directory / "server.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


async def test_https_verifies_unless_told_not_to(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_certificate(tmp_path))
    async with _http(lambda _: Response.text(200, "fine"), context) as port:
        url = f"https://127.0.0.1:{port}/"
        status, output = await _probe(http=url)
        assert (status, "certificate verify failed" in output) == (BAD, True)
        assert await _probe(http=url, tls_skip_verify=True) == (OK, f"HTTP GET {url}: 200 OK Output: fine")


# TCP, UDP


async def test_tcp() -> None:
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert await _probe(tcp=endpoint) == (OK, f"TCP connect {endpoint}: Success")
    endpoint = f"127.0.0.1:{free_port()}"
    assert await _probe(tcp=endpoint) == (BAD, f"TCP connect {endpoint}: Connection refused")


@pytest.mark.parametrize("name", ["a..b", "x" * 70 + ".example", "does-not-exist.invalid"])
async def test_a_name_that_cannot_be_resolved_is_critical(name: str) -> None:
    for fields in ({"tcp": f"{name}:1"}, {"udp": f"{name}:1"}, {"http": f"http://{name}/"}):
        assert (await _probe(timeout_s=10.0, **fields))[0] is BAD  # a resolver may be out of reach


class _Answering(asyncio.DatagramProtocol):
    def __init__(self, *, answers: bool) -> None:
        self._answers = answers

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self._answers:
            self._transport.sendto(data, addr)


@pytest.mark.parametrize("answers", [True, False])
async def test_udp_is_passing_with_an_answer_and_with_silence(answers: bool) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Answering(answers=answers), local_addr=("127.0.0.1", 0))
    try:
        port = transport.get_extra_info("sockname")[1]
        assert (await _probe(udp=f"127.0.0.1:{port}", timeout_s=30.0 if answers else 0.2))[0] is OK
    finally:
        transport.close()


async def test_udp_is_critical_when_nobody_listens() -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    transport.close()
    await asyncio.sleep(0)
    assert await _probe(udp=f"127.0.0.1:{port}") == (BAD, f"UDP connect 127.0.0.1:{port}: Connection refused")


# gRPC


@contextlib.asynccontextmanager
async def _grpc_server(states: dict[str, int]) -> AsyncIterator[int]:
    async def check(request: bytes, context: Any) -> bytes:
        name = request[2:].decode()
        if name not in states:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return bytes([0x08, states[name]])

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(check)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def test_grpc_health() -> None:
    async with _grpc_server({"": 1, "web": 1, "down": 2}) as port:
        for name, status, text in (
            ("", OK, "success"),
            ("/web", OK, "success"),
            ("/down", BAD, "NOT_SERVING"),
            ("/none", BAD, "NOT_FOUND: unknown service"),
        ):
            target = f"127.0.0.1:{port}{name}"
            assert await _probe(grpc=target) == (status, f"gRPC check {target}: {text}")
    assert (await _probe(grpc=f"127.0.0.1:{free_port()}", timeout_s=20.0))[0] is BAD


# scripts, systemd


@pytest.mark.parametrize(("code", "status"), [(0, OK), (1, WARN), (2, BAD), (77, BAD)])
async def test_exit_codes_of_scripts(code: int, status: Status) -> None:
    assert await _probe(args=("sh", "-c", f"echo out; echo err >&2; exit {code}")) == (status, "out\nerr\n")


async def test_a_script_with_much_output_keeps_its_end_and_gets_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_ENCRYPT", "secret")
    script = "import os, sys; sys.stdout.write('x' * 3_000_000 + str(os.environ.get('MESH_ENCRYPT')))"
    status, output = await _probe(args=(sys.executable, "-c", script))
    assert (status, output[-5:]) == (OK, "xNone")
    assert len(output) <= 131072


async def test_a_script_that_does_not_exist_or_may_not_run_is_critical(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    for path, text in (("/does/not/exist", "No such file"), (str(tmp_path / "plain"), "Permission denied")):
        status, output = await _probe(args=(path,))
        assert (status, text in output) == (BAD, True)


@pytest.mark.parametrize("leave", ["wait", "exit 0"])
async def test_what_a_script_started_dies_with_it(tmp_path: Path, leave: str) -> None:
    pids = tmp_path / "pids"
    # `sleep` holds the pipe, so the check is not over when the shell is.
    status, output = await _probe(args=("sh", "-c", f"sleep 1000 & echo $! > {pids}; {leave}"), timeout_s=5.0)
    assert (status, "timed out" in output) == (BAD, True)
    pid = int(pids.read_text())
    await until(lambda: not _runs(pid), f"process {pid} is gone")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_systemd_unit_without_systemd_is_critical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (await _probe(systemd_unit="web.service"))[0] is BAD
    fake = tmp_path / "systemctl"
    fake.write_text("#!/bin/sh\nprintf 'LoadState=loaded\\nActiveState=active\\nSubState=%s\\n' \"$4\"\n")
    fake.chmod(0o755)
    assert await _probe(systemd_unit="web.service") == (OK, "Unit web.service is active (web.service)")


# the local agent


class Town:
    """A node's local agent, a catalog that its writes go to, and its disk."""

    def __init__(self, directory: Path, *, clock: Clock | None = None, **config: Any) -> None:
        self.clock = clock or SystemClock()
        self.writer = ViewWriter("dc1")
        self.catalog = StaticCatalog({"dc1": self.writer.view})
        self.directory, self.services_dir = directory / "state", directory / "services"
        self.services_dir.mkdir()
        self.config = AgentConfig(node_name="n1", services_dir=str(self.services_dir), **config)
        self.node = Node(name="n1", address="10.0.0.1")
        self.down = False
        self.refused: set[str] = set()
        self.syncs = 0
        self.boot_id = "first"
        self.agent = self._build()
        self._task: asyncio.Task[None] | None = None

    def _build(self) -> LocalAgent:
        return LocalAgent(
            self.config,
            self.node,
            self.catalog,
            self._sync,
            Probes(),
            self.directory,
            self.clock,
            Random(5),
            boot_id=self.boot_id,
        )

    async def _sync(self, puts: dict[str, bytes], deletes: list[str]) -> None:
        self.syncs += 1
        if self.down:
            raise NoServers("down")
        if self.refused & puts.keys():
            raise InvalidRequest("refused")
        self.writer.revision += 1
        index = self.writer.revision
        self.writer.view.apply(index, [Record(key, value, index, index) for key, value in puts.items()], deletes)

    @property
    def view(self) -> View:
        return self.writer.view

    def start(self) -> None:
        self.agent.restore()
        self._task = asyncio.create_task(self.agent.run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def restart(self) -> None:
        await self.stop()
        self.agent = self._build()
        self.start()

    def status(self, check_id: str) -> Status | None:
        found = self.view.checks_of("n1").get(check_id)
        return None if found is None else found.status

    def file(self, name: str, value: Any) -> None:
        (self.services_dir / name).write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    found = Town(tmp_path, checks=ChecksConfig(enable_script_checks=True))
    found.start()
    try:
        yield found
    finally:
        await found.stop()


def _ttl(check_id: str = "", **more: Any) -> CheckDefinition:
    return CheckDefinition(id=check_id, name=check_id, ttl_s=60.0, **more)


def _web(*checks: CheckDefinition, sidecar: bool = False, name: str = "web") -> ServiceDefinition:
    proxy = ServiceDefinition(name=f"{name}-sidecar-proxy", kind="connect-proxy") if sidecar else None
    return ServiceDefinition(name=name, port=80, checks=checks, sidecar=proxy)


async def test_a_registration_is_in_the_catalog_when_the_call_returns(town: Town) -> None:
    await town.agent.register_service(_web(_ttl(), sidecar=True))
    assert set(town.view.services_of("n1")) == {"web", "web-sidecar-proxy"}
    assert town.status("service:web") is BAD
    await town.agent.update_ttl("service:web", OK, "fine")
    assert town.status("service:web") is OK
    assert town.status("service:web-sidecar-proxy:2") is OK, "the alias follows at once"
    await town.agent.service_maintenance("web", enable=True, reason="swap")
    assert town.status("_service_maintenance:web") is BAD
    await town.agent.deregister_service("web")
    assert (town.view.services_of("n1"), town.view.checks_of("n1")) == ({}, {})
    with pytest.raises(NotFound):
        await town.agent.deregister_service("web")


async def test_a_service_that_comes_and_goes_before_the_view_hears_of_it_is_gone(town: Town) -> None:
    real, town.writer = town.writer, ViewWriter("dc1")  # the View that the agent sees stays behind
    await town.agent.register_service(_web())
    assert list(town.view.services_of("n1")) == ["web"]
    await town.agent.deregister_service("web")
    assert town.view.services_of("n1") == {}
    assert real.view.services_of("n1") == {}


async def test_checks_run_and_their_results_reach_the_catalog(town: Town, tmp_path: Path) -> None:
    flag = tmp_path / "healthy"
    flag.touch()
    script = CheckDefinition(id="file", name="file", args=("test", "-e", str(flag)), interval_s=1.0)
    await town.agent.register_service(_web(script))
    await until(lambda: town.status("file") is OK, "the script passes")
    flag.unlink()
    await until(lambda: town.status("file") is WARN, "and warns")
    await town.agent.deregister_check("file")
    assert town.status("file") is None


async def test_what_is_on_disk_outlives_a_restart(town: Town) -> None:
    await town.agent.register_service(_web(_ttl(), sidecar=True))
    await town.agent.register_service(_web(sidecar=True, name="x" * 255))
    await town.agent.register_check(_ttl("node"))
    await town.agent.update_ttl("service:web", OK, "fine")
    await town.agent.node_maintenance(enable=True, reason="swap")
    before = town.agent.services(), [each for each in town.agent.checks() if each.kind in ("ttl", "maintenance")]
    await town.restart()
    assert (town.agent.services(), [c for c in town.agent.checks() if c.kind in ("ttl", "maintenance")]) == before
    await town.agent.node_maintenance(enable=False, reason="")
    await town.agent.deregister_service("web")
    await town.restart()
    assert [each.id[:4] for each in town.agent.services()] == ["xxxx", "xxxx"]
    assert {each.id for each in town.agent.checks()} & {"node", "service:web", "_node_maintenance"} == {"node"}
    assert [path.name for path in (town.directory / "checks").iterdir()] == ["node.json"]
    mode = next((town.directory / "services").iterdir()).stat().st_mode & 0o777
    assert mode == 0o600, "headers of checks may be secrets"


async def test_results_outlive_the_agent_but_not_the_host(town: Town) -> None:
    await town.agent.register_service(_web(_ttl()))
    await town.agent.update_ttl("service:web", OK, "fine")
    await town.restart()
    assert town.agent.service_health("web")[0] is OK
    town.boot_id = "second"
    await town.restart()
    assert town.agent.service_health("web")[0] is BAD, (
        "its services have started anew, and nobody has looked at them yet"
    )
    await until(lambda: town.status("service:web") is BAD, "the catalog hears of it")


async def test_a_node_that_leaves_does_not_register_again_what_the_servers_delete(town: Town) -> None:
    await town.agent.register_service(_web(_ttl()))
    syncs, service = town.syncs, town.view.services_of("n1")["web"]
    town.agent.leave()
    town.writer.delete(service)
    await town.agent.register_service(_web(name="late"))  # waits for a sync, which does not come
    assert (town.syncs, town.view.services_of("n1")) == (syncs, {})


async def test_broken_files_of_an_earlier_run_do_not_take_the_others_with_them(town: Town) -> None:
    await town.agent.register_service(_web())
    (town.directory / "services" / "broken.json").write_text("{")
    (town.directory / "services" / "other.json").write_text('{"name": "consul"}')
    (town.directory / "checks").mkdir()
    (town.directory / "checks" / "a.json").write_text('{"id": "a", "service_id": "gone", "ttl_s": 1.0}')
    (town.directory / "sidecar_ports.json").write_text("[]")
    await town.restart()
    assert [each.id for each in town.agent.services()] == ["web"]


async def test_without_servers_everything_is_kept_and_synced_later(town: Town) -> None:
    town.down = True
    await town.agent.register_service(_web(_ttl()))
    assert [each.id for each in town.agent.services()] == ["web"]
    assert town.view.services_of("n1") == {}
    town.down = False
    await until(lambda: "web" in town.view.services_of("n1"), "the catalog hears of it")
    town.catalog.cut["dc1"] = "no servers"
    await town.agent.deregister_service("web")
    town.catalog.cut.clear()
    await until(lambda: town.view.services_of("n1") == {}, "and of its end")


async def test_what_somebody_else_changes_is_put_right_and_what_is_theirs_stays(town: Town) -> None:
    await town.agent.register_service(_web(_ttl()))
    serf = Check(id=SERF_HEALTH, node="n1", name="Serf Health Status", status=OK)
    service = town.view.services_of("n1")["web"]
    town.writer.put(serf, Check(id="stray", node="n1"))
    await until(lambda: town.status("stray") is None, "a stray check is removed")
    town.writer.delete(service)
    await until(lambda: "web" in town.view.services_of("n1"), "a service is put back")
    assert town.status(SERF_HEALTH) is OK


async def test_a_record_that_is_refused_does_not_keep_the_others_back(town: Town) -> None:
    town.refused = {"services/n1/bad"}
    await town.agent.register_service(_web(name="bad"))
    await town.agent.register_service(_web(_ttl()))
    assert set(town.view.services_of("n1")) == {"web"}


async def test_files_of_definitions_are_read_again_as_a_whole_or_not_at_all(town: Town) -> None:
    town.file("web.json", {"service": {"name": "web", "port": 80, "connect": {"sidecar_service": {}}}})
    town.file(
        "other.json", {"services": [{"name": "a"}, {"name": "b"}], "check": {"id": "mem", "name": "m", "ttl": "1m"}}
    )
    await town.agent.reload()
    assert set(town.view.services_of("n1")) == {"web", "web-sidecar-proxy", "a", "b"}
    assert town.status("mem") is BAD
    port = town.view.services_of("n1")["web-sidecar-proxy"].port
    for name, value, text in (
        ("bad.json", "{", "bad.json: .*not valid JSON"),
        ("bad.json", {"service": {"name": "x", "prot": 1}}, 'bad.json: .*unknown field "prot"'),
        ("other.json", {"services": [{"name": "web"}]}, "web.json: service 'web' is defined in an earlier file"),
        ("bad.json", {"check": {"id": "c", "ttl": "1s", "service_id": "none"}}, 'ServiceID "none" does not exist'),
    ):
        before = town.agent.services()
        kept = (town.services_dir / "other.json").read_text()
        town.file(name, value)
        with pytest.raises(InvalidRequest, match=text):
            await town.agent.reload()
        assert town.agent.services() == before
        (town.services_dir / "bad.json").unlink(missing_ok=True)
        town.file("other.json", kept)
    (town.services_dir / "other.json").unlink()
    await town.agent.reload()
    assert set(town.view.services_of("n1")) == {"web", "web-sidecar-proxy"}
    town.file("a.json", {"service": {"name": "a", "connect": {"sidecar_service": {}}}})
    await town.restart()
    await until(lambda: "a-sidecar-proxy" in town.view.services_of("n1"), "a new file is read at start")
    assert town.view.services_of("n1")["web-sidecar-proxy"].port == port, "a sidecar of a file keeps its port"


async def test_a_check_of_the_api_on_a_service_of_a_file_outlives_a_restart(town: Town) -> None:
    town.file("web.json", {"service": {"name": "web"}})
    await town.agent.reload()
    await town.agent.register_check(_ttl("extra", service_id="web"))
    await town.restart()
    assert [each.id for each in town.agent.checks()] == ["extra"]


async def test_a_service_whose_check_stays_critical_is_taken_away(tmp_path: Path) -> None:
    clock = ManualClock()
    town = Town(tmp_path, clock=clock)
    await town.agent.register_service(_web(_ttl(deregister_after_s=60.0)))
    assert len(list((town.directory / "services").iterdir())) == 1
    clock.advance(61.0)
    running = asyncio.create_task(town.agent.run())
    try:
        await until(lambda: not list((town.directory / "services").iterdir()), "the service goes")
        assert town.view.services_of("n1") == {}
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_scripts_must_be_enabled(tmp_path: Path) -> None:
    town = Town(tmp_path)
    script = CheckDefinition(id="s", name="s", args=("true",), interval_s=1.0)
    sidecar = ServiceDefinition(name="p", kind="connect-proxy", checks=(script,))
    for definition in (_web(script), ServiceDefinition(name="web", sidecar=sidecar)):
        with pytest.raises(InvalidRequest, match="enable_script_checks"):
            await town.agent.register_service(definition)
    with pytest.raises(InvalidRequest, match="enable_script_checks"):
        await town.agent.register_check(script)
    town.file("s.json", {"check": {"id": "s", "args": ["true"], "interval": "1s"}})
    with pytest.raises(InvalidRequest, match=r"s\.json: Scripts are disabled"):
        await town.agent.reload()
    assert (town.agent.services(), town.agent.checks()) == ([], [])


async def test_a_registration_that_cannot_be_kept_is_none(town: Town) -> None:
    await town.agent.register_service(_web())
    (town.directory / "services").rename(town.directory / "moved")
    (town.directory / "services").write_text("in the way")
    with pytest.raises(StoreUnavailable, match="cannot be kept on disk"):
        await town.agent.register_service(_web(name="api"))
    assert [each.id for each in town.agent.services()] == ["web"]
    (town.directory / "services").unlink()
    (town.directory / "moved").rename(town.directory / "services")
    await town.agent.register_service(_web(name="api"))
    await town.restart()
    assert [each.id for each in town.agent.services()] == ["api", "web"]


async def test_an_alias_of_another_node_follows_the_catalog(town: Town) -> None:
    definition = CheckDefinition(id="far", name="far", alias_node="N2")
    await town.agent.register_check(definition)
    await until(lambda: "could not be found" in next(iter(town.agent.checks())).output, "node n2 is not there")
    town.writer.put(Node(name="n2"), Check(id=SERF_HEALTH, node="n2", name="serf", status=OK))
    await until(lambda: town.status("far") is OK, "n2 is well")
    town.writer.put(Check(id=SERF_HEALTH, node="n2", name="serf", status=BAD))
    await until(lambda: town.status("far") is BAD, "n2 is not")
    await town.agent.deregister_check("far")
    town.writer.delete(Node(name="n2"))
    assert town.status("far") is None


async def test_listeners_hear_of_registrations(town: Town) -> None:
    heard: list[int] = []
    stop = town.agent.listen(lambda: heard.append(len(town.agent.services())))
    await town.agent.register_service(_web(sidecar=True))
    await town.agent.deregister_service("web")
    stop()
    stop()
    await town.agent.register_service(_web())
    assert heard == [2, 0]
    assert (town.agent.runs_service("web"), town.agent.runs_service("api")) == (True, False)
    assert town.agent.proxy("web") is None
    definition = town.agent.definition("web")
    assert definition is not None
    assert definition.port == 80


async def test_many_registrations_at_once_are_few_syncs(town: Town) -> None:
    await asyncio.gather(*(town.agent.register_service(_web(_ttl(), name=f"s{at}")) for at in range(100)))
    await until(lambda: len(town.view.services_of("n1")) == 100, "all are there")
    assert town.syncs < 50
    assert len(os.listdir(town.directory / "services")) == 100
