"""After any exchange, in any order, with repetitions and partitions, all datacenters hold the same."""

import random

from hypothesis import given
from hypothesis import strategies as st

from mesh_agent.catalog.federation import merge, put, tombstone
from mesh_agent.hlc import HybridClock
from mesh_agent.model import Action, Intention, Record

DATACENTERS = ["dc1", "dc2", "dc3"]


class Datacenter:
    def __init__(self, name: str) -> None:
        self.clock = HybridClock(name)
        self.records: dict[str, Record] = {}
        self.revision = 0

    def write(self, key: str, value: bytes) -> None:
        self.revision += 1
        self.records[key] = Record(key, value, self.revision, self.revision)

    def pull(self, other: "Datacenter") -> bool:
        changed = False
        for key, record in list(other.records.items()):
            winner = merge(self.records.get(key), record)
            if winner is not None:
                self.write(key, winner)
                changed = True
        return changed


steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "delete", "pull"]),
        st.integers(0, 2),
        st.integers(0, 2),
        st.sampled_from("abc"),
        st.floats(0, 30),
    ),
    max_size=40,
)


@given(steps, st.integers(0, 2**32))
def test_all_datacenters_converge(steps: list[tuple[str, int, int, str, float]], seed: int) -> None:
    datacenters = [Datacenter(name) for name in DATACENTERS]
    for kind, here, there, key, wall in steps:
        own = datacenters[here]
        if kind == "put":
            action = Action.ALLOW if wall > 15 else Action.DENY
            own.write(
                key,
                put(
                    Intention(source="web", destination=key, action=action, description=str(wall)),
                    own.clock,
                    1e6 + wall,
                ),
            )
        elif kind == "delete":
            own.write(key, tombstone(own.clock, 1e6 + wall))
        else:
            own.pull(datacenters[there])
    rng = random.Random(seed)
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    for _ in range(20):
        rng.shuffle(pairs)
        if not any([datacenters[a].pull(datacenters[b]) for a, b in pairs]):
            break
    else:
        raise AssertionError("the exchange does not come to rest")
    states = [{key: record.value for key, record in datacenter.records.items()} for datacenter in datacenters]
    assert states[0] == states[1] == states[2]
