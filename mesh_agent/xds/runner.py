"""Shell of the sidecars' configuration: follows what each connected proxy depends on and keeps its newest snapshot ready.

A proxy is followed from its first stream to its last. Whatever it depends on only marks it as stale; it is rebuilt in the next turn of the event loop,
once, however much changed in this one. A View that was handed out once is kept: when a datacenter is cut off its last known endpoints stay.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeGuard, TypeVar

from mesh_agent.ca.runner import Leaf
from mesh_agent.catalog import config_entries
from mesh_agent.catalog.reader import CatalogReader
from mesh_agent.catalog.view import View
from mesh_agent.errors import LocalProtocolError, MeshError, NotFound
from mesh_agent.model import SERVERS, Instance, Service, Topic
from mesh_agent.telemetry import Metrics
from mesh_agent.xds.inputs import Destination, Inputs, Mesh, destinations
from mesh_agent.xds.snapshot import Snapshot

if TYPE_CHECKING:
    from mesh_agent.xds.build import Builder, EndpointCache

log = logging.getLogger(__name__)

T = TypeVar("T")
Stop = Callable[[], None]
Names = Callable[[str, int], Awaitable[tuple[list[str], int]]]
"""(datacenter, index) -> names of its services and their index; waits until that is another one than was given."""

_LAST_RETRY_S = 15.0
_NAMES_PAUSE_S = 0.1
_SIDECAR = "-sidecar-proxy"


class LocalProxies(Protocol):
    """The sidecar proxies that are registered on this node."""

    def proxy(self, service_id: str) -> Service | None:
        """The registration of a sidecar proxy; None if there is no such proxy here."""
        ...

    def services(self) -> Sequence[Service]:
        """Everything that is registered here."""
        ...

    def listen(self, listener: Callable[[], None]) -> Stop:
        """Call `listener()` after each change."""
        ...


class Leafs(Protocol):
    """Certificates of this node's services."""

    async def leaf(self, service: str) -> Leaf:
        """The current one; obtained if there is none."""
        ...

    def listen(self, service: str, listener: Callable[[Leaf], None]) -> Stop:
        """Call `listener(leaf)` after each renewal."""
        ...


class FollowedProxy:
    """One proxy with at least one stream: its inputs as far as they are known, and the snapshot made of them."""

    def __init__(self, service: Service, mesh: Mesh, builder: "Builder") -> None:
        self.service = service
        self.snapshot: Snapshot | None = None
        self.streams: set[Callable[[], None]] = set()
        self.gone = False
        self.leaf: Leaf | None = None
        self.federated: View | None = None
        self.views: dict[Topic, View] = {}
        self.waiting: set[Topic] = set()
        self.reach: tuple[Destination, ...] = ()
        self.tasks: set[asyncio.Task[None]] = set()
        self.stops: dict[object, Stop] = {}
        self._mesh = mesh
        self._builder = builder

    def rebuild(self) -> bool:
        """Make a new snapshot if everything that it needs is there; says whether it differs from the last one."""
        if self.leaf is None or self.federated is None or self.waiting:
            return False
        roots = tuple(root.certificate_pem for root in self.federated.roots())
        if not roots:
            return False
        explicit = destinations(self.service, self._mesh.datacenter)
        inputs = Inputs(
            mesh=self._mesh,
            proxy=config_entries.resolved(self.service, self.federated),
            certificate_pem=self.leaf.certificate_pem,
            key_pem=self.leaf.key_pem,
            roots=roots,
            intentions=tuple(self.federated.intentions()),
            endpoints=self._instances({*explicit, *self.reach}, connect=True),
            reach=self.reach,
            instances=self._instances(self.reach, connect=False),
            protocols={each.service: config_entries.protocol(self.federated, each.service) for each in self.reach},
        )
        previous, self.snapshot = self.snapshot, self._builder.build(inputs)
        return previous is None or previous.tables != self.snapshot.tables

    def _instances(self, wanted: Iterable[Destination], *, connect: bool) -> dict[Destination, tuple[Instance, ...]]:
        kind = "connect" if connect else "service"
        return {
            each: view.instances(each.service, connect=connect)
            for each in wanted
            if (view := self.views.get(Topic(each.datacenter, kind, each.service))) is not None
        }


