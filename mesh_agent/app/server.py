"""What a server agent has and a client agent has not: store, full View, authority, federation, membership, RPC."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from mesh_agent.agent.runner import LocalAgent
from mesh_agent.app.federation import Federation
from mesh_agent.app.paths import Paths
from mesh_agent.app.trust import Trust, vouched_by
from mesh_agent.ca.issue import fingerprint, validity
from mesh_agent.ca.runner import CertificateAuthority
from mesh_agent.catalog import federation, keys, sync
from mesh_agent.catalog.membership import Liveness, plan
from mesh_agent.catalog.publisher import Publisher
from mesh_agent.catalog.runner import Catalog, Subscriber, feed, publish
from mesh_agent.catalog.view import View
from mesh_agent.clock import Clock
from mesh_agent.config import AgentConfig
from mesh_agent.errors import MeshError, StoreConflict
from mesh_agent.gossip import Member, MemberStatus
from mesh_agent.hlc import HybridClock
from mesh_agent.http.internal import Internal, InternalDeps
from mesh_agent.http.message import FrameStreamLike, Handler
from mesh_agent.http.server import HttpServer
from mesh_agent.kubernetes.permissions import webhook_of
from mesh_agent.model import FederatedValue, Root, Topic
from mesh_agent.store import Store
from mesh_agent.store.memory import MemoryStore
from mesh_agent.store.sqlite import SqliteStore

log = logging.getLogger(__name__)

_LAN_HEARTBEAT_S, _WAN_HEARTBEAT_S = 10.0, 1.0
_SETTLE_S = 30.0
_RETRY_S = 1.0
"""How long after its start a server lets agents join before it declares those that it does not see."""


class Server:
    """The server half of an agent. Also the `Writer` of the HTTP API."""

    def __init__(self, config: AgentConfig, store: Store, ca: CertificateAuthority, clock: Clock) -> None:
        self.view = View(config.datacenter)
        self.ca = ca
        self._config, self._store, self._clock = config, store, clock
        self._hybrid = HybridClock(config.datacenter)
        self._members: list[Member] = []
        self._members_changed = asyncio.Event()
        self._started_at = clock.now()
        self._federation: Federation | None = None
        self._publisher: Publisher | None = None
        self._waiting: list[tuple[Subscriber, str]] = []
        self._rpc: HttpServer | None = None

    @classmethod
    async def open(cls, config: AgentConfig, paths: Paths, clock: Clock) -> "Server":
        """Open the store and the authority."""
        store: Store = MemoryStore() if config.store == "memory" else await SqliteStore.open(paths.store)
        ca = await CertificateAuthority.open(
            store,
            config.trust_domain,
            config.datacenter,
            clock,
            root_ttl_s=config.ca.root_ttl_s,
            leaf_ttl_s=config.ca.leaf_ttl_s,
            agent_ttl_s=config.ca.agent_ttl_s,
            webhooks=map(webhook_of, config.kubernetes.injectors),
        )
        return cls(config, store, ca, clock)

    async def load(self, group: asyncio.TaskGroup) -> None:
        """Fill the View and see to it that our root is in the bundle."""
        loaded = asyncio.Event()
        group.create_task(feed(self.view, self._store, loaded))
        await loaded.wait()
        for record in self.view.records(Topic(self._config.datacenter, "federated")).values():
            self._hybrid.observe(federation.stamp_of(record), self._clock.wall())
        pem = self.ca.root_pem
        key = keys.root(self._config.datacenter, fingerprint(pem))
        if self.view.root(key) is None:
            span = validity(pem)
            root = Root(
                datacenter=self._config.datacenter,
                fingerprint=fingerprint(pem),
                certificate_pem=pem,
                not_before=span.not_before,
                not_after=span.not_after,
            )
            await self.put_federated(key, root)

    async def start(
        self,
        group: asyncio.TaskGroup,
        trust: Trust,
        agent: LocalAgent,
        members: Callable[[], Iterable[Member]],
        catalog: Catalog,
        public: Handler,
    ) -> None:
        """Serve RPC, follow other datacenters, keep membership."""
        loop = asyncio.get_running_loop()
        publisher = self._publisher = Publisher(catalog, lambda call: void(loop.call_soon(call)))

        async def serve_stream(opened: FrameStreamLike, own: bool) -> None:
            await publish(publisher, opened, _LAN_HEARTBEAT_S if own else _WAN_HEARTBEAT_S)

        internal = Internal(
            InternalDeps(
                datacenter=self._config.datacenter,
                trust_domain=self._config.trust_domain,
                join_token=self._config.join_token,
                view=self.view,
                ca=self.ca,
                writer=self,
                publish=serve_stream,
                roots=trust.bundle,
                public=public,
            )
        )
        self._rpc = HttpServer(internal.handle, max_body_bytes=64 * 1024 * 1024)
        self._federation = Federation(self.view, self._store, self._hybrid, self._clock, vouched_by(members))
        for subscriber, datacenter in self._waiting:
            self._federation.follow(subscriber, datacenter)
        group.create_task(self._federation.run())
        group.create_task(self._keep_membership())
        if self._config.ports.server >= 0:
            await self._rpc.start(self._config.bind_addr, self._config.ports.server, trust.identity.server_context())

    async def stop(self) -> None:
        """Stop serving and close the store."""
        if self._rpc is not None:
            await self._rpc.stop()
        await self._store.close()

    def meet(self, subscriber: Subscriber, datacenter: str) -> None:
        """A server of another datacenter came or changed."""
        known = any(name == datacenter for _, name in self._waiting)
        if not known:
            self._waiting.append((subscriber, datacenter))
            if self._federation is not None:
                self._federation.follow(subscriber, datacenter)
        if self._federation is not None:
            self._federation.recheck()
        if self._publisher is not None:
            self._publisher.recheck()

    # writing

    async def commit(self, puts: dict[str, bytes], deletes: list[str]) -> int:
        """Write to the catalog; returns once the View has it."""
        revision = await self._store.commit(puts=puts, deletes=deletes)
        await self._applied(revision)
        return revision

    async def put_federated(self, key: str, value: FederatedValue | None) -> None:
        """Write an object that all datacenters share, or its tombstone."""
        await self.change_federated({key: value})

    async def change_federated(
        self, values: Mapping[str, FederatedValue | None], expect: Mapping[str, int] | None = None
    ) -> None:
        """Write several such objects in one commit; StoreConflict if a record is not at the revision that `expect` says (0: absent)."""
        wall, hybrid = self._clock.wall(), self._hybrid
        puts = {
            key: federation.tombstone(hybrid, wall) if value is None else federation.put(value, hybrid, wall)
            for key, value in values.items()
        }
        await self._applied(await self._store.commit(puts=puts, expect=expect))

    async def sync(self, node: str, puts: dict[str, bytes], deletes: list[str]) -> None:
        """Anti-entropy of the server's own node."""
        fresh, gone = sync.accepted(self.view, node, puts, deletes)
        if fresh or gone:
            await self.commit(fresh, gone)

    async def _applied(self, revision: int) -> None:
        """A caller reads its own write: wait until the watch has brought it."""
        everything = Topic(self._config.datacenter, "all")
        if self.view.index >= revision:
            return
        seen = asyncio.Event()
        stop = self.view.listen(everything, lambda _: seen.set())
        try:
            async with asyncio.timeout(2.0):
                while self.view.index < revision:
                    await seen.wait()
                    seen.clear()
        except TimeoutError:
            log.warning("the catalog's watch is slow: revision %d is not there yet", revision)
        finally:
            stop()

    # membership

    def mark_membership(self, members: list[Member]) -> None:
        """Gossip changed."""
        self._members = members
        self._members_changed.set()

    async def _keep_membership(self) -> None:
        """Make the catalog agree with gossip: at each change, and once agents have had time to join."""
        while True:
            patience_s = _SETTLE_S
            settled = self._clock.now() - self._started_at >= _SETTLE_S
            try:
                wanted = plan(self.view, map(_liveness, filter(_is_agent, self._members)), settled=settled)
                if wanted:
                    await self.commit(wanted.puts, wanted.deletes)
            except StoreConflict:
                continue
            except MeshError as error:
                log.warning("membership could not be written, trying again: %s", error)
                patience_s = _RETRY_S
            try:
                async with asyncio.timeout(patience_s):
                    await self._members_changed.wait()
            except TimeoutError:
                continue
            self._members_changed.clear()


def _is_agent(member: Member) -> bool:
    return member.tags.get("role") in ("node", "consul")


def _liveness(member: Member) -> Liveness:
    port = member.tags.get("port", "") if member.tags.get("role") == "consul" else ""
    return Liveness(
        name=member.name,
        address=member.address,
        id=member.tags.get("id", ""),
        alive=member.status in (MemberStatus.ALIVE, MemberStatus.LEAVING),
        left=member.status is MemberStatus.LEFT,
        server_port=int(port) if port.isdigit() else 0,
    )


def void(_: object) -> None:
    """Drop a result."""
