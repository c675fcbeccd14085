"""The delta ADS state machine, without a socket and without Envoy."""

import pytest

from mesh_agent.xds.naming import CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ROUTES, SECRET
from mesh_agent.xds.snapshot import Resource, Snapshot, Table
from mesh_agent.xds.stream import Rejected, Request, Response, Stream

KINDS = (SECRET, CLUSTER, ENDPOINTS, EXTENSION, LISTENER)


def table(**versions: str) -> Table:
    return Table(Resource(name, version, b"") for name, version in versions.items())


def snapshot(**tables: Table) -> Snapshot:
    kinds = {"secrets": SECRET, "clusters": CLUSTER, "endpoints": ENDPOINTS, "listeners": LISTENER}
    return Snapshot({kinds[name]: each for name, each in tables.items()})


def told(responses: list[Response]) -> list[tuple[str, list[str], list[str]]]:
    return [(each.type_url, [one.name for one in each.resources], list(each.removed)) for each in responses]


def connected(first: Snapshot) -> Stream:
    """A proxy that has asked for everything and has everything of `first`."""
    stream = Stream()
    stream.receive(Request(CLUSTER))
    stream.receive(Request(LISTENER))
    for kind in (ENDPOINTS, SECRET):
        names = tuple(first.table(kind).resources)
        if names:
            stream.receive(Request(kind, subscribe=names))
    stream.due(first)
    return stream


def test_what_is_referred_to_comes_before_what_refers_to_it_and_removals_go_the_other_way() -> None:
    whole = snapshot(
        secrets=table(leaf="1"), clusters=table(api="1"), endpoints=table(api="1"), listeners=table(up="1")
    )
    stream = Stream()
    for request in (Request(LISTENER), Request(ENDPOINTS, ("api",)), Request(SECRET, ("leaf",)), Request(CLUSTER)):
        stream.receive(request)
    assert told(stream.due(whole)) == [
        (SECRET, ["leaf"], []),
        (CLUSTER, ["api"], []),
        (ENDPOINTS, ["api"], []),
        (LISTENER, ["up"], []),
    ]
    assert stream.due(whole) == []
    assert told(stream.due(snapshot(secrets=whole.table(SECRET)))) == [
        (LISTENER, [], ["up"]),
        (ENDPOINTS, [], ["api"]),
        (CLUSTER, [], ["api"]),
    ]


def test_only_what_changed_is_sent() -> None:
    first = snapshot(clusters=table(a="1", b="1"), endpoints=table(a="1", b="1"))
    stream = connected(first)
    second = snapshot(clusters=first.table(CLUSTER), endpoints=table(a="1", b="2"))
    assert told(stream.due(second)) == [(ENDPOINTS, ["b"], [])]


def test_an_empty_wildcard_is_answered_once_so_that_the_proxy_need_not_wait() -> None:
    stream = Stream()
    stream.receive(Request(CLUSTER))
    assert told(stream.due(snapshot())) == [(CLUSTER, [], [])]
    assert stream.due(snapshot()) == []


def test_a_proxy_that_comes_back_is_sent_only_what_it_lacks() -> None:
    stream = Stream()
    stream.receive(Request(CLUSTER, initial_versions=(("same", "1"), ("old", "1"), ("gone", "1"))))
    stream.receive(Request(ENDPOINTS, ("same", "old"), initial_versions=(("same", "1"), ("old", "1"))))
    now = snapshot(clusters=table(same="1", old="1", fresh="1"), endpoints=table(same="1", old="2"))
    assert told(stream.due(now)) == [(CLUSTER, ["fresh"], []), (ENDPOINTS, ["old"], []), (CLUSTER, [], ["gone"])]


def test_nothing_at_all_is_sent_to_a_proxy_that_has_everything() -> None:
    stream = Stream()
    stream.receive(Request(CLUSTER, initial_versions=(("a", "1"),)))
    stream.receive(Request(ENDPOINTS, ("a",), initial_versions=(("a", "1"),)))
    assert stream.due(snapshot(clusters=table(a="1"), endpoints=table(a="1"))) == []


