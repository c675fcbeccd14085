"""Durations as Go reads and writes them."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh_agent.agent import durations
from mesh_agent.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("0s", 0.0),
        ("10s", 10.0),
        ("1h30m", 5400.0),
        ("1h30m0s", 5400.0),
        ("500ms", 0.5),
        ("1.5s", 1.5),
        (".5m", 30.0),
        ("5.s", 5.0),
        ("2us", 2e-6),
        ("2µs", 2e-6),
        ("3ns", 3e-9),
        ("-10s", -10.0),
        ("+10s", 10.0),
        ("1m1m", 120.0),
    ],
)
def test_go_durations_are_read(text: str, seconds: float) -> None:
    assert durations.parse(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "10", "s", "10 s", "ten", "10d", "--1s", "1s!", ".s", "٣s", "1e3s", "3000000h", "9" * 400 + "s"]
)
def test_what_go_refuses_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(InvalidRequest, match="duration"):
        durations.parse(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (10, "10s"),
        (60, "1m0s"),
        (5400, "1h30m0s"),
        (3661, "1h1m1s"),
        (0.5, "500ms"),
        (1.5, "1.5s"),
        (0.0000025, "2.5µs"),
        (0.000000003, "3ns"),
        (-90, "-1m30s"),
    ],
)
def test_durations_are_written_as_go_does(seconds: float, text: str) -> None:
    assert durations.render(seconds) == text


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(min_value=-(10**15), max_value=10**15))
def test_what_is_written_is_read_again(nanos: int) -> None:
    assert durations.parse(durations.render(nanos / 1e9)) == pytest.approx(nanos / 1e9, abs=1e-6)
