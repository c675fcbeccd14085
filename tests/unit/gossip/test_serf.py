"""Members and what they mean to do: intents, farewells, tags, housekeeping."""

import pytest

from mesh_agent.errors import InvalidRequest, NotFound, RemoteProtocolError
from mesh_agent.gossip import (
    GossipConfig,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberReaped,
    MemberStatus,
    MemberUpdated,
    wire,
)
from mesh_agent.gossip import serf_wire as serf
from mesh_agent.gossip.effects import Departed, Exchange
from mesh_agent.gossip.serf import Stage
from tests.unit.gossip.machines import Member, alive

ALIVE, LEAVING, LEFT, FAILED = MemberStatus.ALIVE, MemberStatus.LEAVING, MemberStatus.LEFT, MemberStatus.FAILED


def with_peer(**wanted: object) -> Member:
    """A member that knows `p`."""
    member = Member(**wanted)  # type: ignore[arg-type]
    member.hear(alive("p"))
    member.serf.take()
    member.spread()
    return member


def status(member: Member, name: str = "p") -> MemberStatus | None:
    found = member.serf.member(name)
    return None if found is None else found.status


def fail(member: Member) -> None:
    member.hear(wire.Dead(1, "p", "x"))


@pytest.mark.parametrize(
    ("story", "then"),
    [
        ([], ALIVE),
        ([serf.Leave(9, "p")], LEAVING),
        ([serf.Leave(9, "p"), serf.Join(9, "p")], LEAVING),
        ([serf.Leave(9, "p"), serf.Join(10, "p")], ALIVE),
        ([serf.Join(9, "p"), serf.Leave(9, "p")], ALIVE),
        ([serf.Join(9, "p"), serf.Leave(10, "p")], LEAVING),
        ([wire.Dead(1, "p", "x")], FAILED),
        ([wire.Dead(1, "p", "p")], LEFT),
        ([serf.Leave(9, "p"), wire.Dead(1, "p", "x")], LEFT),
        ([wire.Dead(1, "p", "x"), serf.Leave(9, "p")], LEFT),
        ([wire.Dead(1, "p", "x"), serf.Join(9, "p")], FAILED),
        ([wire.Dead(1, "p", "x"), alive("p", 2)], ALIVE),
        ([serf.Leave(9, "p"), wire.Dead(1, "p", "p"), alive("p", 2)], ALIVE),
        ([serf.Leave(9, "p", True)], LEAVING),
        ([serf.Leave(9, "p", True), wire.Dead(1, "p", "p")], None),
        ([serf.Leave(9, "p", True), serf.Join(10, "p"), wire.Dead(1, "p", "x")], FAILED),
        ([wire.Dead(1, "p", "x"), serf.Leave(9, "p", True)], None),
        ([wire.Dead(1, "p", "p"), serf.Leave(9, "p", True)], None),
        ([wire.Dead(1, "p", "x"), serf.Leave(9, "p"), serf.Leave(9, "p", True)], LEFT),
    ],
)
def test_what_becomes_of_a_member(story: list[object], then: MemberStatus | None) -> None:
    member = with_peer()
    for message in story:
        member.hear(message)  # type: ignore[arg-type]
    assert status(member) is then


@pytest.mark.parametrize(
    ("intents", "then"),
    [
        ([serf.Leave(5, "p")], LEAVING),
        ([serf.Leave(5, "p"), serf.Join(6, "p")], ALIVE),
        ([serf.Join(6, "p"), serf.Leave(5, "p")], ALIVE),
    ],
)
def test_intents_of_an_unknown_member_wait_for_it(intents: list[serf.Leave | serf.Join], then: MemberStatus) -> None:
    member = Member()
    for intent in intents:
        member.hear(intent)
    member.hear(alive("p"))
    assert status(member) is then


def test_an_intent_of_an_unknown_member_is_forgotten_after_a_while() -> None:
    member = Member()
    member.hear(serf.Leave(5, "p"))
    member.pass_time(330.0)
    member.hear(alive("p"))
    assert status(member) is ALIVE


@pytest.mark.parametrize(
    ("intent", "passed_on"),
    [
        (serf.Leave(9, "p"), True),
        (serf.Join(9, "p"), True),
        (serf.Leave(9, "stranger"), True),
        (serf.Leave(0, "p"), False),
    ],
)
def test_news_are_passed_on_once(intent: serf.Leave | serf.Join, passed_on: bool) -> None:
    member = with_peer()
    member.hear(intent)
    assert (intent in member.spread()) is passed_on
    while member.spread():
        pass
    member.hear(intent)
    assert intent not in member.spread()


def test_a_leave_intent_about_ourselves_is_refuted_by_a_newer_join() -> None:
    member = with_peer()
    member.hear(serf.Leave(41, "self"))
    joins = [m for m in member.spread() if isinstance(m, serf.Join)]
    assert joins
    assert joins[0].lamport > 41
    assert status(member, "self") is ALIVE


def test_events_tell_each_change_of_a_member() -> None:
    member = Member()
    said: list[object] = []
    for message in (
        alive("p"),
        alive("p", 2, meta=serf.encode_tags({"a": "b"})),
        wire.Dead(2, "p", "x"),
        serf.Leave(9, "p"),
    ):
        member.hear(message)
        said += member.took(MemberJoined | MemberUpdated | MemberFailed | MemberLeft)  # type: ignore[arg-type]
    assert [type(event) for event in said] == [MemberJoined, MemberUpdated, MemberFailed, MemberLeft]


