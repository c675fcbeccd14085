"""Captured pods: real network namespaces, real nftables, real Envoy, a real agent that watches a small API server. Needs root."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh_agent.http.client import HttpClient
from tests.support.agents import AgentProcess, Cluster, until
from tests.support.callers import Closed, Line
from tests.support.kubernetes import ApiServer, Object, pod, service
from tests.support.pods import API_SERVER, GATEWAY, PodNetwork, capture, greeter, greets, node_network, shared_directory
from tests.support.sidecars import PATIENCE_S, eventually

pytestmark = [pytest.mark.envoy, pytest.mark.root, pytest.mark.timeout(400)]

VIRTUAL = "10.96.7.7"


class PodNode:
    """A node with an agent and pods."""

    def __init__(self, agent: AgentProcess, api: ApiServer, directory: Path, stack: contextlib.AsyncExitStack) -> None:
        self.agent, self.api, self.directory = agent, api, directory
        self._stack = stack
        self._numbers = iter(range(10, 100))

    async def roots(self) -> str:
        found = await self.agent.json("/v1/connect/ca/roots")
        return "".join(root["RootCert"] for root in found["Roots"])

    async def network(self, name: str) -> PodNetwork:
        """A pod's network, empty."""
        return await self._stack.enter_async_context(PodNetwork(name, next(self._numbers), self.directory / name))

    def describe(self, network: PodNetwork, account: str, annotations: dict[str, str] | None = None) -> Object:
        """The pod as Kubernetes sees it; its token is its name."""
        found = pod(network.name, account=account, address=network.address, annotations=annotations)
        self.api.account(network.name, "default", account, found)
        return found

    async def start(
        self, name: str, account: str, *, serves: bool = True, annotations: dict[str, str] | None = None, **env: str
    ) -> PodNetwork:
        """A pod with everything: init container, sidecar, application."""
        network = await self.network(name)
        found = self.describe(network, account, annotations)
        await self.api.put("pods", found)
        code, output = await network.init(found, name, await self.roots(), env=env)
        assert code == 0, output
        await network.sidecar()
        await until(lambda: self.ready(network), f"{name} is ready; {network.log()}")
        if serves:
            await network.serve(greeter(name), "8080")
        return network

    async def ready(self, network: PodNetwork) -> bool:
        """Whether kubelet would take the sidecar for started."""
        client = HttpClient(None, connect_timeout_s=0.5)
        try:
            answer = await client.request("GET", f"http://{network.address}:20200", "/ready", timeout_s=1.0)
            return answer.status == 200
        except Exception as error:
            raise OSError(str(error)) from error
        finally:
            await client.close()

    async def intend(self, source: str, destination: str, action: str) -> None:
        path = f"/v1/connect/intentions/exact?source={source}&destination={destination}"
        if action:
            await self.agent.put(path, {"Action": action})
        else:
            answer = await self.agent.call("DELETE", path)
            assert answer.status == 200, answer.body

    async def until_greeted(self, caller: PodNetwork, address: str, port: int, by: str) -> None:
        async def so() -> bool:
            return await greets(caller, address, port) == by

        await until(so, f"{by or 'nobody'} greets {caller.name} at {address}:{port}; {caller.log()[-2000:]}")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[PodNode]:
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(node_network())
        directory = stack.enter_context(shared_directory())
        api = ApiServer()
        await api.start()
        stack.push_async_callback(api.stop)
        await api.put("services", service("kubernetes", API_SERVER, selector={}, https=(443, 6443)))
        cluster = Cluster(tmp_path)
        settings = {"kubernetes.api": api.url, "bind_addr": GATEWAY, "client_addr": GATEWAY}
        agent = cluster.add("n1", "dc1", 1, server=True, **settings)
        agent.address = GATEWAY
        stack.push_async_callback(cluster.stop)
        await cluster.start()
        await agent.until_open(8504)
        yield PodNode(agent, api, directory, stack)


