"""The machine of checks: when they run, which results count, what follows."""

import itertools
from random import Random
from typing import Any

import pytest

from mesh_agent.agent.checks import Result, shortened
from mesh_agent.agent.definition import CheckDefinition, ServiceDefinition
from mesh_agent.agent.local_state import LocalState, Source
from mesh_agent.agent.monitor import Effect, Monitor, Probe, Remove, SavedResult
from mesh_agent.config.settings import ChecksConfig
from mesh_agent.errors import InvalidRequest, NotFound
from mesh_agent.model import Status

OK, WARN, BAD = Status.PASSING, Status.WARNING, Status.CRITICAL


class Bench:
    """A monitor with a clock that moves from deadline to deadline, and probes that answer as told."""

    def __init__(self, *definitions: ServiceDefinition | CheckDefinition, **config: Any) -> None:
        self.state = LocalState()
        self.monitor = Monitor(self.state, "n1", ChecksConfig(**config), Random(1))
        self.now = 100.0
        self.answers: dict[str, Result] = {}
        self.ran: list[tuple[float, str]] = []
        self.removed: list[str] = []
        self.change(*definitions)

    def change(self, *definitions: ServiceDefinition | CheckDefinition) -> None:
        state = self.state.copy()
        for each in definitions:
            if isinstance(each, ServiceDefinition):
                state.register(each, Source.API)
            else:
                state.register_check(each, Source.API)
        self.state = state
        self.monitor.adopt(state, self.now)

    def run(self, for_s: float) -> list[Effect]:
        """Everything that happens within `for_s`."""
        end, effects = self.now + for_s, []
        while (at := self.monitor.deadline()) is not None and at <= end:
            self.now = max(self.now, at)
            for effect in self.monitor.wake(self.now):
                effects.append(effect)
                self._perform(effect)
        self.now = end
        return effects

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Remove):
            self.removed.append(effect.service_id)
            state = self.state.copy()
            state.deregister(effect.service_id)
            self.state = state
            self.monitor.adopt(state, self.now)
            return
        check_id = effect.definition.id
        self.ran.append((self.now, check_id))
        self.monitor.report(effect.definition, self.answers.get(check_id, Result(OK, "ok")), self.now)

    def say(self, check_id: str, status: Status, output: str = "") -> None:
        self.answers[check_id] = Result(status, output)

    def status(self, check_id: str) -> Status:
        return self.state.checks[check_id].status


def _tcp(check_id: str = "c", interval_s: float = 10.0, **more: Any) -> CheckDefinition:
    return CheckDefinition(id=check_id, name=check_id, tcp="127.0.0.1:1", interval_s=interval_s, **more)


def _ttl(check_id: str = "t", ttl_s: float = 10.0, **more: Any) -> CheckDefinition:
    return CheckDefinition(id=check_id, name=check_id, ttl_s=ttl_s, **more)


def _web(*checks: CheckDefinition, name: str = "web") -> ServiceDefinition:
    return ServiceDefinition(name=name, checks=checks)


# when


def test_a_check_runs_first_within_a_second_and_then_at_its_interval() -> None:
    bench = Bench(_tcp())
    assert bench.status("c") is BAD
    bench.run(35.0)
    times = [at - 100.0 for at, _ in bench.ran]
    assert len(times) == 4
    assert 0 <= times[0] <= 1.0
    assert [round(b - a, 6) for a, b in itertools.pairwise(times)] == [10.0, 10.0, 10.0]
    assert bench.status("c") is OK


def test_an_interval_is_at_least_a_second() -> None:
    bench = Bench(_tcp(interval_s=0.001))
    bench.run(10.0)
    assert 10 <= len(bench.ran) <= 11


