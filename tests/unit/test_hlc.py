"""Hybrid timestamps grow, whatever the wall clock does."""

from mesh_agent.hlc import MAX_AHEAD_MS, HybridClock, Timestamp


def test_stamps_grow_even_when_the_wall_clock_goes_back() -> None:
    clock = HybridClock("dc1")
    assert clock.tick(100.0) < clock.tick(100.0) < clock.tick(50.0) < clock.tick(101.0)


def test_a_later_local_stamp_beats_what_was_observed() -> None:
    clock = HybridClock("dc1")
    seen = Timestamp(100_500, 7, "dc2")
    clock.observe(seen, wall=100.0)
    assert clock.tick(100.0) > seen


def test_a_broken_remote_clock_does_not_drag_ours_along() -> None:
    clock = HybridClock("dc1")
    clock.observe(Timestamp(100_000 + MAX_AHEAD_MS + 1, 0, "dc2"), wall=100.0)
    assert clock.tick(100.0) == Timestamp(100_000, 0, "dc1")