async def test_a_captured_pod_calls_what_intentions_allow_and_nothing_else(node: PodNode) -> None:
    await node.api.put("services", service("api", VIRTUAL, http=(80, "http")))
    api1, _, web = await asyncio.gather(node.start("api1", "api"), node.start("api2", "api"), node.start("web1", "web"))
    assert await greets(web, api1.address, 8080) == "", "nothing is allowed yet"

    await node.intend("web", "api", "allow")
    for address, port in ((api1.address, 8080), (VIRTUAL, 80)):

        async def greeted(address: str = address, port: int = port) -> bool:
            return (await greets(web, address, port)) in ("api1", "api2")

        await until(greeted, f"somebody greets at {address}; {web.log()[-2000:]}")
    assert await greets(web, api1.address, 80) == "", "the port of the virtual address is not the instance's"
    assert await greets(web, VIRTUAL, 8080) == ""
    assert await greets(web, api1.address, 20000) == "", "no way past the sidecar"
    assert await greets(api1, web.address, 8080) == "", "the other direction was not allowed"

    async with _dialled(web, VIRTUAL, 80) as line:
        assert (await line.reader.readuntil(b" ")) in (b"api1 ", b"api2 ")
        api3 = await node.start("api3", "api")
        assert await line.say(b"an instance came") == b"an instance came"
        await node.api.delete("pods", "default", "api3")
        await until(lambda: _count(node, "api", 2), "api3 is gone")
        await node.until_greeted(web, api3.address, 8080, "")  # a stale address is refused
        assert await line.say(b"and went") == b"and went"

        await node.intend("web", "api", "")
        await line.closed()
    await node.until_greeted(web, VIRTUAL, 80, "")


async def _count(node: PodNode, name: str, wanted: int) -> bool:
    return len(await node.agent.json(f"/v1/health/service/{name}")) == wanted


async def test_nobody_reaches_a_captured_pod_in_plaintext_but_kubelets_probes(node: PodNode) -> None:
    api, other = await asyncio.gather(node.start("api1", "api", MESH_PROBES="20300:8080"), node.network("stranger"))
    for caller in (other,):
        for port in (8080, 20000, 20300, 20200, 15001):
            assert await greets(caller, api.address, port) == "", port
            assert "HTTP" not in await _raw(caller, api.address, port, b"GET /ready HTTP/1.0\r\n\r\n"), port
    reader, writer = await asyncio.open_connection(api.address, 20300)
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.readuntil(b" ") == b"api1 ", "the test is on the node, as kubelet is"
    writer.close()
    await until(lambda: node.ready(api), "its readiness is seen as well")
    assert b"api1" not in await _answer(api.address, 8080, b"plaintext\n")


async def _answer(address: str, port: int, text: bytes = b"") -> bytes:
    """What comes within a second over a plain connection from the node."""
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(text)
        return await _rest(reader)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _raw(caller: PodNetwork, address: str, port: int, text: bytes) -> str:
    try:
        async with _dialled(caller, address, port) as line:
            line.writer.write(text)
            return (await _rest(line.reader)).decode("latin-1")
    except OSError:
        return ""


async def _rest(reader: asyncio.StreamReader) -> bytes:
    found = b""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(1.0):
            while data := await reader.read(4096):
                found += data
    return found


async def test_the_api_server_and_what_annotations_exclude_are_called_as_they_are(node: PodNode) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"plain ")
        await reader.read()
        writer.close()

    servers = [
        await asyncio.start_server(plain, host, port)
        for host, port in ((API_SERVER, 443), (GATEWAY, 7000), (GATEWAY, 7001))
    ]
    try:
        web = await node.start("web1", "web", serves=False)
        assert await greets(web, API_SERVER, 443) == "plain"
        assert await greets(web, GATEWAY, 7000) == ""
        await eventually(lambda: "refused" in web.log(), "the sidecar says that it refused")
        job = await node.start("job1", "job", serves=False, MESH_EXCLUDE_OUTBOUND_PORTS="7000")
        assert await greets(job, GATEWAY, 7000) == "plain"
        assert await greets(job, GATEWAY, 7001) == ""
        free = await node.start("free1", "free", serves=False, MESH_EXCLUDE_OUTBOUND_CIDRS=f"{GATEWAY}/32")
        assert await greets(free, GATEWAY, 7001) == "plain"
    finally:
        for server in servers:
            server.close()


async def test_without_the_rules_nothing_is_started(node: PodNode) -> None:
    network = await node.network("api1")
    found = node.describe(network, "api")
    await node.api.put("pods", found)
    code, output = await network.init(found, "api1", await node.roots(), without_rights=True)
    assert code != 0
    assert "capture rules cannot be loaded" in output
    assert not (network.mesh / "bootstrap.json").exists()
    assert "mesh" not in network.rules()