def test_first_runs_of_many_are_spread_and_only_some_run_at_a_time() -> None:
    bench = Bench(*(_tcp(f"c{at}", interval_s=60.0) for at in range(400)))
    bench.run(5.0)
    assert 50 < len(bench.ran) < 150, "400 checks take 20 s to begin"
    bench.run(60.0)
    assert {name for _, name in bench.ran} == set(bench.state.checks)
    slow = Bench(*(_tcp(f"c{at}", interval_s=1.0) for at in range(200)))
    started = slow.monitor.wake(slow.now + 5.0)
    assert len(started) == 64
    assert slow.monitor.deadline() is None, "nothing to do while all places are taken"
    assert isinstance(started[0], Probe)
    slow.monitor.report(started[0].definition, Result(OK, ""), slow.now + 5.0)
    assert len(slow.monitor.wake(slow.now + 5.0)) == 1


def test_nothing_is_due_without_checks_that_look_at_something() -> None:
    bench = Bench(_web())
    bench.state.node_maintenance(enable=True, reason="")
    bench.change(CheckDefinition(id="alias", alias_service="web"))
    assert bench.monitor.deadline() is None


def test_a_result_of_a_check_that_has_changed_or_gone_is_dropped() -> None:
    bench = Bench(_tcp())
    [probe] = bench.monitor.wake(bench.now + 1.0)
    assert isinstance(probe, Probe)
    bench.change(_tcp(success_before_passing=1))
    bench.monitor.report(probe.definition, Result(OK, ""), bench.now + 1.0)
    assert bench.status("c") is BAD
    gone = bench.state.copy()
    gone.deregister_check("c")
    bench.monitor.adopt(gone, bench.now)
    bench.monitor.report(probe.definition, Result(OK, ""), bench.now + 1.0)
    assert bench.monitor.deadline() is None


# which results count


@pytest.mark.parametrize(
    ("more", "results", "statuses"),
    [
        ({}, [OK, BAD, WARN, OK], [OK, BAD, WARN, OK]),
        ({"failures_before_critical": 3}, [OK, BAD, BAD, BAD, BAD], [OK, OK, OK, BAD, BAD]),
        ({"failures_before_critical": 2}, [OK, BAD, OK, BAD, BAD], [OK, OK, OK, OK, BAD]),
        ({"success_before_passing": 3}, [OK, OK, OK, BAD, OK], [BAD, BAD, OK, BAD, BAD]),
        ({"success_before_passing": 2}, [OK, WARN, OK], [BAD, WARN, OK]),
        ({"status": OK, "failures_before_critical": 2}, [BAD, BAD], [OK, BAD]),
    ],
)
def test_enough_results_in_a_row(more: dict[str, Any], results: list[Status], statuses: list[Status]) -> None:
    bench = Bench(_tcp(**more))
    found = []
    for status in results:
        bench.say("c", status)
        bench.run(10.0 if found else 1.0)
        found.append(bench.status("c"))
    assert found == statuses


def test_a_new_status_is_told_at_once_and_a_new_output_at_leisure() -> None:
    bench = Bench(_tcp(interval_s=10.0), update_interval_s=300.0)
    bench.monitor.drain()
    bench.say("c", OK, "1 ms")
    bench.run(1.0)
    changes = bench.monitor.drain()
    assert (changes.tell, changes.statuses, changes.keep) == (True, {"c": OK}, {"c"})
    bench.say("c", OK, "2 ms")
    bench.run(200.0)
    assert bench.monitor.drain().tell is False
    check = bench.state.checks["c"]
    assert (check.output, check.synced_output) == ("2 ms", "1 ms")
    bench.run(105.0)
    assert bench.monitor.drain().tell is True
    assert check.synced_output == "2 ms"
    bench.say("c", BAD, "gone")
    bench.run(10.0)
    assert bench.monitor.drain().tell is True
    assert check.synced_output == "gone"


@pytest.mark.parametrize(
    ("output", "limit", "shown"),
    [
        ("short", 100, "short"),
        ("x" * 100, 100, "x" * 100),
        ("x" * 100 + "END", 50, "Captured 18 of 103 bytes\n...\n" + "x" * 15 + "END"),
        ("é" * 100, 61, "Captured 30 of 200 bytes\n...\n" + "é" * 15),
    ],
)
def test_long_outputs_keep_their_end(output: str, limit: int, shown: str) -> None:
    assert shortened(output, limit)[-10:] == shown[-10:]
    assert len(shortened(output, limit).encode()) <= limit


