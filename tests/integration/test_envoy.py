"""Real Envoy sidecars configured by the real ADS server: who gets through, who does not, and how fast a change of mind counts."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh_agent.ca.spiffe_id import agent_id, service_id
from mesh_agent.model import Action, Service, Status
from mesh_agent.xds.naming import server_name
from tests.support.callers import GREETING, Closed, Line, client_context, greeting_echo, http_app, server_context
from tests.support.sidecars import DC, TRUST_DOMAIN, Town, eventually, until

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(120)]

ALLOW, DENY = Action.ALLOW, Action.DENY


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with Town(tmp_path) as found:
        yield found


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    async with greeting_echo() as port:
        yield port


@pytest.fixture
async def app() -> AsyncIterator[int]:
    async with http_app("api") as port:
        yield port


def upstream_port(proxy: Service) -> int:
    """Where the application beside `proxy` reaches its first upstream."""
    assert proxy.proxy is not None
    return proxy.proxy.upstreams[0].local_bind_port


async def trio(town: Town, app_port: int, protocol: str) -> tuple[Service, Service, Service]:
    """api, called by web and by other, all with running sidecars."""
    api = town.register("api", app_port=app_port, protocol=protocol)
    web = town.register("web", protocol=protocol, calls=("api",))
    other = town.register("other", protocol=protocol, calls=("api",))
    await asyncio.gather(*(town.envoy(each) for each in (api, web, other)))
    return api, web, other


async def greeted(port: int) -> Line:
    """A connection that the echo server has greeted: it got through."""
    line = await Line.to(port)
    assert await line.read(len(GREETING)) == GREETING
    return line


async def gets_through(port: int) -> bool:
    """Whether a new connection reaches the echo server."""
    try:
        line = await greeted(port)
    except Closed:
        return False
    line.close()
    return True


async def until_gets_through(port: int, wanted: bool) -> None:
    """Wait until new connections fare as wanted."""

    async def probe() -> bool:
        return await gets_through(port) is wanted

    await until(probe, f"a connection {'gets' if wanted else 'does not get'} through")


async def until_status(line: Line, status: int) -> None:
    """Ask on this very connection until the answer has this status."""

    async def probe() -> bool:
        return (await line.get())[0] == status

    await until(probe, f"the status is {status}")


async def test_tcp_is_refused_by_default_and_follows_the_intentions_connection_by_connection(
    town: Town, echo: int
) -> None:
    _, web, other = await trio(town, echo, "tcp")
    assert not await gets_through(upstream_port(web)), (
        "denied by default, and not even greeted by a server that speaks first"
    )

    town.intend("web", "api", ALLOW)
    town.intend("other", "api", ALLOW)
    for each in (web, other):
        await until_gets_through(upstream_port(each), True)
    from_web, from_other = await greeted(upstream_port(web)), await greeted(upstream_port(other))

    town.intend("web", "api", DENY)
    await from_web.closed()
    assert await from_other.say(b"still here") == b"still here"
    await until_gets_through(upstream_port(web), False)

    town.intend("web", "api", ALLOW)
    await until_gets_through(upstream_port(web), True)
    from_web = await greeted(upstream_port(web))
    town.intend("web", "api", None)
    await from_web.closed()
    assert await from_other.say(b"still here") == b"still here"
    from_other.close()


async def test_the_last_source_that_was_allowed_can_be_denied(town: Town, echo: int) -> None:
    town.intend("web", "api", ALLOW)
    _, web, _ = await trio(town, echo, "tcp")
    line = await greeted(upstream_port(web))
    town.intend("web", "api", None)
    await line.closed()
    assert not await gets_through(upstream_port(web))


async def test_an_exception_to_a_wildcard_closes_the_connections_of_the_excepted_source(town: Town, echo: int) -> None:
    town.intend("*", "*", ALLOW)
    _, web, other = await trio(town, echo, "tcp")
    from_web, from_other = await greeted(upstream_port(web)), await greeted(upstream_port(other))
    town.intend("web", "api", DENY)
    await from_web.closed()
    assert await from_other.say(b"still here") == b"still here"
    from_other.close()


async def test_a_refused_tcp_connection_is_in_the_access_log_with_its_identity(town: Town, echo: int) -> None:
    api, web, _ = await trio(town, echo, "tcp")
    assert not await gets_through(upstream_port(web))
    output = town.envoys[api.id].output

    def logged() -> list[dict[str, str]]:
        lines = (line for line in output.read_text().splitlines() if line.startswith("{"))
        return [entry for entry in map(json.loads, lines) if entry["log"] == "refused"]

    await eventually(logged, "the refusal is logged")
    assert logged()[0]["peer"] == str(service_id(TRUST_DOMAIN, DC, "web"))


async def test_http_is_judged_request_by_request_and_the_application_sees_who_asks(town: Town, app: int) -> None:
    _, web, other = await trio(town, app, "http")
    town.intend("web", "api", ALLOW)
    town.intend("other", "api", ALLOW)
    from_web, from_other = await Line.to(upstream_port(web)), await Line.to(upstream_port(other))

    await until_status(from_web, 200)
    await until_status(from_other, 200)
    _, body = await from_web.get("/", x_forwarded_client_cert="URI=spiffe://forged")
    peer = dict(each.split("=", 1) for each in body["headers"]["x-forwarded-client-cert"].split(";"))
    assert peer["URI"] == str(service_id(TRUST_DOMAIN, DC, "web"))

    town.intend("web", "api", DENY)
    await until_status(from_web, 403)  # on the connection that was allowed before
    assert (await from_other.get())[0] == 200
    town.intend("web", "api", None)
    assert (await from_web.get())[0] == 403, "the default denies as well"
    town.intend("*", "api", ALLOW)
    await until_status(from_web, 200)
    for line in (from_web, from_other):
        line.close()


async def refused_at(port: int, leaf: object, text: bytes = b"x") -> bool:
    """Whether the public listener turns this client away before the application greets it."""
    try:
        line = await Line.to(port, client_context(leaf))  # type: ignore[arg-type]
        await line.read(len(GREETING))  # TLS 1.3 tells a client of its refusal only after its handshake
    except Closed:
        return True
    line.close()
    return False


async def test_strangers_are_refused(town: Town, echo: int) -> None:
    api = town.register("api", app_port=echo)
    town.intend("web", "api", ALLOW)
    await town.envoy(api)
    make, issuer = town.authorities, town.issuer
    assert not await refused_at(api.port, make.leaf("web", issuer)), "the control gets through"

    assert await refused_at(api.port, None), "no certificate"
    assert await refused_at(api.port, make.leaf("web", make.root())), "a foreign CA"
    foreign = service_id("elsewhere.test", DC, "web")
    assert await refused_at(api.port, make.leaf("web", issuer, identity=foreign)), "another trust domain"
    assert await refused_at(api.port, make.leaf("web", issuer, ttl_s=60.0, ago_s=600.0)), "expired"
    assert await refused_at(api.port, make.leaf("stranger", issuer)), "the wrong service"
    assert await refused_at(api.port, make.leaf("webx", issuer)), "a service whose name begins the same"
    town.intend("*", "api", ALLOW)
    stranger = make.leaf("stranger", issuer)

    async def admitted() -> bool:
        return not await refused_at(api.port, stranger)

    await until(admitted, "the wildcard admits any service")
    node = agent_id(TRUST_DOMAIN, DC, "n1", server=False)
    assert await refused_at(api.port, make.leaf("n1", issuer, identity=node)), "an agent is not a service"

    plain = await Line.to(api.port)
    with pytest.raises(Closed):
        await plain.say(b"GET / HTTP/1.0\r\n\r\n")


async def test_a_server_with_the_wrong_identity_is_not_talked_to(town: Town) -> None:
    web = town.register("web", calls=("api",))
    await town.envoy(web)
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(GREETING)
            heard.append(await reader.read(100))
        writer.close()

    async def instance(service: str, *, issuer_is_ours: bool) -> asyncio.Server:
        issuer = town.issuer if issuer_is_ours else town.authorities.root()
        context = server_context(town.authorities.leaf(service, issuer))
        server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        town.endpoint("api", port)
        return server

    impostor = await instance("stranger", issuer_is_ours=True)
    async with impostor:
        assert not await gets_through(upstream_port(web))
    forger = await instance("api", issuer_is_ours=False)
    async with forger:
        assert not await gets_through(upstream_port(web))
    assert not any(heard)
    honest = await instance("api", issuer_is_ours=True)
    async with honest:
        await until_gets_through(upstream_port(web), True)


class Load:
    """Requests without pause on ever new connections, counted by status; 0 is a connection that was closed instead."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._done = False
        self.statuses: Counter[int] = Counter()

    async def __aenter__(self) -> "Load":
        self._tasks = [asyncio.create_task(self._call()) for _ in range(4)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._done = True
        await asyncio.gather(*self._tasks)

    async def _call(self) -> None:
        while not self._done:
            line = await Line.to(self._port)
            try:
                for _ in range(2):
                    self.statuses[(await line.get())[0]] += 1
                line.close()
            except Closed:
                self.statuses[0] += 1

    async def more(self, count: int) -> None:
        """Wait for so many requests more."""
        began = self.statuses.total()
        await eventually(lambda: self.statuses.total() >= began + count, "requests go on")


async def test_rotation_of_leafs_and_of_the_root_fails_no_request(town: Town, app: int) -> None:
    # As TCP, every connection of the load is a handshake between the sidecars; HTTP would use few of them for long.
    api, web, _ = await trio(town, app, "tcp")
    town.intend("web", "api", ALLOW)

    async def admitted() -> bool:
        line = await Line.to(upstream_port(web))
        with contextlib.suppress(Closed), contextlib.closing(line):
            return (await line.get())[0] == 200
        return False

    await until(admitted, "web may talk to api")

    async def acknowledged() -> None:
        """Every sidecar has it: what a rotation must wait for before the next step."""
        await asyncio.sleep(0)
        await eventually(lambda: town.server.settled, "the sidecars have acknowledged")

    def renew() -> None:
        for service in ("api", "web"):
            town.leafs.renew(service)

    async with Load(upstream_port(web)) as load:
        await load.more(100)
        for _ in range(5):
            renew()
            await load.more(50)
        old, new = town.issuer, town.authorities.root()
        town.trust(old, new)
        await acknowledged()
        await load.more(50)
        town.leafs.issuer = new
        renew()
        await acknowledged()
        await load.more(50)
        town.trust(new)
        await load.more(100)
    assert set(load.statuses) == {200}, load.statuses
    for each in (api, web):
        certificates = json.loads(await town.envoys[each.id].ask("/certs"))["certificates"]
        assert {len(entry["ca_cert"]) for entry in certificates} == {1}, "the old root is gone"


async def test_sidecars_go_on_while_the_agent_is_away_and_take_what_changed_when_it_is_back(
    town: Town, echo: int
) -> None:
    api, web, other = await trio(town, echo, "tcp")
    town.intend("web", "api", ALLOW)
    await until_gets_through(upstream_port(web), True)
    steady = await greeted(upstream_port(web))
    envoy = town.envoys[api.id]

    await town.server.stop()
    assert await gets_through(upstream_port(web))
    assert await steady.say(b"alone") == b"alone"
    town.intend("other", "api", ALLOW)
    loads = await envoy.stat("listener_manager.lds.update_success")

    before = town.sent()
    await town.server.start(town.ads_socket)
    await until_gets_through(upstream_port(other), True)
    await eventually(lambda: len(town.server.proxies) == 3, "all three are back")
    await eventually(lambda: town.server.settled, "and have acknowledged")
    assert await steady.say(b"still") == b"still"
    assert await envoy.stat("listener_manager.lds.update_success") == loads + 1
    sent = {kind: count - before.get(kind, 0) for kind, count in town.sent().items()}
    assert {kind for kind, count in sent.items() if count} == {"Listener"}, "what they had is not sent again"
    steady.close()


async def test_what_envoy_rejects_is_counted_and_logged_and_the_rest_goes_on(
    town: Town, echo: int, caplog: pytest.LogCaptureFixture
) -> None:
    _, web, _ = await trio(town, echo, "tcp")
    town.intend("web", "api", ALLOW)
    await until_gets_through(upstream_port(web), True)
    town.add_upstream(web, "api", bind_address="not-an-address")
    await eventually(lambda: "mesh_xds_rejected_total" in town.metrics.prometheus(), "the rejection is counted")
    assert f'proxy="{web.id}"' in town.metrics.prometheus()
    assert "malformed IP address" in caplog.text
    assert await gets_through(upstream_port(web))


async def test_a_destination_without_endpoints_fails_at_once(town: Town) -> None:
    web = town.register("web", calls=("nowhere",))
    caller = town.register("caller", protocol="http", calls=("nowhere",))
    await asyncio.gather(town.envoy(web), town.envoy(caller))
    assert not await gets_through(upstream_port(web))
    line = await Line.to(upstream_port(caller))
    assert (await line.get())[0] == 503
    line.close()


async def test_a_critical_endpoint_is_left_out_until_it_recovers(town: Town, echo: int) -> None:
    api, web, _ = await trio(town, echo, "tcp")
    town.intend("web", "api", ALLOW)
    await until_gets_through(upstream_port(web), True)
    town.catalog.instance(api, town.node, Status.CRITICAL)
    await until_gets_through(upstream_port(web), False)
    town.catalog.instance(api, town.node, Status.WARNING)
    await until_gets_through(upstream_port(web), True)


async def test_a_changed_cluster_is_used_at_once_with_its_endpoints(town: Town, app: int) -> None:
    api = town.register("api", app_port=app, protocol="http")
    web = town.register("web", protocol="http", calls=("api",))
    town.intend("web", "api", ALLOW)
    await asyncio.gather(town.envoy(api), town.envoy(web))
    envoy = town.envoys[web.id]
    town.change_upstream(web, config={"protocol": "http", "connect_timeout_ms": 1234})

    async def changed() -> bool:
        return '"1.234s"' in await envoy.ask("/config_dump?resource=dynamic_active_clusters")

    await until(changed, "the cluster has its new settings")
    assert await envoy.stat("cluster_manager.warming_clusters") == 0
    cluster = f"cluster.{server_name('api', DC, TRUST_DOMAIN)}"
    assert await envoy.stat(f"{cluster}.init_fetch_timeout") == 0, (
        "its endpoints were sent again, not waited for in vain"
    )
    line = await Line.to(upstream_port(web))
    assert (await line.get())[0] == 200
    line.close()


async def test_an_unknown_proxy_is_told_so(town: Town) -> None:
    import grpc
    from envoy.config.core.v3.base_pb2 import Node
    from envoy.service.discovery.v3 import discovery_pb2

    async with grpc.aio.insecure_channel(f"unix:{town.ads_socket}") as channel:
        call = channel.stream_stream(
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
            request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString,
        )()
        await call.write(discovery_pb2.DeltaDiscoveryRequest(node=Node(id="nobody"), type_url="x"))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    assert "no sidecar proxy 'nobody' is registered on this node" in (raised.value.details() or "")
    assert town.ads_socket.stat().st_mode & 0o777 == 0o660


async def test_the_server_begins_with_the_first_proxy_of_the_node(town: Town, tmp_path: Path) -> None:
    another = tmp_path / "another.sock"
    running = asyncio.create_task(town.server.run(town.registrations, another))
    await asyncio.sleep(0)
    assert not another.exists()
    town.registrations.put(Service(id="web", name="web", node="n1"))
    await asyncio.sleep(0)
    assert not another.exists(), "a service without a sidecar needs none"
    town.register("web", calls=("api",))
    await eventually(another.exists, "it listens")
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_a_deregistered_proxy_loses_its_stream_and_gets_it_back(town: Town) -> None:
    web = town.register("web", calls=("api",))
    await town.envoy(web)
    town.registrations.delete(web.id)
    await eventually(lambda: not town.server.proxies, "its stream is ended")
    town.registrations.put(web)
    await eventually(lambda: web.id in town.server.proxies, "it is back")
