"""User events, queries, answers and the orders of a keyring."""

import time

import pytest

from mesh_agent.errors import InvalidRequest
from mesh_agent.gossip import Keyring, Query, UserEvent, fields, key_queries, query_filters
from mesh_agent.gossip import serf_wire as serf
from mesh_agent.gossip.effects import KeyringChanged, Noticed, QueryResponse
from tests.unit.gossip.machines import Member, alive

ASKER = ("10.0.0.9", 7946)
OLD, NEW = b"o" * 16, b"n" * 16


def query(name: str = "load", *, lamport: int = 5, number: int = 1, payload: bytes = b"", flags: int = 0, relay: int = 0,
          filters: tuple[bytes, ...] = (), timeout_s: float = 10.0) -> serf.QueryMessage:  # fmt: skip
    return serf.QueryMessage(lamport, number, *ASKER, "asker", name, payload, timeout_s, flags, relay, filters)


# events


def test_an_event_is_told_once_and_passed_on_once() -> None:
    member = Member()
    event = serf.EventMessage(7, "deploy", b"v1", True)
    member.hear(event)
    member.hear(event)
    assert member.took(UserEvent) == [UserEvent(7, "deploy", b"v1", True)]
    assert member.spread().count(event) == 1
    assert member.serf.messenger.events.time == 8


def test_events_of_one_lamport_time_are_told_apart_by_name_and_payload() -> None:
    member = Member()
    for name, payload in (("a", b"1"), ("a", b"2"), ("b", b"1"), ("a", b"1")):
        member.hear(serf.EventMessage(7, name, payload))
    assert len(member.took(UserEvent)) == 3


def test_an_event_that_is_older_than_the_ring_is_dropped() -> None:
    member = Member()
    member.hear(serf.EventMessage(1000, "new", b""))
    member.hear(serf.EventMessage(1001 - 513, "too old", b""))
    member.hear(serf.EventMessage(1001 - 512 + 1, "just in time", b""))
    assert [event.name for event in member.took(UserEvent)] == ["new", "just in time"]


def test_an_event_has_a_limit_and_ours_reaches_ourselves() -> None:
    member = Member()
    with pytest.raises(InvalidRequest):
        member.serf.messenger.fire("n" * 100, b"x" * 413, coalesce=False)
    member.serf.messenger.fire("n" * 100, b"x" * 412, coalesce=False)
    (event,) = member.took(UserEvent)
    assert event.lamport == 1
    member.serf.messenger.fire("next", b"", coalesce=False)
    (event,) = member.took(UserEvent)
    assert event.lamport == 2, "one Lamport time for each event, as captured from real agents"


def test_an_event_that_fits_into_no_packet_is_told_but_not_kept_for_ever() -> None:
    member = Member()
    member.hear(serf.EventMessage(7, "big", b"x" * 5000))
    effects = member.serf.take()
    assert any(isinstance(e, UserEvent) for e in effects)
    assert any(isinstance(e, Noticed) and "too large" in e.text for e in effects)
    assert len(member.serf.messenger.event_queue) == 0


# queries


def test_a_query_is_asked_of_us_once_and_passed_on() -> None:
    member = Member()
    member.hear(query())
    member.hear(query())
    (asked,) = member.took(Query)
    assert (asked.name, asked.source, asked.reply_to, asked.deadline) == ("load", "asker", ASKER, 10.0)
    assert member.spread().count(query()) == 1


def test_a_query_that_is_not_to_be_passed_on_is_not() -> None:
    member = Member()
    member.hear(query(flags=serf.FLAG_NO_BROADCAST))
    assert member.took(Query)
    assert query(flags=serf.FLAG_NO_BROADCAST) not in member.spread()


