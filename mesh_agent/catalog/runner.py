"""Shells of the catalog: feed a View from the store's watch, follow topics over a stream, and the one reader that hides which of both it is."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

from mesh_agent.catalog import stream
from mesh_agent.catalog.publisher import Publisher, Session, Stop
from mesh_agent.catalog.replica import Replica, ReplicaSet
from mesh_agent.catalog.view import View
from mesh_agent.clock import Clock
from mesh_agent.errors import (
    MeshError,
    NoPathToDatacenter,
    NoServers,
    RemoteProtocolError,
    StoreConflict,
    StoreUnavailable,
    Unreachable,
)
from mesh_agent.model import Topic
from mesh_agent.store import Store

log = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.2
_LAST_RETRY_S = 5.0
_SWEEP_S = 60.0


class FrameStream(Protocol):
    """A full-duplex stream of frames (`http.frames`)."""

    async def send(self, payload: bytes) -> None:
        """Send one frame; waits while the peer is slow."""
        ...

    async def receive(self) -> bytes | None:
        """The next frame, or None at the end."""
        ...

    def close(self) -> None:
        """End it."""
        ...


async def feed(view: View, store: Store, loaded: asyncio.Event) -> None:
    """Keep `view` equal to the store for ever; sets `loaded` once it is. Starts over when the watch falls out of the log."""
    while True:
        try:
            snapshot = await store.scan("")
            view.load(
                max(1, snapshot.revision), [record for record in snapshot.records if not record.key.startswith("ca/")]
            )
            loaded.set()
            async for commit in store.watch("", snapshot.revision):
                puts = [record for record in commit.puts if not record.key.startswith("ca/")]
                view.apply(commit.revision, puts, commit.deletes)
            return
        except StoreConflict:
            log.info("the catalog's watch fell behind; reading the store anew")
        except StoreUnavailable as error:
            log.warning("the store cannot be reached, the catalog stands still: %s", error)
            await asyncio.sleep(1.0)


class Subscriber:
    """Follows topics of one publisher (the own servers, or another datacenter's) over one stream that it keeps alive."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], Awaitable[FrameStream]],
        *,
        clock: Clock,
        rng: random.Random,
        silence_s: float,
        keep_when_lost: bool,
    ) -> None:
        self.name = name
        self.replicas = ReplicaSet()
        self.connected = False
        self._connect = connect
        self._clock = clock
        self._rng = rng
        self._silence_s = silence_s
        self._keep_when_lost = keep_when_lost
        self._stream: FrameStream | None = None
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue(maxsize=16384)
        self._reason: str | None = None
        self._kick = asyncio.Event()
        self._connection_watchers: list[Callable[[bool], None]] = []

    @property
    def reason(self) -> str | None:
        """Why there is no stream; None while there is one or none was tried yet."""
        return self._reason

    def on_connection(self, watcher: Callable[[bool], None]) -> None:
        """Call `watcher(connected)` when the stream comes or goes."""
        self._connection_watchers.append(watcher)

    def kick(self) -> None:
        """Try to connect now instead of waiting for the next retry."""
        self._kick.set()

    def lookup(self, topic: Topic) -> Replica | None:
        """The replica of `topic` if it is followed already."""
        return self.replicas.get(topic, self._clock.now())

    def want(self, topic: Topic) -> Replica:
        """Follow `topic`."""
        replica = self.lookup(topic)
        if replica is None:
            replica = self.replicas.add(topic, self._clock.now())
            if not self.connected and self._reason is not None and not self._keep_when_lost:
                replica.fail(self._reason)
            elif self.connected:
                self._say(stream.Subscribe(topic))
        return replica

    async def run(self) -> None:
        """Connect, follow, and connect again, for ever."""
        wait_s = _FIRST_RETRY_S
        while True:
            try:
                opened = await self._connect()
            except MeshError as error:
                self._lost(str(error))
            else:
                wait_s = _FIRST_RETRY_S
                self._lost(await self._follow(opened))
            self._kick.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s * (0.5 + self._rng.random())):
                    await self._kick.wait()
            wait_s = min(_LAST_RETRY_S, wait_s * 2)

    async def _follow(self, opened: FrameStream) -> str:
        self._stream = opened
        self._outbox = asyncio.Queue(maxsize=16384)
        self.connected, self._reason = True, None
        for topic in self.replicas.topics():
            self._say(stream.Subscribe(topic))
        self._tell_connection()
        sender = asyncio.ensure_future(self._send(opened))
        try:
            return await self._receive(opened)
        finally:
            self.connected = False
            sender.cancel()
            opened.close()
            await asyncio.gather(sender, return_exceptions=True)

    async def _receive(self, opened: FrameStream) -> str:
        swept_at = self._clock.now()
        while True:
            try:
                async with asyncio.timeout(self._silence_s):
                    payload = await opened.receive()
            except TimeoutError:
                return f"{self.name} was silent for {self._silence_s:g} s"
            except Unreachable as error:
                return str(error)
            if payload is None:
                return f"{self.name} closed the stream"
            try:
                self.replicas.receive(stream.decode_event(payload))
            except RemoteProtocolError as error:
                return f"{self.name}: {error}"
            if self._clock.now() - swept_at > _SWEEP_S:
                swept_at = self._clock.now()
                for topic in self.replicas.evict(swept_at):
                    self._say(stream.Unsubscribe(topic))

    async def _send(self, opened: FrameStream) -> None:
        with contextlib.suppress(Unreachable, ConnectionError):
            while True:
                await opened.send(await self._outbox.get())

    def _say(self, request: stream.Request) -> None:
        try:
            self._outbox.put_nowait(stream.encode(request))
        except asyncio.QueueFull:  # the stream is stuck: end it, the next one starts from the list of topics
            if self._stream is not None:
                self._stream.close()

    def _lost(self, reason: str) -> None:
        if self._reason is None:
            log.warning("no stream from %s: %s", self.name, reason)
        self.connected, self._stream, self._reason = False, None, reason
        for replica in tuple(self.replicas.replicas()):
            if not self._keep_when_lost or not replica.ready:
                replica.fail(reason)
        self._tell_connection()

    def _tell_connection(self) -> None:
        for watcher in tuple(self._connection_watchers):
            watcher(self.connected)


