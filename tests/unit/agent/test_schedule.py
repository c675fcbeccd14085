"""The heap of everything that a machine waits for."""

from mesh_agent.agent.schedule import Schedule


def test_keys_come_out_in_order_when_they_are_due() -> None:
    schedule: Schedule[str] = Schedule()
    for key, at in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
        schedule.plan(key, at)
    assert schedule.deadline() == 1.0
    assert [schedule.pop(2.5) for _ in range(3)] == ["a", "b", None]
    assert schedule.deadline() == 3.0


def test_planning_again_moves_and_cancelling_removes() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.plan("a", 1.0)
    schedule.plan("a", 5.0)
    assert schedule.pop(2.0) is None
    assert schedule.pop(5.0) == "a"
    schedule.plan("b", 1.0)
    schedule.cancel("b")
    assert "b" not in schedule
    assert schedule.deadline() is None


def test_a_key_that_is_moved_for_ever_costs_no_memory() -> None:
    schedule: Schedule[str] = Schedule()
    for at in range(10_000):
        schedule.plan("ttl", float(at))
    assert len(schedule) == 1
    assert len(schedule._heap) < 100
    assert schedule.pop(1e9) == "ttl"
    assert schedule.pop(1e9) is None