def test_an_output_is_cut_to_what_the_agent_or_the_check_allows() -> None:
    bench = Bench(_tcp("a"), _tcp("b", output_max_bytes=100), output_max_bytes=4096)
    for check_id in "ab":
        bench.say(check_id, OK, "x" * 10_000)
    bench.run(1.0)
    assert len(bench.state.checks["a"].output) <= 4096
    assert len(bench.state.checks["b"].output) <= 100


# TTL


def test_a_ttl_check_that_nobody_updates_turns_critical_and_says_what_was_last() -> None:
    bench = Bench(_ttl())
    bench.monitor.update_ttl("t", OK, "fine", bench.now)
    bench.run(9.0)
    bench.monitor.update_ttl("t", WARN, "hm", bench.now)
    bench.run(9.9)
    assert bench.status("t") is WARN
    bench.run(0.2)
    assert bench.status("t") is BAD
    assert bench.state.checks["t"].output == "TTL expired (last output before timeout follows): hm"
    bench.monitor.update_ttl("t", OK, "", bench.now)
    assert bench.status("t") is OK


def test_only_ttl_checks_can_be_updated() -> None:
    bench = Bench(_tcp())
    with pytest.raises(InvalidRequest, match="does not have associated TTL"):
        bench.monitor.update_ttl("c", OK, "", bench.now)
    with pytest.raises(NotFound):
        bench.monitor.update_ttl("x", OK, "", bench.now)


def test_updates_that_change_nothing_reach_the_disk_only_now_and_then() -> None:
    bench = Bench(_ttl(ttl_s=100.0))
    bench.monitor.update_ttl("t", OK, "", bench.now)
    bench.monitor.drain()
    kept = 0
    for _ in range(200):
        bench.run(1.0)
        bench.monitor.update_ttl("t", OK, "", bench.now)
        changes = bench.monitor.drain()
        kept += len(changes.keep)
        assert changes.tell is False
    assert 3 <= kept <= 4


@pytest.mark.parametrize(("away_s", "status"), [(1.0, OK), (14.0, OK), (16.0, BAD), (1e6, BAD)])
def test_a_restart_keeps_a_ttl_check_that_cannot_have_expired(away_s: float, status: Status) -> None:
    bench = Bench(_ttl(ttl_s=10.0))
    bench.monitor.resume({"t": SavedResult(OK, "fine", at=1000.0)}, bench.now, wall=1000.0 + away_s)
    bench.run(0.5)
    assert bench.status("t") is status
    bench.run(10.0)
    assert bench.status("t") is BAD


def test_a_restart_keeps_results_of_other_checks_until_they_have_run() -> None:
    bench = Bench(_tcp(interval_s=10.0), _tcp("gone"))
    saved = {"c": SavedResult(OK, "fine", 0.0), "gone": SavedResult(OK, "", 0.0), "unknown": SavedResult(OK, "", 0.0)}
    bench.monitor.resume(saved, bench.now, wall=1e9)
    assert (bench.status("c"), bench.state.checks["c"].synced_output) == (OK, "fine")
    bench.say("gone", BAD, "refused")
    bench.run(1.0)
    assert (bench.status("c"), bench.status("gone")) == (OK, BAD)


# removal


def test_a_service_that_stays_critical_is_taken_away_after_a_minute_at_least() -> None:
    bench = Bench(_web(_tcp(deregister_after_s=5.0)), _web(_tcp("d"), name="api"))
    bench.say("c", BAD)
    bench.say("d", BAD)
    bench.run(59.0)
    assert bench.removed == []
    bench.run(2.0)
    assert bench.removed == ["web"]
    bench.run(1000.0)
    assert bench.removed == ["web"]


def test_one_good_result_starts_the_time_anew() -> None:
    bench = Bench(_web(_tcp(deregister_after_s=90.0)))
    for status in (BAD, OK, BAD):
        bench.say("c", status)
        bench.run(60.0)
    assert bench.removed == []
    bench.run(80.0)
    assert bench.removed == ["web"]