def test_a_farewell_is_an_intent_then_a_death_by_own_hand_then_silence() -> None:
    member = with_peer()
    member.serf.leave(member.now)
    assert member.serf.stage is Stage.LEAVING
    assert any(isinstance(m, serf.Leave) and m.node == "self" for m in member.spread())
    member.pass_time(12.0)
    assert status(member, "self") is LEFT
    assert member.took(Departed) == [Departed()]
    assert member.serf.stage is Stage.LEFT
    member.serf.leave(member.now)
    assert member.took(Departed) == []


def test_a_lonely_farewell_does_not_take_long() -> None:
    member = Member()
    member.serf.leave(0.0)
    member.pass_time(0.5)
    assert member.took(Departed)


def test_telling_off_an_unknown_member_is_refused() -> None:
    with pytest.raises(NotFound):
        Member().serf.force_leave("nobody", 0.0)


@pytest.mark.parametrize(("prune", "then"), [(False, LEFT), (True, None)])
def test_telling_off_a_failed_member(prune: bool, then: MemberStatus | None) -> None:
    member = with_peer()
    fail(member)
    member.serf.force_leave("p", 0.0, prune=prune)
    assert status(member) is then
    assert any(isinstance(m, serf.Leave) and (m.node, m.prune) == ("p", prune) for m in member.spread())
    member.hear(alive("p", 2))
    assert status(member) is ALIVE


def test_the_failed_and_the_left_are_forgotten_in_the_end() -> None:
    member = with_peer(config=GossipConfig(failed_timeout_s=300.0, tombstone_timeout_s=100.0))
    fail(member)
    member.hear(alive("q", address="10.0.0.3"))
    member.hear(wire.Dead(1, "q", "q"))
    member.pass_time(120.0)
    assert (status(member), status(member, "q")) == (FAILED, None)
    member.pass_time(200.0)
    assert status(member) is None
    assert {event.member.name for event in member.took(MemberReaped)} == {"p", "q"}
    assert status(member, "self") is ALIVE


def test_failed_members_are_looked_for() -> None:
    member = with_peer()
    fail(member)
    member.took(Exchange)
    member.pass_time(31.0)
    assert [effect.to for effect in member.took(Exchange)] == [("10.0.0.2", 7946)]


def test_tags_travel_as_metadata_and_have_a_limit() -> None:
    member = with_peer()
    member.serf.set_tags({"role": "web", "größe": "XL"}, 0.0)
    assert member.serf.local.tags == {"role": "web", "größe": "XL"}
    with pytest.raises(InvalidRequest):
        member.serf.set_tags({"role": "x" * 600}, 0.0)
    assert member.serf.local.tags["role"] == "web"


@pytest.mark.parametrize(
    ("meta", "tags"),
    [(b"", {}), (b"web", {"role": "web"}), (b"\xff", {}), (b"\xff\xc1", {}), (b"\xff\x81\xa1a\xa1b", {"a": "b"})],
)
def test_metadata_that_is_no_tags_does_no_harm(meta: bytes, tags: dict[str, str]) -> None:
    assert serf.decode_tags(meta) == tags


# push/pull


def test_the_state_of_a_push_pull_takes_the_left_first() -> None:
    member = with_peer()
    state = serf.SerfState(50, {"p": 20}, ("p",), 7, ((6, (("deploy", b"v1"),)),), 9)
    member.serf.merge_state(serf.encode(state), 0.0)
    assert status(member) is LEAVING
    assert member.serf.clock.time == 50
    assert member.serf.messenger.events.time == 7
    assert member.serf.messenger.queries.time == 9


def test_who_was_told_off_behind_its_back_objects_when_it_hears_of_it() -> None:
    member = with_peer()
    member.serf.merge_state(serf.encode(serf.SerfState(50, {"self": 40})), 0.0)
    assert any(isinstance(m, serf.Join) and m.node == "self" and m.lamport >= 50 for m in member.spread())
    member.serf.merge_state(serf.encode(serf.SerfState(50, {"self": 1})), 0.0)
    assert status(member, "self") is ALIVE


def test_our_state_comes_back_as_it_is() -> None:
    member = with_peer()
    member.serf.messenger.fire("deploy", b"v1", coalesce=False)
    member.hear(wire.Dead(1, "p", "p"))
    state = serf.decode(member.serf.local_state(join=False))
    assert isinstance(state, serf.SerfState)
    assert state.left == ("p",)
    assert state.events == ((1, (("deploy", b"v1"),)),)
    assert set(state.status_lamports) == {"self", "p"}


def test_what_happened_before_we_joined_is_no_news() -> None:
    member = Member()
    member.serf.join(("10.0.0.2", 7946))
    (exchange,) = member.took(Exchange)
    state = serf.encode(serf.SerfState(5, {}, (), 9, ((8, (("old", b""),)),), 1))
    member.serf.swim.reply(exchange.token, wire.PushPull((), state, False), 0.0)
    assert member.serf.messenger.seen_events() == ()


@pytest.mark.parametrize(
    "broken", [b"\x02\xc0", b"\x03\x80", b"\x02\x81\xa6Events\x05", b"\x02\x81\xabLeftMembers\x05"]
)
def test_a_broken_state_is_junk(broken: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Member().serf.merge_state(broken, 0.0)


@pytest.mark.parametrize("answer", [None, wire.Error("wrong key"), wire.User(b"")])
def test_a_join_that_fails_says_why(answer: wire.StreamMessage | None) -> None:
    member, said = Member(), []
    member.serf.join(("10.0.0.2", 7946), lambda error, now: said.append(error))
    (exchange,) = member.took(Exchange)
    member.serf.swim.reply(exchange.token, answer, 1.0)
    assert len(said) == 1
    assert said[0]
