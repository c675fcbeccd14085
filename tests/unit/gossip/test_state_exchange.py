"""Push/pull: what is told, what is taken over, and what makes the two stay strangers."""

import pytest

from mesh_agent.gossip import GossipConfig, layers, wire
from mesh_agent.gossip.effects import Exchange
from mesh_agent.gossip.node import State
from tests.unit.gossip.machines import Bench, alive, entry

ALIVE, SUSPECT, DEAD, LEFT = State.ALIVE, State.SUSPECT, State.DEAD, State.LEFT


@pytest.mark.parametrize(
    ("theirs", "then"),
    [
        (entry("p", 6, ALIVE), (ALIVE, 6)),
        (entry("p", 5, SUSPECT), (SUSPECT, 5)),
        (entry("p", 5, DEAD), (SUSPECT, 5)),  # a death at second hand is a suspicion
        (entry("p", 5, LEFT), (LEFT, 5)),
        (entry("p", 4, DEAD), (ALIVE, 5)),
        (entry("p", 4, LEFT), (ALIVE, 5)),
    ],
)
def test_what_is_taken_over_from_a_push_pull(theirs: wire.StateEntry, then: tuple[State, int]) -> None:
    bench = Bench()
    bench.hear(alive("p", 5))
    assert bench.swim.accept(wire.PushPull((theirs,), b"above", True), 0.0) is None
    assert bench.state("p") == then
    assert ("state", "above") in bench.ear.said


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ((6, 6, 6, 2, 5, 4), "protocol versions are incompatible"),
        ((1, 1, 1, 2, 5, 4), "protocol versions are incompatible"),
        ((1, 5, 2, 5, 5, 5), "delegate versions are incompatible"),
        ((1, 5, 2, 2, 5), "has 5 version bytes, not 6"),
        ((), "has 0 version bytes, not 6"),
    ],
)
def test_one_incompatible_member_makes_the_whole_merge_fail(versions: tuple[int, ...], reason: str) -> None:
    bench = Bench()
    good, bad = entry("p", 1, ALIVE), entry("q", 1, ALIVE, versions=versions)
    error = bench.swim.accept(wire.PushPull((good, bad), b"above", True), 0.0)
    assert error is not None
    assert reason in error
    assert set(bench.swim.nodes) == {"self"}
    assert bench.ear.said == [("joined", "self")]


def test_versions_of_the_dead_do_not_matter() -> None:
    bench = Bench()
    assert bench.swim.accept(wire.PushPull((entry("q", 1, DEAD, versions=()),), b"", True), 0.0) is None


def test_a_member_that_the_layer_above_refuses_makes_the_merge_fail_and_gossip_of_it_is_ignored() -> None:
    bench = Bench()
    bench.ear.refused = "another datacenter"
    error = bench.swim.accept(wire.PushPull((entry("p", 1, ALIVE),), b"", True), 0.0)
    assert error == "node 'p': another datacenter"
    bench.hear(alive("p"))
    assert set(bench.swim.nodes) == {"self"}


def test_the_answer_to_a_push_pull_is_our_own_state_as_it_was_before() -> None:
    bench = Bench(peers=2)
    request = wire.PushPull((entry("new", 1, ALIVE),), b"", True)
    answer = bench.swim.answer(request)
    assert answer is not None
    decoded = layers.Codec(None, lambda n: b"", compression=False).decode_stream(answer)
    assert isinstance(decoded, wire.PushPull)
    assert {each.node for each in decoded.entries} == {"self", "p0", "p1"}
    bench.swim.accept(request, 0.0)
    assert "new" in bench.swim.nodes


def test_push_pulls_are_rarer_in_a_large_pool() -> None:
    def exchanges(peers: int) -> int:
        bench = Bench(GossipConfig(probe_interval_s=1e6), peers=peers)
        bench.pass_time(300.0)
        return sum(isinstance(e, Exchange) and e.request[0] == wire.PUSH_PULL for e in bench.take())

    few, many = exchanges(4), exchanges(127)
    assert 9 <= few <= 11
    assert 3 <= many <= 4, "128 nodes: every 30 s x (ceil(log2 128 - log2 32) + 1), the first one within 30 s"
