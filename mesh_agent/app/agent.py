"""The composition root: builds every part of an agent, wires them, and runs them in one task group."""

import asyncio
import base64
import contextlib
import logging
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec

from mesh_agent import __version__
from mesh_agent.agent.probes.client import Probes
from mesh_agent.agent.runner import LocalAgent
from mesh_agent.app import topics
from mesh_agent.app.kubernetes import KubernetesNode
from mesh_agent.app.notify import notify
from mesh_agent.app.paths import Paths, boot_id
from mesh_agent.app.pools import JoinedPool, tags
from mesh_agent.app.roots import tag_of
from mesh_agent.app.server import Server
from mesh_agent.app.trust import Trust
from mesh_agent.ca.issue import fingerprint
from mesh_agent.ca.runner import AgentIdentity, LeafCache
from mesh_agent.ca.spiffe_id import agent_id
from mesh_agent.catalog.runner import Catalog, Subscriber
from mesh_agent.catalog.view import View
from mesh_agent.clock import SystemClock
from mesh_agent.config import AgentConfig
from mesh_agent.dns.server import DnsServer
from mesh_agent.errors import MeshError, NoPathToDatacenter, NoServers, Unreachable
from mesh_agent.gossip import Event, Member
from mesh_agent.http.api import Api
from mesh_agent.http.deps import Deps
from mesh_agent.http.internal import SUBSCRIBE
from mesh_agent.http.message import Request, Response, parse_target
from mesh_agent.http.scope import FORWARDED
from mesh_agent.http.server import FrameStream, HttpServer
from mesh_agent.model import Node, Topic
from mesh_agent.rpc.client import Rpc
from mesh_agent.rpc.router import Router, datacenters
from mesh_agent.telemetry import Metrics
from mesh_agent.xds.runner import ProxyConfigs
from mesh_agent.xds.server import AdsServer

log = logging.getLogger(__name__)

_SUBSCRIBE_PATH = "/v1/internal/subscribe"
_LAN_SILENCE_S, _WAN_SILENCE_S = 25.0, 3.5
_SAVE_TOPICS_S = 15.0
_GOODBYE_S = 0.2


class _Stop(Exception):
    """Ends the task group."""


async def run(config: AgentConfig) -> None:
    """Run an agent until SIGTERM, SIGINT or a leave. ConfigError if it cannot start."""
    await Agent(config).run()