def test_an_answer_goes_straight_to_the_asker_and_so_does_an_ack() -> None:
    member = Member()
    member.hear(query(flags=serf.FLAG_ACK))
    assert member.told() == [(ASKER, serf.ResponseMessage(5, 1, "self", b"", serf.FLAG_ACK))]
    member.hear(query(number=2))
    (asked,) = member.took(Query)
    member.serf.messenger.respond(asked, b"0.7", 1.0)
    assert member.told() == [(ASKER, serf.ResponseMessage(5, 2, "self", b"0.7"))]


def test_too_late_or_too_long_an_answer_is_refused() -> None:
    member = Member()
    member.hear(query())
    (asked,) = member.took(Query)
    with pytest.raises(InvalidRequest):
        member.serf.messenger.respond(asked, b"x", 10.1)
    with pytest.raises(InvalidRequest):
        member.serf.messenger.respond(asked, b"x" * 1100, 1.0)


def test_relays_carry_copies_of_the_answer() -> None:
    member = Member()
    for number in range(4):
        member.hear(alive(f"p{number}", address=f"10.0.1.{number}"))
    member.hear(alive("old", address="10.0.2.1", versions=(1, 5, 2, 2, 4, 4)))
    member.hear(query(relay=2))
    (asked,) = member.took(Query)
    member.serf.messenger.respond(asked, b"yes", 1.0)
    told = member.told()
    answer = serf.ResponseMessage(5, 1, "self", b"yes")
    assert (ASKER, answer) in told
    relays = [(to, m) for to, m in told if isinstance(m, serf.Relay)]
    assert len(relays) == 2
    assert all((m.address, m.port, serf.decode(m.message)) == (*ASKER, answer) for _, m in relays)
    assert all(to[0].startswith("10.0.1.") for to, _ in relays), "not through those who do not know relays"


def test_a_relay_passes_the_message_on_as_it_is() -> None:
    member = Member()
    answer = serf.encode(serf.ResponseMessage(5, 1, "far", b"yes"))
    member.hear(serf.Relay(*ASKER, "asker", answer))
    assert member.told() == [(ASKER, serf.decode(answer))]


def test_answers_are_counted_once_whichever_way_they_came_and_not_after_the_end() -> None:
    member = Member()
    lamport, number = member.serf.messenger.ask("load", b"", 0.0, timeout_s=5.0)
    answer = serf.ResponseMessage(lamport, number, "p", b"1")
    for message in (
        answer,
        answer,
        serf.ResponseMessage(lamport, number, "q", b"2"),
        serf.ResponseMessage(lamport, 0, "r"),
    ):
        member.hear(message)
    assert [(r.node, r.payload) for r in member.took(QueryResponse)] == [("p", b"1"), ("q", b"2")]
    member.pass_time(6.0)
    member.hear(serf.ResponseMessage(lamport, number, "late", b"3"))
    assert member.took(QueryResponse) == []


@pytest.mark.parametrize(
    ("filters", "matches"),
    [
        ((), True),
        ((query_filters.node_filter(["self", "other"]),), True),
        ((query_filters.node_filter(["other"]),), False),
        ((query_filters.tag_filter("role", "no"),), True),
        ((query_filters.tag_filter("role", "^n.*e$"),), True),
        ((query_filters.tag_filter("role", "^(web|node)$"),), True),
        ((query_filters.tag_filter("role", "^de"),), False),
        ((query_filters.tag_filter("absent", "x"),), False),
        ((query_filters.node_filter(["self"]), query_filters.tag_filter("role", "x")), False),
        ((query_filters.tag_filter("role", "("),), False),
        ((b"\x00junk",), False),
        ((b"\x07",), False),
        ((b"",), False),
    ],
)
def test_only_those_who_match_every_filter_answer(filters: tuple[bytes, ...], matches: bool) -> None:
    member = Member()
    member.hear(query(filters=filters))
    assert bool(member.took(Query)) is matches


@pytest.mark.parametrize("evil", ["(a+)+$", "(a|a)*$", "a*a*a*a*a*a*b", "(?:a?){50}b", "|".join(["(a|a)(a|a)"] * 20)])
def test_an_expression_that_could_take_for_ever_matches_nobody(evil: str) -> None:
    began = time.perf_counter()
    assert not query_filters.matches((query_filters.tag_filter("t", evil),), "self", {"t": "a" * 400})
    assert time.perf_counter() - began < 2.0


