"""The injector as a process sees it: a real webhook over TLS, an agent that issues its certificate, an API server that holds its configuration.

Agent and API server are as small as the two questions that the injector asks them; the certificates are real and verified on both sides.
"""

import asyncio
import base64
import contextlib
import datetime
import ipaddress
import json
import random
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from mesh_agent.ca.issue import Authority, create_root, load_certificate, new_csr, new_key, sign_csr
from mesh_agent.ca.spiffe_id import SpiffeId, agent_id, service_id
from mesh_agent.clock import SystemClock
from mesh_agent.errors import Unreachable
from mesh_agent.http.client import HttpClient
from mesh_agent.http.message import Request, Response
from mesh_agent.http.server import HttpServer
from mesh_agent.injector.runner import Injector, Options, Peer
from mesh_agent.injector.settings import InjectorSettings
from tests.unit.injector.test_patch import pod
from tests.unit.injector.test_review import review

NAMES = ("mesh-injector.mesh-system.svc",)
PATIENCE_S = 40.0


def root() -> Authority:
    """A root of the mesh."""
    return create_root("mesh.internal", "dc1", serial=random.getrandbits(64), now=SystemClock().wall(), ttl_s=3600)


def certified(authority: Authority, csr_pem: str, names: list[x509.GeneralName], life_s: float) -> str:
    """A certificate with other names than SPIFFE IDs."""
    csr = x509.load_pem_x509_csr(csr_pem.encode())
    issuer = load_certificate(authority.certificate_pem)
    key: Any = serialization.load_pem_private_key(authority.key_pem.encode(), None)
    now = datetime.datetime.fromtimestamp(SystemClock().wall(), datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(csr.public_key())
        .serial_number(random.getrandbits(64))
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(seconds=life_s))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def server_context(directory: Path, certificate: str, key: str) -> ssl.SSLContext:
    """A context to listen with."""
    chain = directory / "chain.pem"
    chain.write_text(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    chain.unlink()
    return context


class World:
    """An agent and an API server, and what they were asked."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        self.directory = directory
        self.authority = authority
        self.identity: SpiffeId = agent_id("mesh.internal", "dc1", "n1", server=False)
        self.life_s = 3600.0
        self.refuse = 0
        """How many more requests for a certificate are refused."""
        self.tokens: list[str] = []
        self.bundles = {"a.inject": "", "b.inject": "stale"}
        self.changed = asyncio.Event()
        self._agent, self._api_server = HttpServer(self._certify), HttpServer(self._configure)
        self.options: Options

    async def start(self) -> None:
        """Listen, and write the files that a pod would find."""
        key = new_key()
        csr = new_csr(self.identity, key)
        certificate = sign_csr(csr, self.authority, self.identity, serial=7, now=SystemClock().wall(), ttl_s=3600)
        agent = await self._agent.start("127.0.0.1", 0, server_context(self.directory, certificate, key))
        addresses: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = certified(self.authority, csr, addresses, 3600)
        api_server = await self._api_server.start("127.0.0.1", 0, server_context(self.directory, certificate, key))
        roots, token = self.directory / "roots.pem", self.directory / "token"
        roots.write_text(self.authority.certificate_pem)
        token.write_text("t-1\n")
        cluster = self.directory / "ca.crt"
        cluster.write_text(self.authority.certificate_pem)
        self.options = Options(
            agent=Peer(f"https://127.0.0.1:{agent}", roots, token),
            api_server=Peer(f"https://127.0.0.1:{api_server}", cluster, token),
            configuration="mesh-injector",
            dns_names=NAMES,
            port=0,
            operations_port=0,
            host="127.0.0.1",
            bundle_interval_s=0.05,
        )

    async def stop(self) -> None:
        await self._agent.stop()
        await self._api_server.stop()

    def _certify(self, request: Request) -> Response:
        assert (request.method, request.path) == ("PUT", "/v1/kubernetes/webhook-certificate")
        self.tokens.append(request.headers["authorization"])
        if self.refuse:
            self.refuse -= 1
            return Response.text(403, "not yet")
        asked = json.loads(request.body)
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in asked["DNSNames"]]
        return Response.json({"Certificate": certified(self.authority, asked["CSR"], names, self.life_s), "Roots": []})

    def _configure(self, request: Request) -> Response:
        assert request.path.endswith("/mutatingwebhookconfigurations/mesh-injector")
        if request.method == "PATCH":
            assert request.headers["content-type"] == "application/strategic-merge-patch+json"
            for each in json.loads(request.body)["webhooks"]:
                self.bundles[each["name"]] = each["clientConfig"]["caBundle"]
            self.changed.set()
        webhooks = [{"name": name, "clientConfig": {"caBundle": bundle}} for name, bundle in self.bundles.items()]
        return Response.json({"webhooks": webhooks})


@asynccontextmanager
async def running(world: World) -> AsyncIterator[Injector]:
    """An injector, until the end of the block."""
    settings = InjectorSettings(image="mesh:1", version="1")
    injector = Injector(settings, world.options, SystemClock(), random.Random(1))
    stopping = asyncio.Event()
    task = asyncio.create_task(injector.run(stopping))
    try:
        yield injector
    finally:
        stopping.set()
        await task


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    found = World(tmp_path, root())
    await found.start()
    yield found
    await found.stop()


def api_server(roots: str) -> HttpClient:
    """A client that verifies the webhook's name, as the API server does."""
    context = ssl.create_default_context(cadata=roots)
    context.check_hostname = False  # the test connects to an address; `_has_name` looks for the name
    return HttpClient(context, verify=_has_name)


def _has_name(connection: Any) -> None:
    names = connection.getpeercert()["subjectAltName"]
    if ("DNS", NAMES[0]) not in names:
        raise Unreachable(f"the webhook is {names}")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 (files and other processes set no event)
            await asyncio.sleep(0.01)


async def test_a_review_is_answered_over_verified_tls(world: World) -> None:
    async with running(world) as injector:
        async with asyncio.timeout(PATIENCE_S):
            await injector.started.wait()
        client = api_server(world.authority.certificate_pem)
        target = f"https://127.0.0.1:{injector.port}"
        answer = await client.request("POST", target, "/v1/inject/namespace?timeout=5s", body=review(pod()))
        assert json.loads(answer.body)["response"]["patchType"] == "JSONPatch"
        answer = await client.request("POST", target, "/v1/inject/pod?timeout=5s", body=review(pod()))
        assert json.loads(answer.body)["response"] == {"uid": "u-1", "allowed": True}
        assert (await client.request("POST", target, "/v1/inject/pod", body=b"{}")).status == 400
        assert (await client.request("GET", target, "/v1/inject/pod")).status == 405
        metrics = await client.request("GET", f"http://127.0.0.1:{injector.operations_port}", "/metrics")
        assert 'mesh_injector_reviews_total{outcome="injected"} 1' in metrics.body.decode()
        assert 'mesh_injector_reviews_total{outcome="skipped"} 1' in metrics.body.decode()
        await client.close()


async def test_the_bundle_gets_into_every_webhook_and_stays_there(world: World) -> None:
    wanted = base64.b64encode(world.authority.certificate_pem.encode()).decode()
    async with running(world):
        await until(lambda: set(world.bundles.values()) == {wanted})
        world.bundles["a.inject"] = ""  # somebody applies the manifest again
        await until(lambda: world.bundles["a.inject"] == wanted)
        second = world.authority.certificate_pem + root().certificate_pem  # a rotation begins
        (world.directory / "roots.pem").write_text(second)
        await until(lambda: set(world.bundles.values()) == {base64.b64encode(second.encode()).decode()})


async def test_it_is_ready_when_it_can_answer_and_not_before(world: World) -> None:
    world.refuse = 1_000_000
    async with running(world) as injector:
        await until(lambda: injector.operations_port > 0)
        client = HttpClient()
        target = f"http://127.0.0.1:{injector.operations_port}"
        assert (await client.request("GET", target, "/healthz")).status == 200
        answer = await client.request("GET", target, "/readyz")
        assert (answer.status, b"certificate" in answer.body) == (503, True)
        await until(lambda: len(world.tokens) > 1)
        world.refuse = 0
        async with asyncio.timeout(PATIENCE_S):
            await injector.started.wait()
            while (await client.request("GET", target, "/readyz")).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await client.close()
    assert set(world.tokens) == {"Bearer t-1"}


async def test_the_certificate_is_renewed_while_connections_go_on(world: World) -> None:
    world.life_s = 8.0  # renewed at less than half of it: seconds to spare, however busy the machine is
    async with running(world) as injector:
        async with asyncio.timeout(PATIENCE_S):
            await injector.started.wait()
        target = f"https://127.0.0.1:{injector.port}"
        kept = api_server(world.authority.certificate_pem)
        serials: set[str] = set()

        def note(connection: Any) -> None:
            serials.add(connection.getpeercert()["serialNumber"])

        async with asyncio.timeout(PATIENCE_S):
            while len(serials) < 3:
                answer = await kept.request("POST", target, "/v1/inject/namespace", body=review(pod()))
                assert answer.status == 200
                context = ssl.create_default_context(cadata=world.authority.certificate_pem)
                context.check_hostname = False
                fresh = HttpClient(context, verify=note)
                assert (await fresh.request("POST", target, "/v1/inject/namespace", body=review(pod()))).status == 200
                await fresh.close()
                await asyncio.sleep(0.05)
        await kept.close()
    assert len(world.tokens) >= 3


async def test_another_root_means_another_certificate_at_once(world: World) -> None:
    async with running(world) as injector:
        async with asyncio.timeout(PATIENCE_S):
            await injector.started.wait()
        await until(lambda: "" not in world.bundles.values())
        first, world.authority = world.authority, root()
        (world.directory / "roots.new").write_text(world.authority.certificate_pem + first.certificate_pem)
        (world.directory / "roots.new").replace(world.directory / "roots.pem")
        await until(lambda: len(world.tokens) >= 2)
        target = f"https://127.0.0.1:{injector.port}"
        answer = None
        async with asyncio.timeout(PATIENCE_S):
            while answer is None:
                client = api_server(world.authority.certificate_pem)
                with contextlib.suppress(Unreachable):  # a moment between the agent's answer and its use
                    answer = await client.request("POST", target, "/v1/inject/namespace", body=review(pod()))
                await client.close()
        assert answer.status == 200


async def test_somebody_who_is_no_agent_is_not_asked(tmp_path: Path) -> None:
    world = World(tmp_path, root())
    world.identity = service_id("mesh.internal", "dc1", "web")
    await world.start()
    async with running(world) as injector:
        await until(lambda: injector.operations_port > 0)
        client = HttpClient()
        target = f"http://127.0.0.1:{injector.operations_port}"
        again, seen = rb"mesh_injector_certificate_failures_total ([2-9]|\d\d+)\n", b""
        async with asyncio.timeout(PATIENCE_S):
            while not re.search(again, seen):
                await asyncio.sleep(0.05)
                seen = (await client.request("GET", target, "/metrics")).body
        await client.close()
    assert world.tokens == []
    await world.stop()


async def test_missing_files_are_waited_for(world: World) -> None:
    token = world.directory / "late"
    world.options = replace(world.options, agent=replace(world.options.agent, token_file=token))
    async with running(world) as injector:
        await until(lambda: injector.operations_port > 0)
        await asyncio.sleep(0)
        token.write_text("t-2")
        async with asyncio.timeout(PATIENCE_S):
            await injector.started.wait()
    assert world.tokens[0] == "Bearer t-2"
