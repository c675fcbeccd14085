"""In whatever order news arrives, everybody comes to believe the same."""

from hypothesis import given
from hypothesis import strategies as st

from mesh_agent.gossip import wire
from mesh_agent.gossip.node import State
from tests.unit.gossip.machines import Bench, alive

incarnations = st.integers(1, 4)
updates = st.one_of(
    incarnations.map(lambda number: alive("p", number)),
    incarnations.map(lambda number: wire.Suspect(number, "p", "x")),
    incarnations.map(lambda number: wire.Dead(number, "p", "x")),
)


def belief(story: list[wire.Message]) -> tuple[State, int]:
    bench = Bench()
    bench.hear(alive("p", 1))
    for message in story:
        bench.hear(message)
    return bench.state("p")


def rank(message: wire.Message) -> tuple[int, int]:
    """The order of the paper: a death is final for its incarnation and those before."""
    strength = {wire.Alive: 0, wire.Suspect: 1, wire.Dead: 2}[type(message)]
    return message.incarnation, strength  # type: ignore[union-attr]


@given(st.lists(updates.filter(lambda m: not isinstance(m, wire.Dead)), max_size=6), st.randoms())
def test_alive_and_suspect_commute(story: list[wire.Message], rng) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(story)
    rng.shuffle(shuffled)
    assert belief(story)[0] == belief(shuffled)[0] == _expected(story)


def _expected(story: list[wire.Message]) -> State:
    best = max([(1, 0), *map(rank, story)])
    return State.SUSPECT if best[1] else State.ALIVE


@given(st.lists(updates, max_size=6))
def test_the_incarnation_never_falls_and_a_repetition_changes_nothing(story: list[wire.Message]) -> None:
    bench = Bench()
    bench.hear(alive("p", 1))
    last = 1
    for message in story:
        bench.hear(message)
        state, incarnation = bench.state("p")
        assert incarnation >= last
        last = incarnation
        bench.hear(message)
        assert bench.state("p") == (state, incarnation)


@given(st.lists(updates, max_size=6))
def test_a_larger_incarnation_brings_everybody_back(story: list[wire.Message]) -> None:
    assert belief([*story, alive("p", 9)]) == (State.ALIVE, 9)