class Catalog:
    """The `CatalogReader` of an agent: a full View of the own datacenter on a server, replicas for everything else."""

    def __init__(
        self,
        datacenter: str,
        full: View | None,
        subscriber_for: Callable[[str], Subscriber | None],
        datacenters: Callable[[], list[str]],
        known_leader: Callable[[], bool],
    ) -> None:
        self.datacenter = datacenter
        self._full = full
        self._subscriber_for = subscriber_for
        self._datacenters = datacenters
        self._known_leader = known_leader

    def datacenters(self) -> list[str]:
        """Known datacenters, the own one first."""
        return self._datacenters()

    def known_leader(self) -> bool:
        """Whether a server of the own datacenter can be reached right now."""
        return self._known_leader()

    def view(self, topic: Topic) -> View | None:
        """A View that answers `topic` now, or None."""
        if self._full is not None and topic.datacenter == self.datacenter:
            return self._full
        subscriber = self._subscriber_for(topic.datacenter)
        replica = None if subscriber is None else subscriber.lookup(_folded(topic))
        return None if replica is None else replica.readable()

    async def ensure(self, topic: Topic, timeout_s: float = 2.0) -> View:
        """Wait until `topic` can be answered; NoPathToDatacenter or NoServers when it cannot."""
        if self._full is not None and topic.datacenter == self.datacenter:
            return self._full
        replica = self.replica(topic)
        settled = asyncio.Event()
        stop = replica.watch(settled.set)
        try:
            async with asyncio.timeout(timeout_s):
                while replica.readable() is None and replica.error is None:
                    settled.clear()
                    await settled.wait()
        except TimeoutError:
            raise self._unreachable(topic, f"no answer within {timeout_s:g} s") from None
        finally:
            stop()
        found = replica.readable()
        if found is None:
            raise self._unreachable(topic, replica.error or "unknown")
        return found

    def replica(self, topic: Topic) -> Replica:
        """The replica of a topic that is not in the full View; follows it from now on. NoPathToDatacenter for an unknown datacenter."""
        subscriber = self._subscriber_for(topic.datacenter)
        if subscriber is None:
            raise NoPathToDatacenter(f"No path to datacenter {topic.datacenter!r}: no server of it is known here")
        return subscriber.want(_folded(topic))

    def _unreachable(self, topic: Topic, reason: str) -> Unreachable:
        if topic.datacenter == self.datacenter:
            return NoServers(f"no server of datacenter {self.datacenter!r} can be reached: {reason}")
        return NoPathToDatacenter(f"No path to datacenter {topic.datacenter!r}: {reason}")

    # `publisher.Source`: what sessions of this agent's own subscribers are fed from

    def state(self, topic: Topic) -> tuple[View | None, str | None]:
        """(View, None), (None, error text), or (None, None) while not known."""
        if self._full is not None and topic.datacenter == self.datacenter:
            return self._full, None
        try:
            replica = self.replica(topic)
        except NoPathToDatacenter as error:
            return None, str(error)
        return replica.readable(), replica.error

    def follow(self, topic: Topic, on_change: Callable[[], None]) -> Stop:
        """Call `on_change()` after each change of the topic."""
        if self._full is not None and topic.datacenter == self.datacenter:
            return self._full.listen(topic, lambda _: on_change())
        try:
            return self.replica(topic).watch(on_change)
        except NoPathToDatacenter:
            return lambda: None


async def publish(publisher: Publisher, opened: FrameStream, heartbeat_s: float) -> None:
    """Serve one subscriber until its stream ends."""
    ready = asyncio.Event()
    session = Session(ready.set)
    sender = asyncio.ensure_future(_drain(publisher, session, ready, opened, heartbeat_s))
    try:
        while (payload := await opened.receive()) is not None:
            request = stream.decode_request(payload)
            if isinstance(request, stream.Subscribe):
                publisher.subscribe(session, request.topic)
            else:
                publisher.unsubscribe(session, request.topic)
    except (RemoteProtocolError, Unreachable) as error:
        log.info("a subscription ended: %s", error)
    finally:
        publisher.close(session)
        sender.cancel()
        opened.close()
        await asyncio.gather(sender, return_exceptions=True)


async def _drain(
    publisher: Publisher, session: Session, ready: asyncio.Event, opened: FrameStream, heartbeat_s: float
) -> None:
    with contextlib.suppress(Unreachable, ConnectionError):
        while True:
            try:
                async with asyncio.timeout(heartbeat_s):
                    await ready.wait()
            except TimeoutError:
                await opened.send(stream.HEARTBEAT)
                continue
            ready.clear()
            while session.outbox:
                await opened.send(session.outbox.popleft())
            if session.behind:
                publisher.resync(session)


def _folded(topic: Topic) -> Topic:
    return Topic(topic.datacenter, topic.kind, topic.name.lower())