# what the pool itself asks


def key_query(operation: str, key: bytes = b"", number: int = 1) -> serf.QueryMessage:
    payload = key_queries.encode_key_request(key) if key else b""
    return query(f"_serf_{operation}", payload=payload, number=number)


def key_answer(member: Member) -> key_queries.KeyResponse:
    ((_, response),) = member.told()
    assert isinstance(response, serf.ResponseMessage)
    return key_queries.decode_key_response(response.payload)


def test_a_changed_keyring_is_answered_for_once_it_is_on_disk() -> None:
    ring = Keyring([OLD])
    member = Member(keyring=ring)
    for number, operation in enumerate(("install-key", "use-key")):
        member.hear(key_query(operation, NEW, number))
        (changed,) = member.took(KeyringChanged)
        member.serf.messenger.keyring_kept(changed.order, None, 1.0)
        assert key_answer(member).result
    assert ring.keys() == Keyring([NEW, OLD]).keys()


def test_a_full_disk_makes_the_key_operation_fail_visibly() -> None:
    member = Member(keyring=Keyring([OLD]))
    member.hear(key_query("install-key", NEW))
    (changed,) = member.took(KeyringChanged)
    member.serf.messenger.keyring_kept(changed.order, "No space left on device", 1.0)
    answer = key_answer(member)
    assert not answer.result
    assert "No space left" in answer.message


@pytest.mark.parametrize(
    ("operation", "key"),
    [("use-key", NEW), ("remove-key", OLD), ("install-key", b"short"), ("install-key", b"")],
)
def test_an_order_that_cannot_be_followed_says_why(operation: str, key: bytes) -> None:
    member = Member(keyring=Keyring([OLD]))
    member.hear(key_query(operation, key))
    answer = key_answer(member)
    assert not answer.result
    assert answer.message


def test_a_pool_without_encryption_has_no_keys() -> None:
    member = Member()
    member.hear(key_query("list-keys"))
    answer = key_answer(member)
    assert not answer.result
    assert "not encrypted" in answer.message


@pytest.mark.parametrize("count", [1, 2, 40])
def test_keys_are_listed_as_far_as_they_fit(count: int) -> None:
    ring = Keyring([bytes([number]) * 32 for number in range(count)])
    member = Member(keyring=ring)
    member.hear(key_query("list-keys"))
    answer = key_answer(member)
    assert answer.result
    assert answer.primary == ring.primary
    assert list(answer.keys) == ring.keys()[: len(answer.keys)]
    assert len(answer.keys) == count if count < 10 else "showing first" in answer.message


def test_whose_name_it_is_can_be_asked() -> None:
    member = Member()
    member.hear(alive("p"))
    member.took(Query)
    for number, (name, found) in enumerate((("p", True), ("stranger", False))):
        member.hear(query("_serf_conflict", payload=name.encode(), number=number))
        ((_, response),) = member.told()
        assert isinstance(response, serf.ResponseMessage)
        assert response.payload[0] == serf.CONFLICT_RESPONSE
        assert (fields.unpack(response.payload[1:])["Port"] == 7946) if found else response.payload[1] == 0xC0
    member.hear(query("_serf_conflict", payload=b"self", number=9))
    assert member.told() == [], "the claimed one itself has no vote"


def test_a_query_without_an_address_is_not_answered_and_does_no_harm() -> None:
    member = Member(keyring=Keyring([OLD]))
    nowhere = serf.QueryMessage(5, 1, "", 0, "asker", "_serf_list-keys", b"", 10.0, serf.FLAG_ACK)
    member.hear(nowhere)
    assert member.told() == []


def test_an_unknown_internal_query_is_ignored() -> None:
    member = Member()
    member.hear(query("_serf_something-new"))
    assert member.took(Query) == []