def test_ttl_checks_take_their_service_away_too() -> None:
    bench = Bench(_web(_ttl(ttl_s=10.0, status=OK, deregister_after_s=60.0)))
    bench.run(69.0)
    assert bench.removed == []
    bench.run(2.0)
    assert bench.removed == ["web"]


def test_checks_of_the_node_take_nothing_away() -> None:
    bench = Bench(_ttl(deregister_after_s=60.0))
    bench.run(1000.0)
    assert bench.removed == []


# aliases


def _alias(check_id: str, service: str = "", **more: Any) -> CheckDefinition:
    return CheckDefinition(id=check_id, name=check_id, alias_service=service, **more)


def test_an_alias_follows_its_service_in_the_same_step() -> None:
    bench = Bench(_web(_ttl("t")), _web(_alias("a", "web"), name="proxy"))
    assert bench.status("a") is BAD
    bench.monitor.update_ttl("t", OK, "", bench.now)
    assert (bench.status("a"), bench.state.checks["a"].output) == (OK, "All checks passing.")
    bench.monitor.update_ttl("t", WARN, "slow", bench.now)
    assert (bench.status("a"), bench.state.checks["a"].output) == (WARN, 'Aliased check "t" failing: slow')
    bench.run(20.0)
    assert bench.status("a") is BAD, "as its TTL expired"


def test_an_alias_follows_checks_of_the_node_and_maintenance() -> None:
    bench = Bench(_web(), _ttl("mem", status=OK), _web(_alias("a", "web"), name="proxy"))
    assert bench.status("a") is OK
    bench.monitor.update_ttl("mem", BAD, "full", bench.now)
    assert bench.status("a") is BAD
    bench.monitor.update_ttl("mem", OK, "", bench.now)
    state = bench.state.copy()
    state.service_maintenance("web", enable=True, reason="swap")
    bench.monitor.adopt(state, bench.now)
    assert (bench.status("a"), state.checks["a"].output) == (
        BAD,
        'Aliased check "Service Maintenance Mode" failing: swap',
    )


def test_an_alias_without_anything_to_stand_for() -> None:
    bench = Bench(_alias("a", "web"))
    assert (bench.status("a"), bench.state.checks["a"].output) == (BAD, "Service web could not be found on node n1")
    bench.change(_web())
    assert (bench.status("a"), bench.state.checks["a"].output) == (OK, "No checks found.")


def test_aliases_of_aliases_follow_and_circles_do_not_lock() -> None:
    bench = Bench(
        _web(_ttl("t"), _alias("w", "api")),
        _web(_alias("x", "web"), name="api"),
        _web(_alias("y", "api"), name="far"),
        _web(_alias("z", "self"), name="self"),
    )
    assert [bench.status(each) for each in "wxyz"] == [BAD, BAD, BAD, OK]
    bench.monitor.update_ttl("t", OK, "", bench.now)
    assert [bench.status(each) for each in "wxyz"] == [OK] * 4
    bench.monitor.update_ttl("t", BAD, "", bench.now)
    assert [bench.status(each) for each in "wxyz"] == [BAD, BAD, BAD, OK]


def test_an_alias_of_the_node_itself() -> None:
    bench = Bench(_ttl("mem", status=OK), _web(_alias("a", alias_node="N1")))
    assert bench.status("a") is OK
    bench.monitor.update_ttl("mem", WARN, "", bench.now)
    assert bench.status("a") is WARN


def test_an_alias_of_another_node_is_looked_at_like_a_probe() -> None:
    bench = Bench(_alias("a", "web", alias_node="n2"))
    bench.say("a", OK)
    effects = bench.run(1.0)
    assert [type(each) for each in effects] == [Probe]
    bench.say("a", BAD)
    bench.monitor.look_again("a", bench.now)
    bench.run(0.0)
    assert bench.status("a") is BAD
    bench.ran.clear()
    bench.run(6.0)
    assert len(bench.ran) == 1, "tried again soon"
    bench.say("a", OK)
    bench.run(5.0)
    bench.ran.clear()
    bench.run(59.0)
    assert len(bench.ran) <= 1, "and seldom when all is well: changes are pushed"
