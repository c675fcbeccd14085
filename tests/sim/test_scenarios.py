"""What happens to a pool, as sentences. Each scenario follows from its seed; see conftest.py for how many there are."""

import math
from collections import Counter

import pytest

from mesh_agent.gossip import MemberFailed, MemberStatus, UserEvent
from mesh_agent.gossip.serf import Serf
from tests.sim.network import CLEAR, ROUGH, SimCluster, Weather

# Generous: the machine may have other things to do, and virtual time does not care.
pytestmark = pytest.mark.timeout(900)

ALIVE, FAILED, LEFT = MemberStatus.ALIVE, MemberStatus.FAILED, MemberStatus.LEFT


def pool(nodes: int, seed: int, weather: Weather = ROUGH) -> SimCluster:
    """A pool in which everybody has met everybody."""
    cluster = SimCluster(nodes, seed, weather)
    assert cluster.run_until(cluster.all_alive, within_s=90.0, every_s=0.5), cluster.troubles()
    return cluster


def settles(cluster: SimCluster, within_s: float) -> None:
    """Everybody who lives is seen alive by everybody, and stays so."""
    assert cluster.run_until(cluster.all_alive, within_s=within_s, every_s=0.5), cluster.troubles()
    cluster.run(for_s=5.0)
    assert cluster.all_alive(), cluster.troubles()


def failures(cluster: SimCluster) -> set[str]:
    """Members that any live node has ever declared failed."""
    return {event.member.name for node in cluster.live for _, event in node.events if isinstance(event, MemberFailed)}


def knows_tag(cluster: SimCluster, name: str, value: str) -> bool:
    return all(
        (member := node.serf.member(name)) is not None and member.tags.get("colour") == value for node in cluster.live
    )


def test_the_same_seed_gives_the_same_trace(seed: int) -> None:
    def trace(of: int) -> str:
        cluster = SimCluster(20, of, ROUGH)
        cluster.run(for_s=5.0)
        cluster.crash("n3")
        cluster.partition(["n1", "n2"])
        cluster.run(for_s=10.0)
        cluster.heal()
        cluster.restart("n3", contact="n0")
        cluster.run(for_s=5.0)
        return cluster.trace()

    assert trace(seed) == trace(seed)
    assert trace(seed) != trace(seed + 1)


def test_three_hundred_nodes_survive_loss_delay_and_a_partition(seed: int) -> None:
    cluster = pool(300, seed)
    cluster.crash("n7")
    island = [f"n{index}" for index in range(100, 120)]
    cluster.partition(island)
    cluster.run(for_s=8.0)
    cluster.heal()
    assert cluster.run_until(lambda: cluster.everyone_sees("n7", FAILED), within_s=60.0), cluster.views("n7")
    settles(cluster, within_s=60.0)
    # Eight seconds are nearly a suspicion (4 x log10(300) s): some were declared failed before their objection arrived. All are back.
    assert cluster.everyone_sees("n7", FAILED)


def test_everybody_knows_a_change_after_a_logarithmic_number_of_rounds(seed: int) -> None:
    for nodes in (16, 48, 96):
        cluster = pool(nodes, seed, CLEAR)
        began = cluster.time
        cluster.call("n0", lambda serf, now: serf.set_tags({"role": "node", "dc": "dc1", "colour": "red"}, now))
        bound = 2 * math.log2(nodes) + 4
        assert cluster.run_until(lambda: knows_tag(cluster, "n0", "red"), within_s=60.0)  # noqa: B023
        rounds = (cluster.time - began) / cluster.config.gossip_interval_s
        assert rounds <= bound, f"{nodes} nodes took {rounds:.0f} rounds, more than {bound:.0f}"


def test_a_crashed_node_is_seen_to_fail_by_everybody_and_nobody_else_is(seed: int) -> None:
    cluster = pool(40, seed)
    cluster.crash("n5")
    config, scale = cluster.config, math.log10(40)
    longest_s = config.suspicion_mult * scale * config.probe_interval_s * config.suspicion_max_mult
    within_s = 40 * config.probe_interval_s + longest_s
    assert cluster.run_until(lambda: cluster.everyone_sees("n5", FAILED), within_s=within_s), cluster.views("n5")
    assert failures(cluster) == {"n5"}
    settles(cluster, within_s=10.0)


