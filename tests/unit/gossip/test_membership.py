"""What a node believes of another one, and when it changes its mind."""

import math

import pytest

from mesh_agent.gossip import wire
from mesh_agent.gossip.effects import Noticed
from mesh_agent.gossip.node import State
from tests.unit.gossip.machines import Bench, alive

ALIVE, SUSPECT, DEAD, LEFT = State.ALIVE, State.SUSPECT, State.DEAD, State.LEFT


@pytest.mark.parametrize(
    ("known", "heard", "then"),
    [
        # alive wins only with a strictly larger incarnation
        ((ALIVE, 5), alive("p", 5, meta=b"other"), (ALIVE, 5)),
        ((ALIVE, 5), alive("p", 6), (ALIVE, 6)),
        ((SUSPECT, 5), alive("p", 5), (SUSPECT, 5)),
        ((SUSPECT, 5), alive("p", 6), (ALIVE, 6)),
        ((DEAD, 5), alive("p", 5), (DEAD, 5)),
        ((DEAD, 5), alive("p", 6), (ALIVE, 6)),
        ((LEFT, 5), alive("p", 5), (LEFT, 5)),
        ((LEFT, 5), alive("p", 6), (ALIVE, 6)),
        # suspect wins over alive with an equal or larger one
        ((ALIVE, 5), wire.Suspect(4, "p", "x"), (ALIVE, 5)),
        ((ALIVE, 5), wire.Suspect(5, "p", "x"), (SUSPECT, 5)),
        ((ALIVE, 5), wire.Suspect(7, "p", "x"), (SUSPECT, 7)),
        ((DEAD, 5), wire.Suspect(7, "p", "x"), (DEAD, 5)),
        ((LEFT, 5), wire.Suspect(7, "p", "x"), (LEFT, 5)),
        # dead wins over both
        ((ALIVE, 5), wire.Dead(4, "p", "x"), (ALIVE, 5)),
        ((ALIVE, 5), wire.Dead(5, "p", "x"), (DEAD, 5)),
        ((SUSPECT, 5), wire.Dead(5, "p", "x"), (DEAD, 5)),
        ((SUSPECT, 5), wire.Dead(4, "p", "x"), (SUSPECT, 5)),
        ((ALIVE, 5), wire.Dead(5, "p", "p"), (LEFT, 5)),
        # gone is gone: how, was said first
        ((DEAD, 5), wire.Dead(5, "p", "p"), (DEAD, 5)),
        ((LEFT, 5), wire.Dead(9, "p", "x"), (LEFT, 5)),
    ],
)
def test_which_news_of_another_node_wins(
    known: tuple[State, int], heard: wire.Message, then: tuple[State, int]
) -> None:
    bench = Bench()
    state, incarnation = known
    bench.hear(alive("p", incarnation))
    if state is SUSPECT:
        bench.hear(wire.Suspect(incarnation, "p", "w"))
    elif state is DEAD:
        bench.hear(wire.Dead(incarnation, "p", "w"))
    elif state is LEFT:
        bench.hear(wire.Dead(incarnation, "p", "p"))
    assert bench.state("p") == known
    bench.hear(heard)
    assert bench.state("p") == then


@pytest.mark.parametrize(
    ("accusation", "incarnation"),
    [
        (wire.Suspect(1, "self", "x"), 2),
        (wire.Suspect(9, "self", "x"), 10),
        (wire.Suspect(0, "self", "x"), 1),
        (wire.Dead(4, "self", "x"), 5),
        (alive("self", 3, address="10.0.0.1"), 4),
        (alive("self", 1, address="10.0.0.1", meta=b"not mine"), 2),
        (alive("self", 1, address="10.0.0.1"), 1),
        (alive("self", 0, address="10.0.0.1", meta=b"not mine"), 1),
        (wire.Suspect(0xFFFFFFFF, "self", "x"), 0xFFFFFFFF),
    ],
)
def test_a_node_outbids_what_is_said_of_itself(accusation: wire.Message, incarnation: int) -> None:
    bench = Bench(peers=1)
    bench.hear(accusation)
    assert bench.state("self") == (ALIVE, incarnation)
    refuted = incarnation > 1
    assert bench.swim.awareness.score == (1 if refuted else 0), "having to refute is a sign of bad health"
    bench.pass_time(1.0)
    said = [m.incarnation for _, m in bench.sent(wire.Alive) if m.node == "self"]
    assert not refuted or incarnation in said


def test_who_is_leaving_does_not_object_to_its_own_death() -> None:
    bench = Bench(peers=1)
    bench.swim.membership.leave(0.0)
    bench.hear(wire.Suspect(5, "self", "x"))
    bench.hear(alive("self", 9, address="10.0.0.1"))
    assert bench.state("self") == (LEFT, 1)


@pytest.mark.parametrize(
    "strange",
    [
        alive("p", versions=(1, 5, 2, 2, 5)),
        alive("p", versions=(0, 5, 2, 2, 5, 4)),
        alive("p", versions=(1, 0, 2, 2, 5, 4)),
        alive("p", versions=(5, 1, 2, 2, 5, 4)),
        alive("p", address=""),
        alive("p", port=0),
        alive("p", meta=b"x" * 513),
        alive(""),
        alive("p" * 256),
    ],
)
def test_who_cannot_be_a_member_is_ignored(strange: wire.Alive) -> None:
    bench = Bench()
    bench.hear(strange)
    assert set(bench.swim.nodes) == {"self"}


