"""A small lab of its own on this machine: life, WAN, power loss, and that nothing is left of it, whatever happened."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh_agent.errors import ConfigError
from mesh_agent.lab.lab import Lab
from mesh_agent.lab.machine import LabError
from mesh_agent.lab.spec import read

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]
INVENTORY = """
dc_one: { hosts: { a1: { mesh_lab_address: 10.91.0.11 } } }
dc_two: { hosts: { b1: { mesh_lab_address: 10.92.0.11 } } }
"""
NAME = f"test{os.getpid()}"


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    file = tmp_path / "hosts.yml"
    file.write_text(INVENTORY, encoding="utf-8")
    return file


@pytest.fixture
def lab(inventory: Path) -> Iterator[Lab]:
    lab = Lab(NAME, read(inventory), lambda text: None)
    try:
        yield lab
    finally:
        lab.down()
        assert lab.leftovers() == []


def _ping(lab: Lab, count: int = 3, interval: str = "0.2") -> tuple[float, float]:
    """Loss in per cent and median-ish round trip in ms from a1 to b1."""
    line = [*lab.enter("a1"), "ping", "-c", str(count), "-i", interval, "-W", "3", "10.92.0.11"]
    out = subprocess.run(line, capture_output=True, text=True, check=False).stdout
    loss = re.search(r"([\d.]+)% packet loss", out)
    times = sorted(float(each) for each in re.findall(r"time=([\d.]+)", out))
    assert loss, out
    return float(loss[1]), times[len(times) // 2] if times else 0.0


def test_a_lab_lives_and_leaves_nothing(lab: Lab) -> None:
    lab.up()
    assert [row["state"] for row in lab.status()] == ["running", "running"]
    assert _ping(lab)[0] == 0
    lab.up()  # what runs is left alone

    lab.wan("delay", 40)
    assert _ping(lab)[1] >= 80
    lab.wan("heal")
    lab.wan("loss", 30)  # each way: that none of 20 gets through, or all, is less likely than one in 500,000
    assert 0 < _ping(lab, 20, "0.05")[0] < 100
    lab.wan("heal")
    for change in ("drop", "cut"):
        lab.wan(change)
        assert _ping(lab)[0] == 100
        lab.wan("heal")
        assert _ping(lab)[0] == 0

    write = [*lab.enter("a1"), "sh", "-c", "echo kept > /root/kept && sync"]
    subprocess.run(write, check=True)
    lab.crash("a1")
    assert lab.status()[0]["state"] == "off"
    assert subprocess.run([*lab.enter("a1"), "true"], check=False, capture_output=True).returncode == 255
    assert lab.start("a1") > 0
    kept = subprocess.run([*lab.enter("a1"), "cat", "/root/kept"], capture_output=True, text=True, check=True)
    assert kept.stdout == "kept\n"
    with pytest.raises(LabError, match="is not running"):
        lab.crash("a1"), lab.crash("a1")
    lab.down()
    assert lab.leftovers() == []
    assert [row["state"] for row in lab.status()] == ["absent", "absent"]


def test_what_an_interrupted_start_left_is_removed(lab: Lab, inventory: Path) -> None:
    line = [sys.executable, "-m", "mesh_agent", "lab", "up", "-i", str(inventory), "--name", NAME]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not list(lab.directory.glob("hosts/*/nspawn.pid")):
            assert process.poll() is None, "it ended before it was interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert lab.leftovers() != []
    lab.down()
    assert lab.leftovers() == []


def test_mistakes_are_named(inventory: Path) -> None:
    lab = Lab(NAME, read(inventory), lambda text: None)
    with pytest.raises(ConfigError, match="nope"):
        lab.enter("nope")
    with pytest.raises(ConfigError, match="no datacenter 'three'"):
        lab.enter("@three")
    with pytest.raises(LabError, match="mesh lab up"):
        lab.wan("cut")
    with pytest.raises(ConfigError, match="no name for a lab"):
        Lab("a-b", read(inventory), lambda text: None)
