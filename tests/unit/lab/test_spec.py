"""What the lab reads from an inventory."""

from pathlib import Path

import pytest

from mesh_agent.errors import ConfigError
from mesh_agent.lab.spec import read

INVENTORY = """
dc_one:
  hosts:
    a: { mesh_lab_address: 10.1.0.11, mesh_lab_routes: [10.101.1.0/24, 10.101.9.0/24] }
    b: { mesh_lab_address: 10.1.0.12, mesh_lab_boot: false }
dc_two:
  hosts:
    c: { mesh_lab_address: 10.2.0.11 }
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "hosts.yml"
    path.write_text(text, encoding="utf-8")
    return path


def test_networks_behind_hosts_are_reached_through_their_datacenter(tmp_path: Path) -> None:
    spec = read(_write(tmp_path, INVENTORY))
    assert spec.networks("one") == ["10.1.0.0/24", "10.101.1.0/24", "10.101.9.0/24"]
    assert spec.networks("two") == ["10.2.0.0/24"]


def test_a_host_can_wait_to_be_named(tmp_path: Path) -> None:
    spec = read(_write(tmp_path, INVENTORY))
    assert [host.name for host in spec.hosts if host.boot] == ["a", "c"]
    assert spec.host("b").datacenter == "one"


@pytest.mark.parametrize("network", ["10.101.1.0/33", "10.101.1.7/24", "pods"])
def test_a_network_that_is_none_is_refused_by_name(tmp_path: Path, network: str) -> None:
    with pytest.raises(ConfigError, match="host 'a': mesh_lab_routes"):
        read(_write(tmp_path, INVENTORY.replace("10.101.1.0/24", network)))