def test_an_alive_message_of_incarnation_zero_is_passed_on_once() -> None:
    bench = Bench(peers=3)
    bench.hear(alive("z", 0, address="10.0.7.1"))
    bench.pass_time(30.0)
    bench.take()
    bench.hear(alive("z", 0, address="10.0.7.1"))
    bench.pass_time(2.0)
    assert not bench.sent(wire.Alive), "it would be gossiped for ever"


def test_the_layer_above_hears_of_each_change_once() -> None:
    bench = Bench()
    for message in (
        alive("p", 1), alive("p", 1), alive("p", 2, meta=b"new"), wire.Suspect(2, "p", "x"), alive("p", 3, meta=b"new"),
        wire.Dead(3, "p", "x"), wire.Dead(3, "p", "y"), alive("p", 4, meta=b"new"), wire.Dead(4, "p", "p"),
    ):  # fmt: skip
        bench.hear(message)
    assert bench.ear.said == [
        ("joined", "self"), ("joined", "p"), ("updated", "p"), ("dead", "p"), ("joined", "p"), ("left", "p"),
    ]  # fmt: skip


# addresses


@pytest.mark.parametrize(
    ("state", "gone_for_s", "moves"),
    [(ALIVE, 0.0, False), (SUSPECT, 0.0, False), (LEFT, 0.0, True), (DEAD, 29.0, False), (DEAD, 31.0, True)],
)
def test_a_name_moves_to_another_address_only_when_the_old_one_is_given_up(
    state: State, gone_for_s: float, moves: bool
) -> None:
    bench = Bench()
    bench.hear(alive("p", 7))
    if state is SUSPECT:
        bench.hear(wire.Suspect(7, "p", "x"))
    elif state in (DEAD, LEFT):
        bench.hear(wire.Dead(7, "p", "p" if state is LEFT else "x"))
    bench.pass_time(gone_for_s)
    bench.take()
    bench.hear(alive("p", 8, address="10.0.0.99"))
    assert (bench.swim.nodes["p"].address == "10.0.0.99") is moves
    warned = any("two nodes call themselves 'p'" in e.text for e in bench.take() if isinstance(e, Noticed))
    assert warned is not moves


def test_a_newcomer_at_another_address_need_not_know_the_old_incarnation() -> None:
    bench = Bench()
    bench.hear(alive("p", 7))
    bench.hear(wire.Dead(7, "p", "p"))
    bench.hear(alive("p", 1, address="10.0.0.99"))
    assert bench.state("p") == (ALIVE, 1)


def test_a_claim_of_our_own_name_is_outbid_once_and_not_for_ever() -> None:
    bench = Bench()
    for _ in range(5):
        bench.hear(alive("self", 4, address="10.0.0.99"))
    assert bench.state("self") == (ALIVE, 5)
    assert bench.swim.local.address == "10.0.0.1"


def test_who_comes_back_from_the_dead_is_told_so_that_it_can_refute() -> None:
    bench = Bench(peers=1)
    bench.hear(wire.Dead(1, "p0", "x"))
    bench.pass_time(100.0)
    bench.take()
    for _ in range(10):
        bench.hear(alive("p0", 1, address="10.0.1.1"))
    assert bench.sent(wire.Suspect) == [(("10.0.1.1", 7946), wire.Suspect(1, "p0", "self"))]


# suspicion


def test_a_suspect_that_does_not_refute_is_dead_when_its_time_is_over() -> None:
    bench = Bench(peers=10)
    bench.hear(wire.Suspect(1, "p3", "x"))
    lowest_s = 4 * math.log10(11)
    bench.swim.nodes["p3"].versions = (1, 2, 2, 2, 5, 4)
    bench.pass_time(0.5)
    assert bench.state("p3")[0] is SUSPECT
    for accuser in ("y", "z", "y"):
        bench.hear(wire.Suspect(1, "p3", accuser))
    bench.pass_time(lowest_s - 0.6)
    assert bench.state("p3")[0] is SUSPECT
    bench.pass_time(0.2)
    assert bench.state("p3")[0] is DEAD
    assert ("dead", "p3") in bench.ear.said


def test_only_new_accusers_are_passed_on_and_no_more_than_count() -> None:
    bench = Bench(peers=10)
    bench.take()
    for accuser in ("a", "a", "b", "b", "c", "d", "e"):
        bench.hear(wire.Suspect(1, "p3", accuser))
        bench.pass_time(0.25)
    passed_on = {m.accuser for _, m in bench.sent(wire.Suspect) if m.accuser != "self"}
    assert passed_on == {"a", "b", "c"}, "the first accuser and k = suspicion_mult - 2 confirmations"


def test_a_stopped_process_gives_the_suspects_their_time_back() -> None:
    bench = Bench(peers=3)
    bench.hear(wire.Suspect(1, "p0", "x"))
    bench.now += 3600.0
    bench.swim.wake(bench.now)
    assert bench.state("p0")[0] is SUSPECT, "its refutation may still be in our socket"
    assert bench.swim.awareness.score > 0
    bench.hear(alive("p0", 2, address="10.0.1.1"))
    assert bench.state("p0") == (ALIVE, 2)
