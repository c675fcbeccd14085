"""Replicas that learn of another trust bundle at different times do not undo each other's work."""

import base64
from collections.abc import Iterable

import pytest

from mesh_agent.errors import ConfigError
from mesh_agent.injector.bundle import Bundles

LATE_S, PATIENCE_S = 90, 120.0


def pem(name: str) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----\n"


def bundle(names: Iterable[str]) -> str:
    return "".join(map(pem, names))


def encoded(names: Iterable[str]) -> str:
    return base64.b64encode(bundle(names).encode()).decode()


def history(before: str, after: str, late_s: int = LATE_S) -> list[str]:
    """What the configuration says, change by change, while one replica has the new bundle at 0 and the other one `late_s` later."""
    early, late = Bundles(PATIENCE_S), Bundles(PATIENCE_S)
    there = {"a": encoded(before)}
    seen = [there["a"]]
    for now in range(0, 600, 5):
        for replica, roots in ((early, after), (late, before if now < late_s else after)):
            there |= replica.changes(bundle(roots), there, float(now))
            if there["a"] != seen[-1]:
                seen.append(there["a"])
    return seen


def test_a_root_that_comes_is_added_once() -> None:
    assert history("1", "12") == [encoded("1"), encoded("12")]


def test_a_root_that_goes_is_taken_away_once_and_does_not_come_back() -> None:
    assert history("12", "2") == [encoded("12"), encoded("2")]


def test_one_root_for_another_is_never_without_what_a_replica_needs() -> None:
    assert history("1", "2") == [encoded("1"), encoded("21"), encoded("2")]


def test_what_is_no_bundle_is_replaced_at_once() -> None:
    found = {"none": "", "junk": "stale", "other": base64.b64encode(b"\xff\xfe").decode(), "good": encoded("21")}
    assert Bundles().changes(bundle("12"), found, 0.0) == dict.fromkeys(("none", "junk", "other"), encoded("12"))


def test_a_root_is_waited_for_anew_when_it_was_away() -> None:
    bundles = Bundles(PATIENCE_S)
    assert bundles.changes(bundle("1"), {"a": encoded("12")}, 0.0) == {}
    assert bundles.changes(bundle("1"), {"a": encoded("1")}, 60.0) == {}
    assert bundles.changes(bundle("1"), {"a": encoded("12")}, 130.0) == {}
    assert bundles.changes(bundle("1"), {"a": encoded("12")}, 250.0) == {"a": encoded("1")}


def test_a_file_without_roots_takes_nothing_away() -> None:
    with pytest.raises(ConfigError, match="holds no certificate"):
        Bundles(0.0).changes("", {"a": encoded("1")}, 1000.0)
