"""The subscription stream end to end without sockets: a full View published to sessions, and replicas that follow it."""

import msgspec
import pytest

from mesh_agent.catalog import keys, stream
from mesh_agent.catalog.publisher import MAX_BACKLOG, Publisher, Session
from mesh_agent.catalog.replica import Replica, ReplicaSet
from mesh_agent.catalog.view import View
from mesh_agent.errors import RemoteProtocolError
from mesh_agent.model import Check, Node, Record, Service, Status, Topic

WEB = Topic("dc1", "service", "web")


def record(key: str, value: object, revision: int) -> Record:
    return Record(key, msgspec.json.encode(value), revision, revision)


def web(node: str, revision: int, status: Status = Status.PASSING) -> list[Record]:
    return [
        record(keys.node(node), Node(name=node, address="10.0.0.1"), revision),
        record(keys.service(node, "web"), Service(id="web", name="web", node=node, port=80), revision),
        record(keys.check(node, "c"), Check(id="c", node=node, service_id="web", status=status), revision),
    ]


class FullSource:
    """A server's own View, or an error in its place."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.error: str | None = None

    def state(self, topic: Topic) -> tuple[View | None, str | None]:
        return (None, self.error) if self.error else (self.view, None)

    def follow(self, topic: Topic, on_change):  # type: ignore[no-untyped-def]
        return self.view.listen(topic, lambda _: on_change())


class Wire:
    """One subscriber connected to one publisher; `deliver` moves every waiting frame."""

    def __init__(self, view: View) -> None:
        self.later: list = []  # type: ignore[type-arg]
        self.source = FullSource(view)
        self.publisher = Publisher(self.source, self.later.append)
        self.session = Session(lambda: None)
        self.replicas = ReplicaSet()

    def want(self, topic: Topic) -> Replica:
        replica = self.replicas.add(topic, now=0.0)
        self.publisher.subscribe(self.session, topic)
        self.deliver()
        return replica

    def deliver(self) -> int:
        for call in self.later:
            call()
        self.later.clear()
        frames = list(self.session.outbox)
        self.session.outbox.clear()
        for frame in frames:
            self.replicas.receive(stream.decode_event(frame))
        return len(frames)


def test_a_replica_answers_as_the_full_view_does() -> None:
    full = View("dc1")
    full.load(3, web("n1", 2) + web("n2", 3))
    wire = Wire(full)
    replica = wire.want(WEB)
    view = replica.readable()
    assert view is not None
    assert view.instances("web") == full.instances("web")
    assert view.topic_index(WEB) == full.topic_index(WEB)


def test_a_change_is_sent_once_per_burst_and_only_what_changed() -> None:
    full = View("dc1")
    full.load(3, web("n1", 2) + web("n2", 3))
    wire = Wire(full)
    replica = wire.want(WEB)
    full.apply(4, [web("n1", 4, Status.CRITICAL)[2]], [])
    full.apply(5, [web("n1", 5, Status.WARNING)[2]], [])
    assert wire.deliver() == 1
    view = replica.readable()
    assert view is not None
    assert view.instances("web")[0].status is Status.WARNING
    assert view.topic_index(WEB) == 5


def test_records_that_leave_a_topic_are_deleted_from_the_replica() -> None:
    full = View("dc1")
    full.load(3, web("n1", 2) + web("n2", 3))
    wire = Wire(full)
    replica = wire.want(WEB)
    full.apply(4, [], [keys.service("n1", "web"), keys.check("n1", "c")])
    wire.deliver()
    assert [instance.node.name for instance in replica.view.instances("web")] == ["n2"]
    assert replica.view.node("n1") is None


def test_a_topic_that_cannot_be_answered_fails_and_recovers() -> None:
    full = View("dc1")
    full.load(3, web("n1", 2))
    wire = Wire(full)
    replica = wire.want(WEB)
    wire.source.error = "cut off"
    full.apply(4, [web("n1", 4)[2]], [])
    wire.deliver()
    assert replica.readable() is None
    assert replica.error == "cut off"
    assert replica.view.instances("web"), "who holds the View keeps its last known endpoints"
    wire.source.error = None
    full.apply(5, [web("n1", 5)[2]], [])
    wire.deliver()
    assert replica.readable() is not None


def test_a_slow_session_is_brought_up_to_date_with_one_snapshot() -> None:
    full = View("dc1")
    full.load(3, web("n1", 2))
    wire = Wire(full)
    replica = wire.want(WEB)
    for revision in range(4, 4 + MAX_BACKLOG + 10):
        full.apply(revision, [web("n1", revision, Status.WARNING)[2]], [])
        for call in wire.later:
            call()
        wire.later.clear()
    assert wire.session.behind
    assert not wire.session.outbox
    wire.publisher.resync(wire.session)
    assert wire.deliver() == 1
    assert replica.view.instances("web") == full.instances("web")


def test_an_unused_topic_is_given_up_and_a_watched_one_is_kept() -> None:
    replicas = ReplicaSet(idle_after_s=10.0)
    kept = replicas.add(WEB, now=0.0)
    kept.watch(lambda: None)
    replicas.add(Topic("dc1", "service", "other"), now=0.0)
    assert replicas.evict(now=11.0) == [Topic("dc1", "service", "other")]
    assert replicas.topics() == [WEB]


def test_a_publisher_that_began_anew_resets_the_index() -> None:
    view = View("dc1")
    view.load(100, web("n1", 90))
    view.load(3, web("n1", 3, Status.WARNING))
    assert view.index == 3
    assert view.topic_index(WEB) == 3


@pytest.mark.parametrize("junk", [b"", b"\xc1", b"\x93\x01\x02\x03", b"{}", b"\xff" * 40])
def test_junk_on_the_stream_is_the_peers_fault(junk: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        stream.decode_event(junk)
    with pytest.raises(RemoteProtocolError):
        stream.decode_request(junk)
