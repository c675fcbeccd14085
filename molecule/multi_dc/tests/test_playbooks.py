"""The playbooks of daily life, run against the mesh while it works."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Datacenters, Node, measured, until

pytestmark = pytest.mark.timeout(600)
PROJECT = Path(os.environ["MESH_PROJECT"])
ENVIRONMENT = os.environ | {
    "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
    "ANSIBLE_NOCOLOR": "1",
    "ANSIBLE_FORCE_COLOR": "0",
}
CALL = "curl -s -m 20 -o /dev/null -w '%{http_code}' http://127.0.0.1:9191/"


def _play(playbook: str, *options: str) -> str:
    code, out = _run(playbook, *options)
    assert code == 0, out[-5000:]
    return out


def _run(playbook: str, *options: str) -> tuple[int, str]:
    line = ["ansible-playbook", "-i", "inventory/lab", f"playbooks/{playbook}.yml", *options]
    done = subprocess.run(
        line, cwd=PROJECT, env=ENVIRONMENT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    return done.returncode, done.stdout + done.stderr


@contextmanager
def _calls(node: Node) -> Iterator[list[str]]:
    """Calls through the mesh, one after the other, as long as the block runs; yields the statuses."""
    statuses: list[str] = []
    over = threading.Event()

    def call() -> None:
        while not over.is_set():
            statuses.append(node.run(CALL)[1])

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield statuses
    finally:
        over.set()
        thread.join()


def _keys(node: Node, pool: str) -> set[str]:
    return set(node.api(f"/v1/operator/keyring?pool={pool}")[0]["Keys"])


def test_gossip_keys_are_rotated_while_everything_works(mesh: Datacenters) -> None:
    servers = mesh["dc1-s1"], mesh["dc2-s1"]
    before = [_keys(servers[0], "wan"), *(_keys(each, "lan") for each in servers)]
    assert all(len(ring) == 1 for ring in before)
    with _calls(mesh["dc1-c1"]) as statuses:
        out = _play("rotate_gossip_key")
    after = [_keys(servers[0], "wan"), *(_keys(each, "lan") for each in servers)]
    assert all(len(ring) == 1 for ring in after)
    assert all(old.isdisjoint(new) for old, new in zip(before, after, strict=True))
    assert not any(key in out for ring in (*before, *after) for key in ring), "keys are never printed"
    assert set(statuses) == {"200"}
    measured(f"calls through the mesh during a rotation of all gossip keys: {len(statuses)}, none failed")
    for server in servers:
        until(lambda s=server: {m["Status"] for m in s.api("/v1/agent/members")} == {1}, "everybody is alive")
    mesh["dc1-c2"].ok("systemctl restart mesh-agent")
    until(lambda: mesh["dc1-c2"].api("/v1/agent/members")[2:], "an agent that restarts is in the pool with the new key")


def test_a_removed_node_is_gone_and_can_come_back(mesh: Datacenters) -> None:
    gone, server = mesh["dc1-c2"], mesh["dc1-s1"]
    _play("remove_node", "--limit", gone.name)
    until(lambda: gone.name not in {node["Node"] for node in server.api("/v1/catalog/nodes")}, "out of the catalog")
    assert gone.run("systemctl is-active mesh-agent")[0] != 0
    assert gone.run("ls -d /etc/mesh /opt/mesh /var/lib/mesh /usr/local/bin/mesh")[1] == ""
    assert "127.0.0.1" not in gone.ok("cat /etc/resolv.conf")
    _play("site", "--limit", gone.name)
    until(lambda: gone.name in {node["Node"] for node in server.api("/v1/catalog/nodes")}, "in the catalog again")
    until(lambda: gone.dig("api.service.dc2.mesh") == ["10.2.0.12", "10.2.0.13"], "it resolves names again")


def test_an_unknown_system_is_refused_with_a_clear_text(mesh: Datacenters) -> None:
    facts = '{"ansible_facts": {"distribution": "Gentoo", "distribution_version": "2.15", "distribution_major_version": "2"}}'
    code, out = _run("site", "--limit", "dc1-c2", "--check", "-e", facts)
    assert code != 0
    assert "Gentoo 2.15 is not supported" in " ".join(out.split())
