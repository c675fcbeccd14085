"""Replicas: what a subscriber holds of topics that somebody else publishes. Pure; `runner.Subscriber` moves the bytes.

A replica is pending until its first update, then ready. When the stream is lost there are two ways to go on, chosen by who subscribes:
a client agent keeps answering from what it has (its servers may be gone for hours), while a server stops answering for a datacenter that it
cannot reach (an honest error beats an old answer), though the View stays in the hands of those that hold it already: a sidecar keeps its endpoints.
"""

from collections.abc import Callable, Iterable

from mesh_agent.catalog.stream import Event, Failed, Heartbeat, Update
from mesh_agent.catalog.view import View
from mesh_agent.model import Topic

Watcher = Callable[[], None]


class Replica:
    """One topic: its View, whether that View is an answer now, and who wants to know."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.view = View(topic.datacenter)
        self.error: str | None = None
        self.ready = False
        self.used_at = 0.0
        self._watchers: list[Watcher] = []

    @property
    def watched(self) -> bool:
        """Whether anybody listens to it."""
        return bool(self._watchers) or self.view.has_listeners()

    def readable(self) -> View | None:
        """The View if it answers the topic now."""
        return self.view if self.ready and self.error is None else None

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher()` after every change of records, readiness or error; the returned function stops that."""
        self._watchers.append(watcher)

        def stop() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return stop

    def update(self, message: Update) -> None:
        """Take over what the publisher sent."""
        self.error = None
        if message.reset:
            self.view.load(message.index, message.puts)
        else:
            self.view.apply(message.index, message.puts, message.deletes)
        self.ready = True
        self._tell()

    def fail(self, text: str) -> None:
        """The topic cannot be answered until the next update."""
        if self.error != text:
            self.error = text
            self._tell()

    def _tell(self) -> None:
        for watcher in tuple(self._watchers):
            watcher()


class ReplicaSet:
    """Every topic that one subscriber follows."""

    def __init__(self, *, max_topics: int = 4096, idle_after_s: float = 1200.0) -> None:
        self._replicas: dict[Topic, Replica] = {}
        self._max_topics = max_topics
        self._idle_after_s = idle_after_s

    def get(self, topic: Topic, now: float) -> Replica | None:
        """The replica of `topic` if it is followed."""
        replica = self._replicas.get(topic)
        if replica is not None:
            replica.used_at = now
        return replica

    def add(self, topic: Topic, now: float) -> Replica:
        """Follow `topic` from now on."""
        replica = self._replicas.setdefault(topic, Replica(topic))
        replica.used_at = now
        return replica

    def topics(self) -> list[Topic]:
        """What is followed."""
        return list(self._replicas)

    def replicas(self) -> Iterable[Replica]:
        """Every replica."""
        return self._replicas.values()

    def receive(self, event: Event) -> None:
        """Apply one message of the publisher; what nobody asked for is ignored (an unsubscription may cross an update)."""
        if isinstance(event, Heartbeat):
            return
        replica = self._replicas.get(event.topic)
        if replica is None:
            return
        if isinstance(event, Failed):
            replica.fail(event.text)
        else:
            replica.update(event)

    def fail_all(self, text: str) -> None:
        """The publisher is gone and its topics must not be answered from memory."""
        for replica in tuple(self._replicas.values()):
            replica.fail(text)

    def evict(self, now: float) -> list[Topic]:
        """Stop following what nobody used for a long time, or the longest unused when there are too many; returns those topics."""
        free = sorted((r for r in self._replicas.values() if not r.watched), key=lambda replica: replica.used_at)
        surplus = max(0, len(self._replicas) - self._max_topics)
        gone = [r.topic for at, r in enumerate(free) if at < surplus or now - r.used_at > self._idle_after_s]
        for topic in gone:
            del self._replicas[topic]
        return gone