class Agent:
    """One agent, server or client."""

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self._paths = Paths(config.data_dir, config.runtime_dir)
        self._paths.prepare()
        self._clock = SystemClock()
        self._rng = random.SystemRandom()
        self._metrics = Metrics()
        self._node_id = self._paths.node_id()
        self._stopping = asyncio.Event()
        self._subscribers: dict[str, Subscriber] = {}
        self._group: asyncio.TaskGroup | None = None
        self._server: Server | None = None
        self._federated_view: View | None = None
        self._kubernetes: KubernetesNode | None = None
        self._identified = asyncio.Event()
        identity = AgentIdentity(
            agent_id(config.trust_domain, config.datacenter, config.node_name, server=config.server),
            self._paths.certs,
            self._clock,
            self._rng,
        )
        self._trust = Trust(config.datacenter, identity)
        self._router = Router(self._rng)
        self._rpc = Rpc(config.datacenter, identity, self._members_of, self._router)
        self._lan = self._pool(wan=False)
        self._wan = self._pool(wan=True) if config.server and config.ports.serf_wan >= 0 else None

    def _pool(self, *, wan: bool) -> JoinedPool:
        told = tags(self.config, self._node_id)
        if wan:
            told.pop("wan_join_port", None)
        return JoinedPool(
            self.config,
            self._paths,
            wan=wan,
            tags=told,
            clock=self._clock,
            rng=random.Random(self._rng.getrandbits(64)),  # noqa: S311 (probing order, no secret)
            metrics=self._metrics,
            on_event=self._on_wan_event if wan else self._on_lan_event,
        )

    def _members_of(self, datacenter: str) -> list[Member]:
        if datacenter == self.config.datacenter:
            return self._lan.pool.members
        return [] if self._wan is None else self._wan.pool.members

    # life

    async def run(self) -> None:
        """Start, run until told to stop, stop."""
        config = self.config
        if config.dev:
            log.warning(
                "development mode: nothing is kept, nothing is encrypted, everything is allowed; not for production"
            )
        elif not config.encrypt:
            log.warning("gossip is not encrypted: set `encrypt` (mesh keygen makes a key)")
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        if config.server:
            self._server = await Server.open(config, self._paths, self._clock)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await self._start(group)
                await self._stopping.wait()
                raise _Stop
        except* _Stop:
            pass
        finally:
            await self._close()

    async def _start(self, group: asyncio.TaskGroup) -> None:
        config = self.config
        catalog = self._build_catalog()
        if self._server is not None:
            await self._server.load(group)
            self._start_identity_of_server()
        await self._start_pools(group)
        self._agent = LocalAgent(
            config,
            self._node(),
            catalog,
            self._sync,
            Probes(),
            self._paths.state,
            self._clock,
            self._rng,
            boot_id=boot_id(),
        )
        self._agent.restore()
        if config.kubernetes.api:
            self._kubernetes = KubernetesNode(config, self._paths, self._agent, self._rng, self._metrics)
        self._leafs = LeafCache(
            config.trust_domain, config.datacenter, self._sign_service, self._paths.certs, self._clock, self._rng
        )
        self._api = api = Api(self._deps(catalog))
        self._http = HttpServer(api.handle, max_body_bytes=config.max_body_bytes)
        self._https = HttpServer(api.handle, max_body_bytes=config.max_body_bytes)
        self._dns = DnsServer(config, catalog, self._rng)
        self._metrics.collect(self._dns.responder.counts)
        self._metrics.collect(self._gauges)
        if self._server is not None:
            await self._server.start(group, self._trust, self._agent, self._vouching_members, catalog, api.handle)
            self._server.mark_membership(self._lan.pool.members)
        else:
            self._start_client(group)
        await self._listen()
        group.create_task(self._agent.run())
        if self._kubernetes is not None:
            self._kubernetes.start(group)
        group.create_task(self._leafs.run())
        group.create_task(self._follow_bundle(catalog))
        group.create_task(self._serve_proxies(group, catalog))
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        notify("READY=1")
        kind = "server" if config.server else "client"
        log.info("%s agent %s of datacenter %s runs", kind, config.node_name, config.datacenter)

    async def _listen(self) -> None:
        """Open the front doors: a server's catalog is loaded by now, so no answer is wrong for being early."""
        config = self.config
        if config.ports.http >= 0:
            await self._http.start(config.client_addr, config.ports.http)
        if config.ports.dns >= 0:
            for address in dict.fromkeys((config.client_addr, *config.dns_addrs)):
                await self._dns.start(address, config.ports.dns)
        if self._server is not None:
            await self._start_https()

    async def _start_https(self) -> None:
        """Once there is a certificate to serve with."""
        self._identified.set()
        if self._kubernetes is not None:
            await self._kubernetes.open(self._trust.identity, self._api.handle, self._sign_webhook, self._clock)
        if self.config.ports.https < 0:
            return
        context = self._trust.identity.server_context(require=self.config.tls.verify_incoming)
        await self._https.start(self.config.client_addr, self.config.ports.https, context)

    async def _close(self) -> None:
        notify("STOPPING=1")
        for server in ("_ads", "_dns", "_http", "_https"):
            if hasattr(self, server):
                await getattr(self, server).stop()
        if self._kubernetes is not None:
            await self._kubernetes.stop()
        if self._server is not None:
            await self._server.stop()
        elif self._subscribers:
            topics.save(self._paths.topics, next(iter(self._subscribers.values())))
        for pool in (self._lan, self._wan):
            if pool is not None and pool.pool.started:
                pool.save()
                await pool.pool.stop()
        await self._rpc.close()
        log.info("stopped")

    # catalog

    def _build_catalog(self) -> Catalog:
        view = None if self._server is None else self._server.view
        self._catalog = Catalog(
            self.config.datacenter, view, self._subscriber_for, self._datacenters, lambda: self._has_server
        )
        return self._catalog

    @property
    def _has_server(self) -> bool:
        return self._server is not None or any(subscriber.connected for subscriber in self._subscribers.values())

    def _datacenters(self) -> list[str]:
        own = self.config.datacenter
        if self._server is not None:
            return datacenters([] if self._wan is None else self._wan.pool.members, own)
        roots = [] if self._federated_view is None else self._federated_view.roots()
        return [own, *sorted({root.datacenter for root in roots} - {own})]

    def _subscriber_for(self, datacenter: str) -> Subscriber | None:
        """Who brings topics of a datacenter: a client's server for all of them; on a server, a stream to each other datacenter."""
        if self._server is None:
            return self._subscribers.get(self.config.datacenter)
        known = self._subscribers.get(datacenter)
        if known is None and datacenter != self.config.datacenter and datacenter in self._datacenters():
            known = self._subscribe(datacenter, wan=True)
        return known

    def _subscribe(self, datacenter: str, *, wan: bool) -> Subscriber:
        subscriber = Subscriber(
            f"datacenter {datacenter}" if wan else "the servers",
            lambda: self._open_stream(datacenter, wan),
            clock=self._clock,
            rng=self._rng,
            silence_s=_WAN_SILENCE_S if wan else _LAN_SILENCE_S,
            keep_when_lost=not wan,
        )
        self._subscribers[datacenter] = subscriber
        if self._group is not None:
            self._group.create_task(subscriber.run())
        return subscriber

    async def _open_stream(self, datacenter: str, wan: bool) -> FrameStream:
        servers = self._rpc.servers(datacenter)
        if wan:
            await self._trust.meet(servers)
        opened = await self._rpc.open_stream(datacenter, _SUBSCRIBE_PATH, SUBSCRIBE)
        pool = self._wan if wan else self._lan
        if pool is not None and self._group is not None:
            self._group.create_task(self._rejoin(pool, datacenter))
        return opened

    async def _rejoin(self, pool: JoinedPool, datacenter: str) -> None:
        """RPC reached a server that gossip holds for failed: let gossip know."""
        failed = [m for m in pool.pool.members if m.status == "failed" and m.tags.get("dc") == datacenter]
        addresses = [f"{m.address}:{m.port}" for m in failed if m.tags.get("role") == "consul"]
        if addresses:
            with contextlib.suppress(MeshError):
                await pool.pool.join(addresses)

    def _start_client(self, group: asyncio.TaskGroup) -> None:
        subscriber = self._subscribe(self.config.datacenter, wan=False)
        topics.restore(self._paths.topics, subscriber, self._clock)
        subscriber.want(Topic(self.config.datacenter, "node", self.config.node_name.lower()))
        group.create_task(self._save_topics(subscriber))
        group.create_task(self.keep_identity_of_client())

    async def _save_topics(self, subscriber: Subscriber) -> None:
        saved: list[tuple[Topic, int]] = []
        while True:
            await asyncio.sleep(_SAVE_TOPICS_S)
            now = [(replica.topic, replica.view.index) for replica in subscriber.replicas.replicas()]
            if now != saved:
                topics.save(self._paths.topics, subscriber)
                saved = now

    async def _follow_bundle(self, catalog: Catalog) -> None:
        """The trust bundle in use follows the catalog's."""
        topic = Topic(self.config.datacenter, "federated")
        while True:
            try:
                view = await catalog.ensure(topic, timeout_s=10.0)
                break
            except Unreachable:
                await asyncio.sleep(0.5)
        self._federated_view = view
        changed = asyncio.Event()
        changed.set()
        view.listen(topic, lambda _: changed.set())
        while True:
            await changed.wait()
            changed.clear()
            self._trust.follow(view)

    async def _serve_proxies(self, group: asyncio.TaskGroup, catalog: Catalog) -> None:
        """Configure sidecars, from the first one that is registered: without any, gRPC is not even loaded."""
        wanted = asyncio.Event()

        def look() -> None:
            if any(service.kind == "connect-proxy" for service in self._agent.services()):
                wanted.set()

        stop = self._agent.listen(look)
        look()
        await wanted.wait()
        stop()
        configs = ProxyConfigs(
            datacenter=self.config.datacenter,
            trust_domain=self.config.trust_domain,
            catalog=catalog,
            local=self._agent if self._kubernetes is None else self._kubernetes.pods,
            leafs=self._leafs,
            metrics=self._metrics,
            default_intention=self.config.default_intention,
            names=self._services_of,
        )
        group.create_task(configs.run())
        self._ads = AdsServer(configs, self._metrics)
        port = self.config.ports.grpc
        await self._ads.start(self._paths.xds_socket, tcp=("127.0.0.1", port) if port >= 0 else None)
        port = self.config.ports.grpc_tls
        if self._kubernetes is not None and port >= 0:
            await self._identified.wait()
            identity = self._trust.identity
            admit = self._kubernetes.pods.admit
            await self._ads.start_tls(self.config.bind_addr, port, lambda: identity.credential, admit)

    async def _services_of(self, datacenter: str, index: int) -> tuple[list[str], int]:
        """Names of the services of a datacenter; waits until they are others than at `index`."""
        query = {"dc": datacenter, "index": str(index), "wait": "120s"}
        target = "/v1/catalog/services?" + "&".join(f"{key}={value}" for key, value in query.items())
        path, parsed = parse_target(target)
        answer = self._api.handle(Request("GET", path, parsed, target=target))
        response = await answer if isinstance(answer, Awaitable) else answer
        if not isinstance(response, Response) or response.status != 200:
            reason = response.body.decode("utf-8", "replace") if isinstance(response, Response) else "no answer"
            raise Unreachable(f"the services of {datacenter}: {reason}")
        return list(msgspec.json.decode(response.body, type=dict[str, list[str]])), int(
            response.header("X-Consul-Index") or 0
        )

    # pools

    async def _start_pools(self, group: asyncio.TaskGroup) -> None:
        for pool in (self._lan, self._wan):
            if pool is None:
                continue
            await pool.pool.start()
            if self._server is not None:
                own = [fingerprint(self._server.ca.root_pem)]
                pool.pool.set_tags(pool.pool.local.tags | {"roots": tag_of(own)})
            group.create_task(pool.keep_joined())
            group.create_task(pool.keep_saved())

    def _on_lan_event(self, event: Event) -> None:
        member = getattr(event, "member", None)
        if member is None:
            return
        log.info("%s: %s of %s", type(event).__name__, member.name, member.address)
        if self._server is not None:
            self._server.mark_membership(self._lan.pool.members)
            self._flood_wan(member)
        for subscriber in self._subscribers.values():
            subscriber.kick()

    def _flood_wan(self, member: Member) -> None:
        """Servers of one datacenter find each other's WAN addresses through the LAN."""
        port = member.tags.get("wan_join_port")
        if self._wan is None or self._group is None or not port or member.name == self.config.node_name:
            return
        name = f"{member.name}.{self.config.datacenter}"
        if member.status == "alive" and all(known.name != name for known in self._wan.pool.members):
            self._group.create_task(self._join_wan(f"{member.address}:{port}"))

    async def _join_wan(self, address: str) -> None:
        with contextlib.suppress(MeshError):
            if self._wan is not None:
                await self._wan.pool.join([address])

    def _on_wan_event(self, event: Event) -> None:
        member = getattr(event, "member", None)
        if member is None or self._server is None:
            return
        log.info("WAN %s: %s of %s", type(event).__name__, member.name, member.address)
        datacenter = member.tags.get("dc", "")
        if datacenter and datacenter != self.config.datacenter:
            subscriber = self._subscriber_for(datacenter)
            if subscriber is not None:
                self._server.meet(subscriber, datacenter)
                subscriber.kick()

    def _vouching_members(self) -> list[Member]:
        return [*self._lan.pool.members, *([] if self._wan is None else self._wan.pool.members)]

    # identity

    def _start_identity_of_server(self) -> None:
        assert self._server is not None
        assert self._group is not None
        identity = self._trust.identity
        identity.load()
        self._trust.sign_own(self._server.ca, self.config.node_name)
        self._trust.follow(self._server.view)

        async def sign(csr: str) -> str:
            assert self._server is not None
            return self._server.ca.sign_agent(csr, self.config.node_name, server=True)

        self._group.create_task(identity.keep(sign))

    async def keep_identity_of_client(self) -> None:
        """Join if need be, then renew, for ever."""
        identity = self._trust.identity
        if not identity.load():
            await self._trust.enrol(self._rpc, self.config.node_name, self.config.join_token)
        for subscriber in self._subscribers.values():
            subscriber.kick()
        await self._start_https()

        async def sign(csr: str) -> str:
            answer = await self._rpc.call("/v1/internal/ca/sign", {"csr": csr, "kind": "agent"})
            return str(answer["certificate"])

        await identity.keep(sign)

    async def _sign_service(self, csr: str) -> str:
        if self._server is not None:
            return self._server.ca.sign_service(csr, self._agent.runs_service)
        answer = await self._rpc.call("/v1/internal/ca/sign", {"csr": csr, "kind": "service"})
        return str(answer["certificate"])

    async def _sign_webhook(self, csr: str, dns_names: tuple[str, ...]) -> dict[str, Any]:
        if self._server is not None:
            certificate = self._server.ca.sign_webhook(csr, dns_names)
            return {"certificate": certificate, "roots": self._trust.bundle()}
        body = {"csr": csr, "kind": "webhook", "dns_names": list(dns_names)}
        signed: dict[str, Any] = await self._rpc.call("/v1/internal/ca/sign", body)
        return signed

    # what the parts ask of each other

    def _node(self) -> Node:
        config = self.config
        return Node(
            name=config.node_name,
            id=self._node_id,
            address=config.advertised,
            tagged_addresses={"lan": config.advertised, "wan": config.advertised_wan},
            meta=config.node_meta,
        )

    async def _sync(self, puts: dict[str, bytes], deletes: list[str]) -> None:
        if self._server is not None:
            await self._server.sync(self.config.node_name, puts, deletes)
            return
        encoded = {key: base64.b64encode(value).decode() for key, value in puts.items()}
        body = {"node": self.config.node_name, "puts": encoded, "deletes": deletes}
        await self._rpc.call("/v1/internal/sync", body)

    async def _forward(
        self,
        datacenter: str,
        method: str,
        target: str,
        body: bytes,
        *,
        timeout_s: float,
        repeatable: bool,
        hops: int,
    ) -> Response:
        """A request for another agent. A client asks its own servers, which ask the other datacenter's."""
        through = datacenter if self._server is not None else self.config.datacenter
        subscriber = self._subscribers.get(through)
        if subscriber is not None and not subscriber.connected and subscriber.reason is not None:
            if through == self.config.datacenter:
                raise NoServers(f"No known Consul servers: {subscriber.reason}")
            raise NoPathToDatacenter(f"No path to datacenter: {subscriber.reason}")
        return await self._rpc.request(
            through,
            method,
            target,
            headers={FORWARDED: str(hops)},
            body=body,
            timeout_s=timeout_s,
            repeatable=repeatable,
        )

    def _deps(self, catalog: Catalog) -> Deps:
        loop = asyncio.get_running_loop()

        def after(seconds: float, call: Callable[[], None]) -> Callable[[], None]:
            return loop.call_later(seconds, call).cancel

        return Deps(
            config=self.config,
            node_id=self._node_id,
            version=__version__,
            catalog=catalog,
            agent=self._agent,
            lan=self._lan.pool,
            wan=None if self._wan is None else self._wan.pool,
            leafs=self._leafs,
            forward=self._forward,
            writer=self._server,
            metrics=self._metrics,
            clock=self._clock,
            leave=self._leave,
            after=after,
            future=loop.create_future,
        )

    async def _leave(self) -> None:
        """Say goodbye to both pools, then stop. First of all the catalog is left alone: else what the servers delete now would be registered again."""
        self._agent.leave()
        pools = [pool for pool in (self._wan, self._lan) if pool is not None]
        for pool in pools:
            await pool.pool.leave()
            pool.forget()
        asyncio.get_running_loop().call_later(_GOODBYE_S, self._stopping.set)

    def _reload(self) -> None:
        async def reload() -> None:
            notify("RELOADING=1")
            try:
                await self._agent.reload()
            except MeshError as error:
                log.error("not reloaded, everything is as before: %s", error)
            notify("READY=1")

        if self._group is not None:
            self._group.create_task(reload())

    def _gauges(self) -> Iterator[tuple[str, dict[str, str], float]]:
        for name, pool in (("lan", self._lan), ("wan", self._wan)):
            if pool is None:
                continue
            for status in ("alive", "leaving", "left", "failed"):
                count = sum(member.status == status for member in pool.pool.members)
                yield "mesh_members", {"pool": name, "status": status}, float(count)
            yield "mesh_gossip_health_score", {"pool": name}, float(pool.pool.health_score)
        yield "mesh_agent_services", {}, float(len(self._agent.services()))
        yield "mesh_agent_checks", {}, float(len(self._agent.checks()))
        for name, subscriber in self._subscribers.items():
            yield "mesh_stream_connected", {"peer": name}, float(subscriber.connected)
        if self._server is not None:
            yield "mesh_catalog_index", {}, float(self._server.view.index)
            yield "mesh_catalog_nodes", {}, float(len(self._server.view.nodes()))
