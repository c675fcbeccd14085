"""An agent beside a Kubernetes API server: pods come and go, prove who they are, and get their own configuration and no other."""

import asyncio
import contextlib
import json
import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from envoy.service.discovery.v3 import discovery_pb2 as discovery

from mesh_agent.ca.issue import load_certificate, new_key
from mesh_agent.http.client import HttpClient
from mesh_agent.http.message import Response
from mesh_agent.telemetry import Metrics
from mesh_agent.xds.naming import LISTENER, SECRET
from mesh_agent.xds.server import AdsServer
from tests.support.agents import AgentProcess, Cluster, until
from tests.support.kubernetes import ApiServer, Object, pod, service
from tests.support.sidecars import Authorities, Town

pytestmark = pytest.mark.timeout(240)


class Node:
    """A server agent with a cluster's API server beside it."""

    def __init__(self, agent: AgentProcess, api: ApiServer) -> None:
        self.agent, self.api = agent, api
        self.client = HttpClient(_any_peer())

    async def ask(self, method: str, path: str, token: str = "", body: object = None) -> Response:
        """A request at the port for pods."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        payload = b"" if body is None else json.dumps(body).encode()
        return await self.client.request(
            method, f"https://{self.agent.address}:8504", path, headers=headers, body=payload, timeout_s=15.0
        )

    async def session(self, token: str) -> dict[str, str]:
        """Exchange a token."""
        answer = await self.ask("POST", "/v1/kubernetes/session", token)
        assert answer.status == 200, (answer.status, answer.body)
        found: dict[str, str] = json.loads(answer.body)
        return found

    async def run(self, found: Object, token: str = "") -> Object:
        """Start a pod; with a token, let that be its own."""
        await self.api.put("pods", found)
        if token:
            metadata = found["metadata"]
            self.api.account(token, metadata["namespace"], found["spec"]["serviceAccountName"], found)
        return found

    async def health(self, name: str) -> dict[str, str]:
        """Status of each instance of a service in the catalog."""
        instances = await self.agent.json(f"/v1/health/service/{name}")
        worst = ("critical", "warning", "passing")
        return {
            each["Service"]["ID"]: min((check["Status"] for check in each["Checks"]), key=worst.index)
            for each in instances
        }

    async def until_health(self, name: str, wanted: dict[str, str]) -> None:
        """Wait for `health`."""

        async def so() -> bool:
            return await self.health(name) == wanted

        await until(so, f"{name} is {wanted}")

    async def secrets(self, proxy_id: str, metadata: dict[str, str], kind: str = SECRET) -> list[str]:
        """Names of the resources that a proxy is given; grpc.aio.AioRpcError if it is refused."""
        await self.agent.until_open(8503)
        roots = await self.agent.json("/v1/connect/ca/roots")
        bundle = "".join(root["RootCert"] for root in roots["Roots"])
        async with (
            _tunnel(self.agent.address, 8503, bundle) as port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            call = channel.stream_stream(
                "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
                request_serializer=discovery.DeltaDiscoveryRequest.SerializeToString,
                response_deserializer=discovery.DeltaDiscoveryResponse.FromString,
            )(metadata=tuple(metadata.items()))
            request = discovery.DeltaDiscoveryRequest(type_url=kind)
            request.node.id = proxy_id
            await call.write(request)
            async with asyncio.timeout(40.0):
                answer = await call.read()
            if answer is grpc.aio.EOF:
                raise grpc.aio.AioRpcError(await call.code(), (), (), await call.details())
            call.cancel()
            return [each.name for each in answer.resources]


def _any_peer() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextlib.asynccontextmanager
async def _tunnel(host: str, port: int, roots: str) -> AsyncIterator[int]:
    """TLS for a gRPC client that cannot do without a host name in the certificate; the chain is verified."""
    context = ssl.create_default_context(cadata=roots)
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])

    open_now: list[tuple[asyncio.StreamWriter, asyncio.Task[Any] | None]] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_now.append((writer, asyncio.current_task()))
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port, ssl=context)
        except OSError:
            writer.close()
            return
        open_now.append((far_writer, None))
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        try:
            yield int(server.sockets[0].getsockname()[1])
        finally:
            for writer, _ in open_now:
                writer.transport.abort()
            await asyncio.gather(*(task for _, task in open_now if task is not None), return_exceptions=True)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    api = ApiServer()
    await api.start()
    cluster = Cluster(tmp_path)
    agent = cluster.add("n1", "dc1", 1, server=True, **{"kubernetes.api": api.url})
    found = Node(agent, api)
    try:
        await cluster.start()
        await agent.until_open(8504)
        yield found
    finally:
        await found.client.close()
        await cluster.stop()
        await api.stop()


async def test_pods_are_in_the_catalog_as_ready_as_kubernetes_says(node: Node) -> None:
    await node.api.put("services", service("api", "10.96.1.1", http=(80, "http")))
    await node.run(pod("a", ready=False))
    await node.run(pod("b", address="10.244.1.6"))
    await node.run(pod("far", node="n2"))
    await node.run(pod("plain", labels={"mesh.openmesh.io/injected": "no"}))
    await node.until_health("api", {"api-a": "critical", "api-b": "passing"})

    await node.api.put("pods", pod("a"))
    await node.until_health("api", {"api-a": "passing", "api-b": "passing"})
    instances = {each["Service"]["ID"]: each for each in await node.agent.json("/v1/health/service/api")}
    found = instances["api-b"]["Service"]
    assert (found["Address"], found["Port"]) == ("10.244.1.6", 8080)
    assert found["TaggedAddresses"]["virtual"] == {"Address": "10.96.1.1", "Port": 80}
    proxies = await node.agent.json("/v1/health/connect/api?passing")
    assert [(each["Service"]["Address"], each["Service"]["Port"]) for each in proxies] == [
        ("10.244.1.5", 20000),
        ("10.244.1.6", 20000),
    ]

    leaving = pod("a")
    leaving["metadata"]["deletionTimestamp"] = "2026-11-25T10:00:00Z"
    await node.api.put("pods", leaving)
    await node.until_health("api", {"api-b": "passing"})


async def test_the_api_server_being_away_takes_nothing_away_and_a_new_list_takes_away_what_is_gone(node: Node) -> None:
    await node.run(pod("a"))
    await node.run(pod("b"))
    await node.until_health("api", {"api-a": "passing", "api-b": "passing"})
    metrics = (await node.agent.get("/v1/agent/metrics?format=prometheus")).body.decode()
    assert 'mesh_kubernetes_pods{state="member"} 2' in metrics
    assert 'mesh_kubernetes_followed{collection="pods"} 1' in metrics
    await node.api.stop()
    await node.agent.signal(signal.SIGTERM)
    await node.agent.start()
    await node.until_health("api", {"api-a": "passing", "api-b": "passing"})

    await node.api.delete("pods", "default", "a")  # while nobody can see it
    await node.run(pod("c"))
    await node.api.start()
    await node.until_health("api", {"api-b": "passing", "api-c": "passing"})


async def test_a_pod_whose_id_was_taken_is_registered_when_it_is_free(node: Node) -> None:
    await node.agent.put("/v1/agent/service/register", {"ID": "api-a", "Name": "old", "Port": 1})
    await node.run(pod("a"))
    await until(lambda: "pod of api-a is not registered" in node.agent.log(), "the agent says so")
    await node.run(pod("b", annotations={"mesh.openmesh.io/service-port": "9" * 5000}))  # of no use, and no harm
    await node.agent.put("/v1/agent/service/deregister/api-a")
    await node.until_health("api", {"api-a": "passing"})


@pytest.mark.parametrize("taken", ["api-a", "api-a-sidecar-proxy"])
async def test_a_pod_that_somebody_deregisters_is_registered_again(node: Node, taken: str) -> None:
    await node.run(pod("a"))
    await node.run(pod("w", account="web", address="10.244.1.9"))
    await node.until_health("api", {"api-a": "passing"})
    await node.until_health("web", {"web-w": "passing"})
    await node.agent.put(f"/v1/agent/service/deregister/{taken}")

    async def both() -> bool:
        return {"api-a", "api-a-sidecar-proxy"} <= set(await node.agent.json("/v1/agent/services"))

    await until(both, "instance and sidecar are registered again")
    await node.until_health("api", {"api-a": "passing"})


async def test_history_that_the_api_server_has_forgotten_is_listed_anew(node: Node) -> None:
    await node.run(pod("a"))
    await node.until_health("api", {"api-a": "passing"})
    node.api.page = 1
    for name in ("b", "c"):
        await node.run(pod(name))
    await node.api.delete("pods", "default", "a")
    await node.api.compact()
    await node.until_health("api", {"api-b": "passing", "api-c": "passing"})


async def test_an_answer_that_is_none_of_kubernetes_takes_nothing_away(node: Node) -> None:
    await node.run(pod("a"))
    await node.until_health("api", {"api-a": "passing"})
    node.api.nonsense = True
    lists = node.api.lists
    await node.api.stop()
    await until(lambda: "cannot be followed" in node.agent.log(), "the agent notices")
    await node.api.start()
    await until(lambda: node.api.lists > lists + 1, "it was asked again and again")
    assert await node.health("api") == {"api-a": "passing"}
    await node.run(pod("b"))
    node.api.nonsense = False
    await node.until_health("api", {"api-a": "passing", "api-b": "passing"})


async def test_a_pod_gets_its_own_configuration_and_no_other(node: Node) -> None:
    await node.run(pod("a"), "token-a")
    await node.run(pod("w", account="web", address="10.244.1.9"), "token-w")
    mine, other = await node.session("token-a"), await node.session("token-w")
    assert (mine["ProxyID"], mine["Service"]) == ("api-a-sidecar-proxy", "api")
    assert (mine["Datacenter"], mine["TrustDomain"]) == ("dc1", "mesh.internal")
    await node.until_health("api", {"api-a": "passing"})
    own = {"mesh-session": mine["Session"], "mesh-pod": mine["PodUID"]}
    assert await node.secrets(mine["ProxyID"], own) == ["leaf", "roots"]
    assert "public:10.244.1.5:20000" in await node.secrets(mine["ProxyID"], own, LISTENER)

    theirs = {"mesh-session": other["Session"], "mesh-pod": other["PodUID"]}
    for proxy_id, metadata in [
        (other["ProxyID"], own),  # another proxy id
        (mine["ProxyID"], theirs),
        (other["ProxyID"], own | {"mesh-pod": other["PodUID"]}),  # own session, another uid
        (mine["ProxyID"], own | {"mesh-session": "0" * 64}),
        (mine["ProxyID"], own | {"mesh-session": other["Session"]}),
        (mine["ProxyID"], {"mesh-pod": mine["PodUID"]}),
        (mine["ProxyID"], {}),
        ("", own),
        ("api-sidecar-proxy", own),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await node.secrets(proxy_id, metadata)
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED, (proxy_id, metadata)

    await node.agent.signal(signal.SIGTERM)  # a session outlives the agent's restart
    await node.agent.start()

    async def admitted() -> bool:
        try:
            return await node.secrets(mine["ProxyID"], own) == ["leaf", "roots"]
        except grpc.aio.AioRpcError as error:
            raise OSError(str(error)) from error

    await until(admitted, "the pod is admitted with its old session")
    await node.api.delete("pods", "default", "a")
    await node.until_health("api", {})
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await node.secrets(mine["ProxyID"], own)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_an_id_that_is_a_service_s_already_is_no_way_to_its_identity(node: Node) -> None:
    """Ids are made of the names of service account and pod, which their owner chooses."""
    host = {"ID": "api-v1", "Name": "vault", "Port": 1, "Connect": {"SidecarService": {}}}
    await node.run(pod("v1"), "token-v1")
    mine = await node.session("token-v1")
    await node.until_health("api", {"api-v1": "passing"})
    own = {"mesh-session": mine["Session"], "mesh-pod": mine["PodUID"]}
    assert await node.secrets(mine["ProxyID"], own) == ["leaf", "roots"]
    await node.api.stop()
    await node.agent.put("/v1/agent/service/deregister/api-v1")
    await node.agent.put("/v1/agent/service/register", host)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await node.secrets(mine["ProxyID"], own)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    await node.api.start()
    answer = await node.ask("POST", "/v1/kubernetes/session", "token-v1")
    assert answer.status == 403
    assert b"'api-v1-sidecar-proxy' is taken" in answer.body


async def test_two_pods_that_make_the_same_id_are_two_identities(node: Node) -> None:
    leaving = await node.run(pod("x"), "token-a")
    first = await node.session("token-a")
    own = {"mesh-session": first["Session"], "mesh-pod": first["PodUID"]}
    await node.until_health("api", {"api-x": "passing"})
    assert await node.secrets(first["ProxyID"], own) == ["leaf", "roots"]
    leaving["metadata"]["deletionTimestamp"] = "2026-11-25T10:00:00Z"
    await node.api.put("pods", leaving)
    await node.run(pod("x", namespace="shop", address="10.244.1.9"), "token-b")
    second = await until(lambda: node.session("token-b"), "the id is the second pod's")  # as its init container tries
    assert (second["ProxyID"], second["Service"]) == (first["ProxyID"], "api")
    await node.until_health("api", {"api-x": "passing"})
    theirs = {"mesh-session": second["Session"], "mesh-pod": second["PodUID"]}

    async def configured() -> bool:
        try:
            return "public:10.244.1.9:20000" in await node.secrets(second["ProxyID"], theirs, LISTENER)
        except grpc.aio.AioRpcError as error:
            raise OSError(str(error)) from error

    await until(configured, "the second pod has its own listener")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await node.secrets(first["ProxyID"], own)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_a_pod_that_is_leaving_keeps_its_configuration_until_it_is_gone(node: Node) -> None:
    found = await node.run(pod("a"), "token-a")
    mine = await node.session("token-a")
    await node.until_health("api", {"api-a": "passing"})
    own = {"mesh-session": mine["Session"], "mesh-pod": mine["PodUID"]}
    assert await node.secrets(mine["ProxyID"], own) == ["leaf", "roots"]
    found["metadata"]["deletionTimestamp"] = "2026-11-25T10:00:00Z"
    await node.api.put("pods", found)
    await node.until_health("api", {})
    assert await node.secrets(mine["ProxyID"], own) == ["leaf", "roots"]


async def test_a_stream_ends_with_its_pod(node: Node) -> None:
    await node.run(pod("a"), "token-a")
    mine = await node.session("token-a")
    await node.until_health("api", {"api-a": "passing"})
    own = {"mesh-session": mine["Session"], "mesh-pod": mine["PodUID"]}
    pending = asyncio.ensure_future(node.secrets(mine["ProxyID"], own, "type.googleapis.com/none"))
    await until(lambda: "proxy api-a-sidecar-proxy connected" in node.agent.log(), "the stream is open")
    await pending
    await node.api.delete("pods", "default", "a")
    await node.until_health("api", {})
    await until(lambda: "proxy api-a-sidecar-proxy disconnected" in node.agent.log(), "the stream has ended")


async def test_who_cannot_prove_a_pod_gets_no_session(node: Node) -> None:
    here = await node.run(pod("a"), "right")
    await node.until_health("api", {"api-a": "passing"})
    far = await node.run(pod("far", node="n2"))
    node.api.account("a token without a pod", "default", "api")
    node.api.account("a pod of another node", "default", "api", far)
    node.api.account("another account", "default", "web", here)
    for token, status, text in [
        ("", 401, "who are you"),
        ("unknown", 401, "who are you"),
        ("a token without a pod", 403, "not issued for a pod"),
        ("a pod of another node", 403, "not an injected pod of this node"),
        ("another account", 403, "another one"),
    ]:
        answer = await node.ask("POST", "/v1/kubernetes/session", token)
        assert answer.status == status, (token, answer.body)
        assert text in answer.body.decode(), token


async def test_controllers_use_what_they_need_of_the_api_and_nobody_else_does(node: Node) -> None:
    await node.run(pod("a"), "pods-token")
    node.api.account("controller", "mesh-system", "mesh-controller")
    node.api.account("impostor", "elsewhere", "mesh-controller")
    for token, status in [("controller", 200), ("impostor", 403), ("pods-token", 403), ("junk", 401), ("", 401)]:
        assert (await node.ask("GET", "/v1/catalog/services", token)).status == status, token
    entry = {"Kind": "service-defaults", "Name": "api", "Protocol": "http"}
    assert (await node.ask("PUT", "/v1/config", "controller", entry)).status == 200
    for method, path in [
        ("GET", "/v1/connect/ca/leaf/api"),
        ("PUT", "/v1/agent/service/register"),
        ("PUT", "/v1/connect/intentions/exact?source=web&destination=api"),
        ("GET", "/v1/config/service-defaults/api/.."),
        ("PUT", "/v1/kubernetes/webhook-certificate"),
    ]:
        assert (await node.ask(method, path, "controller", {})).status == 403, path
    node.api.account("another token", "mesh-system", "mesh-controller")
    reviews = node.api.reviews
    for _ in range(5):
        assert (await node.ask("GET", "/v1/catalog/services", "another token")).status == 200
    assert node.api.reviews == reviews + 1, "answers of the API server are remembered"


async def test_an_injector_gets_a_certificate_for_its_webhook_and_for_nothing_else(node: Node) -> None:
    node.api.account("injector", "mesh-system", "mesh-injector")
    csr = _webhook_csr()
    body = {"DNSNames": ["mesh-injector.mesh-system.svc"], "CSR": csr}
    answer = await node.ask("PUT", "/v1/kubernetes/webhook-certificate", "injector", body)
    assert answer.status == 200, answer.body
    certificate = load_certificate(json.loads(answer.body)["Certificate"])
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["mesh-injector.mesh-system.svc"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == []
    assert json.loads(answer.body)["Roots"]
    own = "mesh-injector.mesh-system.svc"
    for wrong in (["api.example.com"], ["x.mesh-system.svc"], ["*.mesh-system.svc"], [], [own, "x.mesh-system.svc"]):
        refused = await node.ask("PUT", "/v1/kubernetes/webhook-certificate", "injector", body | {"DNSNames": wrong})
        assert refused.status == 400, wrong
    await node.run(pod("a"), "pods-token")
    assert (await node.ask("PUT", "/v1/kubernetes/webhook-certificate", "pods-token", body)).status == 403
    for path in ("/v1/catalog/services", "/v1/connect/ca/leaf/api", "/v1/config/service-defaults"):
        assert (await node.ask("GET", path, "injector")).status == 403, path


def _webhook_csr() -> str:
    from cryptography.hazmat.primitives import hashes, serialization

    key: Any = serialization.load_pem_private_key(new_key().encode(), None)
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


async def test_the_port_for_pods_follows_the_renewal_of_the_agents_certificate(tmp_path: Path) -> None:
    authorities = Authorities()
    issuer = authorities.root()
    current = authorities.leaf("agent", issuer)
    metrics = Metrics()
    town = Town(tmp_path)
    server = AdsServer(town.configs, metrics)

    def nobody(metadata: object, proxy_id: str) -> Any:
        raise AssertionError("no stream is opened")

    port = await server.start_tls("127.0.0.1", 0, lambda: (current.certificate_pem, current.key_pem), nobody)
    try:
        for _ in range(3):
            current = authorities.leaf("agent", issuer)
            shown = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
            assert load_certificate(shown) == load_certificate(current.certificate_pem)
    finally:
        await server.stop()