def test_a_changed_cluster_is_followed_by_its_endpoints_even_if_they_did_not_change() -> None:
    first = snapshot(clusters=table(a="1", b="1"), endpoints=table(a="1", b="1"))
    stream = connected(first)
    second = snapshot(clusters=table(a="2", b="1"), endpoints=first.table(ENDPOINTS))
    assert told(stream.due(second)) == [(CLUSTER, ["a"], []), (ENDPOINTS, ["a"], [])]
    assert stream.due(second) == []


def test_a_cluster_that_changed_while_the_proxy_was_away_is_followed_by_its_endpoints_too() -> None:
    now = snapshot(clusters=table(a="2"), endpoints=table(a="1"))
    stream = Stream()
    stream.receive(Request(CLUSTER, initial_versions=(("a", "1"),)))
    assert told(stream.due(now)) == [(CLUSTER, ["a"], [])]
    stream.receive(Request(ENDPOINTS, ("a",), initial_versions=(("a", "1"),)))
    assert told(stream.due(now)) == [(ENDPOINTS, ["a"], [])]


def test_a_name_that_does_not_exist_is_said_not_to_exist_once() -> None:
    stream = Stream()
    stream.receive(Request(ENDPOINTS, ("a",)))
    assert told(stream.due(snapshot())) == [(ENDPOINTS, [], ["a"])]
    assert stream.due(snapshot()) == []
    assert told(stream.due(snapshot(endpoints=table(a="1")))) == [(ENDPOINTS, ["a"], [])]


def test_a_later_subscription_is_answered_although_the_version_was_sent_before() -> None:
    first = snapshot(endpoints=table(a="1"))
    stream = connected(first)
    stream.receive(Request(ENDPOINTS, unsubscribe=("a",)))
    assert stream.due(first) == []
    stream.receive(Request(ENDPOINTS, subscribe=("a",)))
    assert told(stream.due(first)) == [(ENDPOINTS, ["a"], [])]


def test_names_that_nobody_asked_for_are_not_sent() -> None:
    stream = connected(snapshot(endpoints=table(a="1")))
    assert told(stream.due(snapshot(endpoints=table(a="2", b="1")))) == [(ENDPOINTS, ["a"], [])]


def test_an_explicit_wildcard_begins_and_ends() -> None:
    stream = Stream()
    stream.receive(Request(CLUSTER, subscribe=("*",)))
    assert told(stream.due(snapshot(clusters=table(a="1")))) == [(CLUSTER, ["a"], [])]
    stream.receive(Request(CLUSTER, unsubscribe=("*",)))
    assert stream.due(snapshot(clusters=table(a="2"))) == []


def test_a_rejection_names_what_was_rejected_and_the_same_thing_is_not_sent_again() -> None:
    stream = Stream()
    stream.receive(Request(LISTENER))
    (response,) = stream.due(snapshot(listeners=table(bad="1")))
    assert not stream.settled
    rejected = stream.receive(Request(LISTENER, nonce=response.nonce, error="no such filter"))
    assert rejected == Rejected(LISTENER, ("bad",), "no such filter")
    assert stream.settled
    assert stream.due(snapshot(listeners=table(bad="1"))) == []
    assert told(stream.due(snapshot(listeners=table(bad="2")))) == [(LISTENER, ["bad"], [])]


def test_a_stream_is_settled_when_everything_is_acknowledged() -> None:
    stream = Stream()
    stream.receive(Request(CLUSTER))
    stream.receive(Request(LISTENER))
    now = snapshot(clusters=table(a="1"), listeners=table(b="1"))
    assert not stream.has(now)
    responses = stream.due(now)
    assert stream.has(now)
    for response in responses:
        assert not stream.settled
        assert stream.receive(Request(response.type_url, nonce=response.nonce)) is None
    assert stream.settled


@pytest.mark.parametrize("kind", [ROUTES, "type.googleapis.com/unheard.of"])
def test_a_type_that_we_do_not_serve_is_answered_as_empty(kind: str) -> None:
    stream = Stream()
    stream.receive(Request(kind))
    assert told(stream.due(snapshot())) == [(kind, [], [])]
    assert stream.due(snapshot()) == []
