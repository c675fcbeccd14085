"""The WAN's relay: what a wire does to packets, and when a change is in force."""

import random
from pathlib import Path

import pytest

from mesh_agent.lab.relay import Relay, Wire, applied


def _wire(**state: float) -> Wire:
    wire = Wire((1, 2), random.Random(1))
    wire.set(state)
    return wire


def test_a_change_is_in_force_once_the_relay_has_read_it(tmp_path: Path) -> None:
    state = tmp_path / "links.json"
    assert not applied(state), "no state, no relay"
    state.write_text("{}")
    relay = Relay(state)
    assert not applied(state)
    relay.look()
    assert applied(state)
    fresh = tmp_path / "links.new"
    fresh.write_text("{ }")
    fresh.replace(state)
    assert not applied(state)
    relay.look()
    assert applied(state)


def test_a_relay_whose_state_is_gone_ends(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Relay(tmp_path / "links.json").look()


def test_a_wire_delays_loses_and_queues() -> None:
    assert _wire(delay_ms=40).departure(2, 100, 10.0) == pytest.approx(10.04)
    assert _wire(up=False).departure(2, 100, 10.0) is None
    lossy = _wire(loss_pct=50)
    lost = sum(lossy.departure(2, 100, 10.0) is None for _ in range(1000))
    assert 400 < lost < 600
    slow = _wire(rate_kbit=8)  # 1000 bytes a second
    assert slow.departure(2, 500, 10.0) == pytest.approx(10.5)
    assert slow.departure(2, 500, 10.0) == pytest.approx(11.0), "behind the first"
    assert slow.departure(1, 500, 10.0) == pytest.approx(10.5), "the other direction is free"