def test_a_node_that_is_paused_for_a_moment_refutes_its_suspicion(seed: int) -> None:
    cluster = pool(30, seed)
    cluster.pause("n7", for_s=3.0)
    settles(cluster, within_s=40.0)
    assert failures(cluster) == set()


def test_a_node_that_was_stopped_for_a_minute_comes_back_and_accuses_nobody(seed: int) -> None:
    cluster = pool(30, seed)
    cluster.crash("n1")
    cluster.run(for_s=3.0)
    cluster.pause("n7", for_s=60.0)
    assert cluster.run_until(lambda: cluster.everyone_sees("n1", FAILED), within_s=90.0)
    settles(cluster, within_s=60.0)
    assert failures(cluster) <= {"n1", "n7"}
    assert {event.member.name for _, event in cluster["n7"].events if isinstance(event, MemberFailed)} == {"n1"}


def test_a_clock_that_leaps_ahead_costs_nobody_its_life(seed: int) -> None:
    cluster = pool(20, seed)
    cluster.pause("n3", for_s=2.5)
    cluster.run(for_s=2.0)
    for name in ("n0", "n1", "n2"):
        cluster.jump(name, 3600.0)
    settles(cluster, within_s=40.0)
    assert failures(cluster) == set()


def test_others_vouch_for_a_node_that_one_cannot_reach(seed: int) -> None:
    cluster = pool(20, seed)
    for name in ("n1", "n2", "n3"):
        cluster.cut([name], ["n9"])
    cluster.run(for_s=60.0)
    assert failures(cluster) == set()
    cluster.heal()
    settles(cluster, within_s=10.0)


def test_a_node_that_can_send_but_not_hear_fails_and_takes_nobody_along(seed: int) -> None:
    cluster = pool(20, seed)
    others = [f"n{index}" for index in range(1, 20)]
    cluster.cut(others, ["n0"])
    assert cluster.run_until(lambda: cluster.everyone_sees("n0", FAILED), within_s=90.0), cluster.views("n0")
    for node in cluster.live:
        if node.name != "n0":
            assert all(not node.saw(MemberFailed, name) for name in others), "a healthy node was declared failed"
    cluster.heal()
    settles(cluster, within_s=120.0)


def test_a_node_behind_a_firewall_that_lets_only_tcp_in_stays_alive(seed: int) -> None:
    cluster = pool(12, seed, CLEAR)
    cluster.block_datagrams("n4")
    cluster.run(for_s=60.0)
    assert {node.name for node in cluster.live if node.saw(MemberFailed, "n4")} == set()
    warnings = [text for node in cluster.live for text in node.notices if "'n4' answers over TCP" in text]
    assert warnings


def test_a_node_that_restarts_within_its_suspicion_is_alive_again_at_once(seed: int) -> None:
    cluster = pool(25, seed)
    cluster.crash("n6")
    cluster.run(for_s=2.5)
    cluster.restart("n6", contact="n2")
    settles(cluster, within_s=20.0)
    assert failures(cluster) == set()


def test_a_node_that_restarts_after_its_death_is_alive_again(seed: int) -> None:
    cluster = pool(25, seed)
    cluster.crash("n6")
    assert cluster.run_until(lambda: cluster.everyone_sees("n6", FAILED), within_s=90.0)
    cluster.restart("n6", contact="n2")
    settles(cluster, within_s=20.0)


def test_a_node_that_restarts_and_finds_nobody_is_found_by_the_others(seed: int) -> None:
    cluster = pool(10, seed)
    cluster.crash("n6")
    assert cluster.run_until(lambda: cluster.everyone_sees("n6", FAILED), within_s=90.0)
    cluster.restart("n6")
    settles(cluster, within_s=300.0)


def test_a_node_that_comes_back_at_another_address_is_let_in_when_the_old_one_is_dead_for_long_enough(
    seed: int,
) -> None:
    cluster = pool(20, seed)
    cluster.restart("n6", contact="n2", address="10.9.9.9")

    def moved() -> bool:
        return {node.serf.swim.nodes["n6"].at for node in cluster.live} == {cluster["n6"].serf.swim.local.at}

    assert cluster.run_until(moved, within_s=180.0)
    settles(cluster, within_s=10.0)


