"""What happens to clusters over the years: a new version, a control plane that dies, one that is replaced, the end. In this order."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import Cluster, load_from_host, playbook
from support import Datacenters, crashed, measured, until
from workloads import NAMESPACE, always_one, intentions, namespace, service

pytestmark = pytest.mark.timeout(2400)
INVENTORY = "--inventory=inventory/lab-ha"
OLD, NEW = "v1.36.3", "v1.37.2"
NODES = {"dc1": ["dc1-k1", "dc1-k2", "dc1-k3"], "dc2": ["dc2-k1", "dc2-k2"]}
UPSTREAM = "http://127.0.0.1:9192/"
"""Of `web` (dc1-c1) to `stock` in dc2, and of `api` (dc2-c1) to `shop` in dc1."""
WEB = "spiffe://mesh.internal/ns/default/dc/dc1/svc/web"
API = "spiffe://mesh.internal/ns/default/dc/dc2/svc/api"
ETCDCTL = (
    "etcdctl --endpoints=https://127.0.0.1:2379 --cacert=/etc/kubernetes/pki/etcd/ca.crt"
    " --cert=/etc/kubernetes/pki/etcd/server.crt --key=/etc/kubernetes/pki/etcd/server.key member list -w json"
)


@pytest.fixture(scope="module", autouse=True)
def workloads(dc1: Cluster, dc2: Cluster, image: str) -> None:
    """Two pods each of `shop` in dc1 and `stock` in dc2, one of which may be away."""
    for cluster, name, caller in ((dc1, "shop", "api"), (dc2, "stock", "web")):
        cluster.apply(
            *namespace(), *service(name, image, replicas=2), always_one(name), intentions(name, **{caller: "allow"})
        )
    for cluster, name in ((dc1, "shop"), (dc2, "stock")):
        cluster.kubectl("-n", NAMESPACE, "rollout", "status", f"deployment/{name}", "--timeout=300s")


@pytest.fixture(scope="module")
def called(mesh: Datacenters, workloads: None) -> Iterator[dict[str, Any]]:
    """Both services answer to the caller's identity."""
    callers = {"dc1-c1": WEB, "dc2-c1": API}
    for name, identity in callers.items():
        until(
            lambda n=name, i=identity: json.loads(mesh[n].ok(f"curl -s -m 5 {UPSTREAM}"))["caller"] == i,
            f"{identity} is answered",
        )
    return callers


def _versions(cluster: Cluster) -> dict[str, str]:
    return {
        node["metadata"]["name"]: node["status"]["nodeInfo"]["kubeletVersion"] for node in cluster.get("nodes")["items"]
    }


def _members(cluster: Cluster, node: str = "dc1-k1") -> list[str]:
    """Names of the members of etcd, sorted."""
    text = cluster.kubectl("-n", "kube-system", "exec", f"etcd-{node}", "--", *ETCDCTL.split())
    return sorted(member["name"] for member in json.loads(text)["members"])


def _identities(mesh: Datacenters) -> dict[str, str]:
    """The trust bundle, and the certificate of each agent: their fingerprints."""
    roots = mesh["dc1-s1"].api("/v1/connect/ca/roots")
    found = {"roots": "".join(sorted(root["RootCert"] for root in roots["Roots"]))}
    for name in (*NODES["dc1"], *NODES["dc2"]):
        found[name] = mesh[name].ok("sha256sum /var/lib/mesh/certs/agent.json")
    return found


def test_three_control_planes_with_a_stacked_etcd(dc1: Cluster, dc2: Cluster) -> None:
    assert _versions(dc1) == dict.fromkeys(NODES["dc1"], OLD)
    assert _versions(dc2) == dict.fromkeys(NODES["dc2"], OLD)
    assert _members(dc1) == NODES["dc1"]
    assert {**dc1.ready(), **dc2.ready()} == dict.fromkeys([*NODES["dc1"], *NODES["dc2"]], True)


def test_an_upgrade_loses_no_request_and_no_identity(
    mesh: Datacenters, dc1: Cluster, dc2: Cluster, called: dict[str, Any]
) -> None:
    before = _identities(mesh)
    began = time.monotonic()
    with load_from_host(mesh["dc1-c1"], UPSTREAM) as to_dc2, load_from_host(mesh["dc2-c1"], UPSTREAM) as to_dc1:
        playbook("upgrade_kubernetes.yml", INVENTORY)
    measured(f"upgrade of both clusters, five nodes: {time.monotonic() - began:.0f} s")
    measured(f"while they were upgraded: {to_dc2['good']} requests into dc2 and {to_dc1['good']} into dc1")
    assert (to_dc2["failed"], to_dc1["failed"]) == ([], [])
    assert to_dc2["good"] > 1000
    assert to_dc1["good"] > 1000
    assert _versions(dc1) == dict.fromkeys(NODES["dc1"], NEW)
    assert _versions(dc2) == dict.fromkeys(NODES["dc2"], NEW)
    assert {**dc1.ready(), **dc2.ready()} == dict.fromkeys([*NODES["dc1"], *NODES["dc2"]], True)
    assert _members(dc1) == NODES["dc1"]
    assert _identities(mesh) == before
    for name, identity in called.items():
        assert json.loads(mesh[name].ok(f"curl -s -m 5 {UPSTREAM}"))["caller"] == identity