async def test_a_pod_that_cannot_prove_itself_is_not_started(node: PodNode) -> None:
    network = await node.network("api1")
    found = node.describe(network, "api")
    await node.api.put("pods", found)
    node.api.account("another", "default", "web", found)
    for token, port, text in [
        ("another", "8504", "the agent of this node refuses: the token is of"),
        ("nobody's", "8504", "the agent of this node refuses: who are you"),
        ("api1", "8599", "Connection refused"),
    ]:
        env = {"MESH_AGENT_PORT": port}
        code, output = await network.init(found, token, await node.roots(), env=env, patience_s=0.5)
        assert code == 1
        assert text in output
        assert not (network.mesh / "bootstrap.json").exists()
        assert "mesh" not in network.rules()


async def test_nothing_of_a_conversation_is_on_the_wire_in_plaintext(node: PodNode) -> None:
    marker = b"marked-payload-51c7"
    await node.intend("web", "api", "allow")
    api, web = await asyncio.gather(
        node.start("api1", "api"), node.start("web1", "web", serves=False, MESH_EXCLUDE_OUTBOUND_PORTS="9999")
    )
    await node.until_greeted(web, api.address, 8080, "api1")
    with capture(marker) as seen:
        async with _dialled(web, api.address, 8080) as line:
            await line.reader.readuntil(b" ")
            for _ in range(50):
                assert await line.say(marker) == marker
            await node.intend("web", "api", "")
            with contextlib.suppress(Closed):
                while True:
                    await line.say(marker)
        for _ in range(20):
            await _raw(web, api.address, 8080, marker)
        assert seen() == 0

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(len(marker)))
            writer.close()

        async with await asyncio.start_server(echo, GATEWAY, 9999), _dialled(web, GATEWAY, 9999) as line:
            assert await line.say(marker) == marker
        assert seen() > 0, "what is excluded is seen, so what is not seen was not there"


async def test_http_services_are_balanced_request_by_request_and_a_wildcard_reaches_new_services(node: PodNode) -> None:
    http = {"mesh.openmesh.io/service-protocol": "http"}
    await node.intend("web", "*", "allow")
    web = await node.start("web1", "web", serves=False)
    await node.api.put("services", service("api", VIRTUAL, http=(80, "http")))
    for name in ("api1", "api2"):
        network = await node.start(name, "api", serves=False, annotations=http)
        await network.serve(_HTTP, "8080", name)

    async def answered() -> bool:
        try:
            async with _dialled(web, VIRTUAL, 80) as line:
                return (await line.get())[0] == 200
        except Closed as error:
            raise OSError(str(error)) from error

    await until(answered, f"the wildcard leads to api; {web.log()[-2000:]}")

    async def balanced() -> bool:
        async with _dialled(web, VIRTUAL, 80) as line:
            return {(await line.get())[1] for _ in range(40)} == {"api1", "api2"}

    await until(balanced, f"requests of one connection go to both; {web.log()[-2000:]}")


@contextlib.asynccontextmanager
async def _dialled(caller: PodNetwork, address: str, port: int) -> AsyncIterator[Line]:
    line = await caller.dial(address, port)
    try:
        yield line
    finally:
        line.close()
        with contextlib.suppress(OSError):
            await line.writer.wait_closed()


_HTTP = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = sys.argv[2].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print("ready", flush=True)
server.serve_forever()
"""


async def test_a_new_allow_counts_within_a_moment(node: PodNode) -> None:
    api, web = await asyncio.gather(node.start("api1", "api"), node.start("web1", "web", serves=False))
    loop = asyncio.get_running_loop()
    took: list[float] = []
    for _ in range(5):
        assert await greets(web, api.address, 8080) == ""
        began = loop.time()
        await node.intend("web", "api", "allow")
        while await greets(web, api.address, 8080) != "api1":
            assert loop.time() - began < PATIENCE_S
        took.append(loop.time() - began)
        await node.intend("web", "api", "")
        await node.until_greeted(web, api.address, 8080, "")
    text = json.dumps([round(each * 1000) for each in took])
    print(f"from the request to the first connection that got through, ms: {text}")
    assert sorted(took)[2] < 2.0, text