def test_of_two_nodes_with_one_name_the_first_stays_and_both_are_warned_of(seed: int) -> None:
    cluster = pool(15, seed)
    second = cluster.add("n3", "10.9.9.9", contact="n1")
    cluster.run(for_s=120.0)
    others = [node for node in cluster.live if node.name != "n3"]
    assert {node.serf.swim.nodes["n3"].address for node in others} == {cluster["n3"].address}
    assert failures(cluster) == set()
    assert any("two nodes call themselves 'n3'" in text for node in others for text in node.notices)
    assert any("two nodes call themselves 'n3'" in text for text in second.notices)
    assert cluster["n3"].serf.swim.local.incarnation < 50, "the two outbid each other for ever"


def test_halves_of_a_split_pool_find_each_other_again(seed: int) -> None:
    cluster = pool(16, seed)
    half = [f"n{index}" for index in range(8)]
    cluster.partition(half)
    assert cluster.run_until(
        lambda: all(cluster.views(f"n{index}", of=half) == {FAILED} for index in range(8, 16)), within_s=150.0
    )
    cluster.heal()
    settles(cluster, within_s=300.0)


def test_a_farewell_is_heard_by_everybody_and_is_no_failure(seed: int) -> None:
    cluster = pool(30, seed)
    cluster.call("n4", lambda serf, now: serf.leave(now))
    assert cluster.run_until(lambda: cluster.everyone_sees("n4", LEFT), within_s=30.0), cluster.views("n4")
    cluster.crash("n4")
    settles(cluster, within_s=20.0)
    assert failures(cluster) == set()
    cluster.restart("n4", contact="n8")
    settles(cluster, within_s=30.0)


def test_a_failed_member_that_is_told_off_has_left_for_everybody(seed: int) -> None:
    cluster = pool(20, seed)
    cluster.crash("n4")
    assert cluster.run_until(lambda: cluster.everyone_sees("n4", FAILED), within_s=90.0)
    cluster.call("n1", lambda serf, now: serf.force_leave("n4", now))
    assert cluster.run_until(lambda: cluster.everyone_sees("n4", LEFT), within_s=30.0), cluster.views("n4")


def test_a_pruned_member_is_forgotten_by_everybody_and_may_come_back(seed: int) -> None:
    cluster = pool(20, seed)
    cluster.crash("n4")
    assert cluster.run_until(lambda: cluster.everyone_sees("n4", FAILED), within_s=90.0)
    cluster.call("n1", lambda serf, now: serf.force_leave("n4", now, prune=True))
    assert cluster.run_until(lambda: cluster.everyone_sees("n4", None), within_s=30.0), cluster.views("n4")
    cluster.run(for_s=60.0)
    assert cluster.everyone_sees("n4", None), "push/pull brought a forgotten member back"
    cluster.restart("n4", contact="n1")
    settles(cluster, within_s=30.0)


def test_telling_off_a_living_member_does_it_no_harm(seed: int) -> None:
    cluster = pool(20, seed)
    for prune in (False, True):
        cluster.call("n1", lambda serf, now, prune=prune: serf.force_leave("n4", now, prune=prune))  # type: ignore[misc]
        cluster.run(for_s=1.0)
        settles(cluster, within_s=40.0)


def test_an_event_is_told_to_everybody_exactly_once(seed: int) -> None:
    cluster = pool(20, seed, Weather(loss=0.05, duplicate=0.2, delay_s=(0.0002, 0.4)))
    cluster.call("n4", lambda serf, now: serf.messenger.fire("deploy", b"v1", coalesce=False))
    cluster.run(for_s=40.0)
    assert set(cluster.heard("deploy").values()) == {1}, cluster.heard("deploy")


def test_a_thousand_events_do_not_cost_anybody_its_life(seed: int) -> None:
    cluster = pool(12, seed)
    for number in range(1000):
        cluster.call(f"n{number % 12}", lambda serf, now, n=number: _fire(serf, n))  # type: ignore[misc]
    cluster.run(for_s=60.0)
    assert failures(cluster) == set()
    for node in cluster.live:
        heard = Counter(event.name for _, event in node.events if isinstance(event, UserEvent))
        assert set(heard.values()) == {1}, "an event was told twice"
    assert all(len(node.serf.messenger.event_queue) == 0 for node in cluster.live), "the queues do not drain"


def _fire(serf: Serf, number: int) -> None:
    serf.messenger.fire(f"load-{number}", b"x" * 100, coalesce=False)