class ProxyConfigs:
    """Snapshots of this node's sidecars. `run` must be running; streams come and go by `follow` and `leave`."""

    def __init__(
        self,
        *,
        datacenter: str,
        trust_domain: str,
        catalog: CatalogReader,
        local: LocalProxies,
        leafs: Leafs,
        metrics: Metrics,
        default_intention: str = "deny",
        names: Names | None = None,
        first_answer_s: float = 2.0,
        first_retry_s: float = 0.5,
    ) -> None:
        """`names` tells which services a datacenter has, for transparent proxies whose intentions name none.

        `first_answer_s`: how long a new proxy waits for an upstream's endpoints; `first_retry_s`: the first pause after a failed question.
        """
        self._mesh = Mesh(trust_domain, datacenter, default_intention == "allow")
        self._catalog = catalog
        self._local = local
        self._leafs = leafs
        self._metrics = metrics
        self._first_answer_s = first_answer_s
        self._first_retry_s = first_retry_s
        self._names = names
        self._services: dict[str, frozenset[str]] = {}
        self._asking: set[str] = set()
        self._followed: dict[str, FollowedProxy] = {}
        self._stale: set[str] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._cache: EndpointCache | None = None
        metrics.describe("mesh_xds_snapshots_total", "Snapshots made for sidecar proxies.")
        metrics.describe("mesh_xds_failed_builds_total", "Registrations of which no configuration could be made.")

    async def run(self) -> None:
        """Follow proxies until cancelled."""
        stop = self._local.listen(self._registrations_changed)
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await asyncio.get_running_loop().create_future()
        finally:
            self._tasks = None
            stop()
            for proxy_id in tuple(self._followed):
                self._forget(proxy_id)

    def follow(self, proxy_id: str, wake: Callable[[], None]) -> FollowedProxy:
        """Begin to follow a proxy for one more stream, whose `wake` is called after each change. NotFound for an unknown one."""
        followed = self._followed.get(proxy_id)
        if followed is None:
            service = self._local.proxy(proxy_id)
            if service is None or service.proxy is None:
                raise NotFound(
                    f"no sidecar proxy {proxy_id!r} is registered on this node; register its service with connect.sidecar_service"
                )
            followed = self._begin(proxy_id, service)
        followed.streams.add(wake)
        return followed

    def leave(self, proxy_id: str, wake: Callable[[], None]) -> None:
        """End of a stream."""
        followed = self._followed.get(proxy_id)
        if followed is not None:
            followed.streams.discard(wake)
            if not followed.streams:
                self._forget(proxy_id)

    def _begin(self, proxy_id: str, service: Service) -> FollowedProxy:
        from mesh_agent.xds.build import Builder, EndpointCache  # the first proxy pays for the import

        if self._tasks is None:
            raise LocalProtocolError("a proxy asked for its configuration before ProxyConfigs.run()")
        self._cache = self._cache or EndpointCache()
        followed = self._followed[proxy_id] = FollowedProxy(service, self._mesh, Builder(self._cache))
        self._listen_to_leaf(proxy_id, followed)
        self._spawn(followed, self._find_federated(proxy_id, followed))
        self._follow_topics(proxy_id, followed)
        return followed

    def _forget(self, proxy_id: str) -> None:
        followed = self._followed.pop(proxy_id)
        self._stale.discard(proxy_id)
        for stop in followed.stops.values():
            stop()
        for task in followed.tasks:
            task.cancel()

    def _spawn(self, followed: FollowedProxy, work: Awaitable[None]) -> None:
        assert self._tasks is not None

        async def guarded() -> None:
            await work

        task = self._tasks.create_task(guarded())
        followed.tasks.add(task)
        task.add_done_callback(followed.tasks.discard)

    # -- what a proxy depends on

    def _listen_to_leaf(self, proxy_id: str, followed: FollowedProxy) -> None:
        assert followed.service.proxy is not None
        service = followed.service.proxy.destination_service

        def renewed(leaf: Leaf) -> None:
            followed.leaf = leaf
            self._mark(proxy_id)

        async def first() -> None:
            renewed(await self._persist(f"the certificate of {service}", lambda: self._leafs.leaf(service)))

        followed.stops["leaf"] = self._leafs.listen(service, renewed)
        self._spawn(followed, first())

    async def _find_federated(self, proxy_id: str, followed: FollowedProxy) -> None:
        topic = Topic(self._mesh.datacenter, "federated")
        view = await self._persist("intentions and roots", lambda: self._catalog.ensure(topic))
        followed.federated = view
        followed.stops[topic] = view.listen(topic, lambda _: self._policy_changed(proxy_id, followed))
        self._policy_changed(proxy_id, followed)

    def _policy_changed(self, proxy_id: str, followed: FollowedProxy) -> None:
        """Intentions, roots or names of services are others than before: the proxy may reach others, too."""
        reach = self._reach(followed)
        if reach != followed.reach:
            followed.reach = reach
            self._follow_topics(proxy_id, followed)
        self._mark(proxy_id)

    def _reach(self, followed: FollowedProxy) -> tuple[Destination, ...]:
        proxy = followed.service.proxy
        if proxy is None or proxy.mode != "transparent" or followed.federated is None:
            return ()
        from mesh_agent.xds.transparent import permitted

        allowed = permitted(
            followed.federated.intentions(), proxy.destination_service, default_allow=self._mesh.default_allow
        )
        found: list[Destination] = []
        for datacenter in self._catalog.datacenters():
            if allowed.others:
                self._ask_names(datacenter)
            names = allowed.of(self._services.get(datacenter, frozenset()))
            found += [Destination(datacenter, name) for name in sorted(names)]
        return tuple(found)

    def _ask_names(self, datacenter: str) -> None:
        if self._names is not None and datacenter not in self._asking and self._tasks is not None:
            self._asking.add(datacenter)
            self._tasks.create_task(self._follow_names(datacenter, self._names))

    async def _follow_names(self, datacenter: str, ask: Names) -> None:
        """Keep the names of a datacenter's services while somebody may call any of them."""
        index = 0
        while True:
            names, index = await self._persist(
                f"the services of {datacenter}", partial(ask, datacenter, index), level=logging.DEBUG
            )
            fresh = frozenset(name for name in names if not name.endswith(_SIDECAR) and name != SERVERS)
            if fresh != self._services.get(datacenter):
                self._services[datacenter] = fresh
                for proxy_id, followed in tuple(self._followed.items()):
                    self._policy_changed(proxy_id, followed)
            await asyncio.sleep(_NAMES_PAUSE_S)

    def _follow_topics(self, proxy_id: str, followed: FollowedProxy) -> None:
        """Follow the endpoints of what the proxy calls, and the addresses of what its application may dial."""
        explicit = {
            Topic(each.datacenter, "connect", each.service)
            for each in destinations(followed.service, self._mesh.datacenter)
        }
        wanted = explicit | {
            Topic(each.datacenter, kind, each.service) for each in followed.reach for kind in ("connect", "service")
        }
        for known in [each for each in followed.stops if _is_of_service(each) and each not in wanted]:
            followed.stops.pop(known)()
            followed.views.pop(known, None)
            followed.waiting.discard(known)
        for topic in wanted:
            if topic not in followed.stops:
                followed.stops[topic] = _nothing
                # A proxy that runs is not held up by one more service that it may reach.
                if topic in explicit or followed.snapshot is None:
                    followed.waiting.add(topic)
                level = logging.WARNING if topic in explicit else logging.DEBUG
                self._spawn(followed, self._find(proxy_id, followed, topic, level))

    async def _find(self, proxy_id: str, followed: FollowedProxy, topic: Topic, level: int) -> None:
        def late() -> None:
            followed.waiting.discard(topic)
            self._mark(proxy_id)

        # An upstream that cannot be found must not hold up the others: soon it counts as empty, and is filled in when it is there.
        patience = asyncio.get_running_loop().call_later(self._first_answer_s, late)
        try:
            view = await self._persist(
                f"the endpoints of {topic.name} in {topic.datacenter}", lambda: self._catalog.ensure(topic), level=level
            )
        finally:
            patience.cancel()
        if topic in followed.stops:
            followed.views[topic] = view
            followed.stops[topic] = view.listen(topic, lambda _: self._mark(proxy_id))
            late()

    def _registrations_changed(self) -> None:
        for proxy_id, followed in tuple(self._followed.items()):
            service = self._local.proxy(proxy_id)
            if service is None or service.proxy is None or _stands_for(service) != _stands_for(followed.service):
                # Another service under an old id is another proxy: nothing made for the one, least of all a key, is for the other.
                followed.gone = True
                for wake in tuple(followed.streams):
                    wake()
                self._forget(proxy_id)
            elif service != followed.service:
                followed.service = service
                followed.reach = self._reach(followed)
                self._follow_topics(proxy_id, followed)
                self._mark(proxy_id)

    # -- rebuilding

    def _mark(self, proxy_id: str) -> None:
        if not self._stale:
            asyncio.get_running_loop().call_soon(self._rebuild)
        self._stale.add(proxy_id)

    def _rebuild(self) -> None:
        stale, self._stale = self._stale, set()
        for proxy_id in stale:
            followed = self._followed.get(proxy_id)
            if followed is not None and self._rebuilt(proxy_id, followed):
                self._metrics.count("mesh_xds_snapshots_total")
                for wake in tuple(followed.streams):
                    wake()

    def _rebuilt(self, proxy_id: str, followed: FollowedProxy) -> bool:
        try:
            return followed.rebuild()
        except (MeshError, ValueError, TypeError) as error:  # a registration that Envoy's types cannot express
            self._metrics.count("mesh_xds_failed_builds_total", proxy=proxy_id)
            log.error(
                "proxy %s keeps its last configuration, none can be made of its registration: %s", proxy_id, error
            )
            return False

    async def _persist(self, what: str, ask: Callable[[], Awaitable[T]], *, level: int = logging.WARNING) -> T:
        """Ask until there is an answer, ever more slowly."""
        pause_s = self._first_retry_s
        while True:
            try:
                return await ask()
            except (MeshError, OSError) as error:  # OSError: a leaf that cannot be written to disk
                log.log(level, "sidecars wait for %s: %s", what, error)
            await asyncio.sleep(pause_s)
            pause_s = min(_LAST_RETRY_S, pause_s * 2)


def _stands_for(service: Service) -> str:
    return service.proxy.destination_service if service.proxy is not None else ""


def _is_of_service(key: object) -> TypeGuard[Topic]:
    return isinstance(key, Topic) and key.kind in ("connect", "service")


def _nothing() -> None:
    """Stands for a listener that is still being set up."""