def test_a_second_upgrade_and_a_second_run_change_nothing() -> None:
    began = time.monotonic()
    assert set(playbook("upgrade_kubernetes.yml", INVENTORY).values()) == {0}
    measured(f"upgrade playbook when there is nothing to do: {time.monotonic() - began:.0f} s")


def test_there_is_no_way_back() -> None:
    said = _refusal("upgrade_kubernetes.yml", "--extra-vars=kubernetes_version=1.36.3")
    assert "one minor version at a time, and never back" in said


def test_a_control_plane_that_dies_is_not_missed(mesh: Datacenters, called: dict[str, Any]) -> None:
    rest = Cluster(mesh["dc1-k2"])
    with load_from_host(mesh["dc2-c1"], UPSTREAM) as result:
        with crashed(mesh, "dc1-k1"):
            began = time.monotonic()
            until(lambda: not rest.ready()["dc1-k1"], "the others see that it is away", 180)
            measured(f"control plane killed to NotReady: {time.monotonic() - began:.0f} s")
            rest.kubectl("-n", NAMESPACE, "create", "configmap", "written-without-it")
        until(lambda: rest.ready()["dc1-k1"], "it is back", 240)
    lost = result["failed"]
    measured(f"a control plane with a pod of the service killed: {result['good']} requests, {len(lost)} failed")
    assert len(lost) <= 2, "more than what was under way on its two connections"
    until(lambda: _members(Cluster(mesh["dc1-k1"])) == NODES["dc1"], "all members of etcd", 120)


def test_a_control_plane_is_replaced(mesh: Datacenters, dc1: Cluster) -> None:
    playbook("remove_node.yml", INVENTORY, "--limit=dc1-k3")
    assert _members(dc1) == ["dc1-k1", "dc1-k2"]
    assert sorted(dc1.ready()) == ["dc1-k1", "dc1-k2"]
    began = time.monotonic()
    changes = playbook("add_node.yml", INVENTORY, "--limit=dc1-k3")
    measured(f"a control plane added: {time.monotonic() - began:.0f} s")
    assert set(changes) == {"dc1-k3"}
    assert _members(dc1) == NODES["dc1"]
    until(lambda: dc1.ready() == dict.fromkeys(NODES["dc1"], True), "all are ready")


def test_a_cluster_is_given_up_after_a_question(mesh: Datacenters, dc1: Cluster, dc2: Cluster) -> None:
    assert "Nothing was changed. Answer 'destroy'" in _refusal("reset.yml", "--limit=dc_dc2")
    assert dc2.ready() == dict.fromkeys(NODES["dc2"], True)
    sure = "--extra-vars=kubernetes_reset=destroy"
    playbook("reset.yml", INVENTORY, "--limit=dc_dc2", sure)
    for name in NODES["dc2"]:
        left = mesh[name].ok("ls -d /etc/kubernetes /etc/cni /var/lib/etcd /var/lib/kubelet/pki 2>/dev/null || true")
        assert left.strip() == ""
        assert mesh[name].run("pgrep -x 'kubelet|etcd|kube-apiserver|kube-proxy'")[0] != 0
        assert "kube-proxy" not in mesh[name].ok("nft list tables")
        assert mesh[name].api_status("/v1/agent/self")[0] == 200, "the mesh stays"
    assert set(playbook("reset.yml", INVENTORY, "--limit=dc_dc2", sure).values()) == {0}
    assert dc1.ready() == dict.fromkeys(NODES["dc1"], True)


def test_and_made_again(mesh: Datacenters, dc2: Cluster) -> None:
    playbook("site.yml", INVENTORY)
    assert dc2.ready() == dict.fromkeys(NODES["dc2"], True)
    assert set(playbook("site.yml", INVENTORY).values()) == {0}


def _refusal(name: str, *more: str) -> str:
    """What a playbook says that must fail, run without a terminal."""
    done = subprocess.run(
        ["ansible-playbook", f"playbooks/{name}", INVENTORY, *more],
        cwd=Path(os.environ["MESH_PROJECT"]),
        env=os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0, done.stdout[-2000:]
    return " ".join((done.stdout + done.stderr).replace("\\'", "'").split())
