"""One replica works at a time, whatever clocks and crashes do."""

import random
from typing import Any

from mesh_agent.controllers.lease import Election

Json = dict[str, Any]
DURATION_S = 15.0


def election(name: str) -> Election:
    return Election("mesh-controllers", "mesh-system", name, DURATION_S)


def taken(one: Election, lease: Json | None, now: float) -> Json:
    wanted = one.next(lease, now, 1e9 + now)
    assert wanted is not None
    one.written(now)
    return wanted


def test_the_first_takes_the_lease_and_renews_it() -> None:
    one = election("a")
    lease = taken(one, None, 0.0)
    assert one.leading
    assert lease["metadata"] == {"name": "mesh-controllers", "namespace": "mesh-system"}
    assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("a", 0)
    renewed = taken(one, lease, 5.0)
    assert renewed["spec"]["acquireTime"] == lease["spec"]["acquireTime"]
    assert renewed["spec"]["renewTime"] > lease["spec"]["renewTime"]
    assert renewed["spec"]["leaseTransitions"] == 0


def test_the_second_waits_as_long_as_the_first_renews_whatever_their_clocks_say() -> None:
    one, two = election("a"), election("b")
    lease = taken(one, None, 0.0)
    for now in range(1, 60, 3):
        assert two.next(lease, 1e6 + now, 0.0) is None
        assert not two.leading
        assert two.holder == "a"
        lease = taken(one, lease, float(now))


def test_a_lease_that_is_not_renewed_is_taken_over_after_its_duration() -> None:
    one, two = election("a"), election("b")
    lease = taken(one, None, 0.0)
    assert two.next(lease, 100.0, 0.0) is None
    assert two.next(lease, 100.0 + DURATION_S - 0.1, 0.0) is None
    lease = taken(two, lease, 100.0 + DURATION_S)
    assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("b", 1)
    assert one.next(lease, 101.0, 0.0) is None
    assert not one.leading, "who sees another holder stops"


def test_a_holder_without_news_stops_before_anybody_may_take_over() -> None:
    one = election("a")
    taken(one, None, 0.0)
    assert not one.must_stop(DURATION_S / 2)
    assert one.must_stop(DURATION_S * 0.7)
    one.lost()
    assert not one.leading
    assert not one.must_stop(1e9)


def test_a_released_lease_is_taken_at_once() -> None:
    one, two = election("a"), election("b")
    lease = taken(one, None, 0.0)
    assert two.next(lease, 0.0, 0.0) is None
    assert one.is_ours(lease)
    assert not two.is_ours(lease)
    assert two.next(one.released(lease), 0.1, 0.0) is not None


def test_a_restarted_replica_of_the_same_name_goes_on() -> None:
    lease = taken(election("a"), None, 0.0)
    assert taken(election("a"), lease, 1.0)["spec"]["leaseTransitions"] == 0


def test_two_never_work_at_once_under_random_pauses() -> None:
    """Replicas that are paused, lose writes and read late; a write is accepted only from the version that was read."""
    for seed in range(200):
        rng = random.Random(seed)
        replicas = [election(name) for name in "abc"]
        lease: Json | None = None
        version = 0
        due = [0.0, 0.1, 0.2]
        now = 0.0
        while now < 300.0:
            at = min(range(3), key=lambda each: due[each])
            now, one = due[at], replicas[at]
            if one.must_stop(now):
                one.lost()
            seen, seen_version = lease, version
            wanted = one.next(seen, now, 1e9 + rng.uniform(-1e4, 1e4))
            if wanted is not None and rng.random() < 0.9 and seen_version == version:
                lease, version = wanted, version + 1
                one.written(now)
            working = [each for each in replicas if each.leading and not each.must_stop(now)]
            assert len(working) <= 1, f"seed {seed}, second {now}"
            due[at] = now + (rng.uniform(0, 40) if rng.random() < 0.1 else rng.uniform(1, 3))
