"""Two clusters inside the mesh: nodes, names from pods, routes, crashes, a cut WAN, a node that comes and goes."""

import json
import time
from collections.abc import Iterator

import pytest
from clusters import Cluster, playbook
from support import Datacenters, Node, crashed, measured, until

pytestmark = pytest.mark.timeout(600)
API, WEB = "10.2.0.12", "10.1.0.12"
RESOLVE = (
    "import socket,sys; print(*sorted({each[4][0] for each in socket.getaddrinfo(sys.argv[1], 1, socket.AF_INET)}))"
)
FETCH = "import sys,urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).status)"
SERVE = "exec python3 -m http.server 8000"
SYNCHRONISED = "curl -s http://127.0.0.1:10249/metrics | grep -qE '^kubeproxy_sync_full_proxy_rules_duration_seconds_count.*IPv4.* [1-9]'"
INVENTORIES = ("--inventory=inventory/lab-kubernetes", "--inventory=inventory/lab-kubernetes-spare.yml")
PKI = "find /etc/kubernetes/pki /etc/kubernetes/*.conf -type f -exec sha256sum {} + | sort"


@pytest.fixture(scope="module")
def pods(dc1: Cluster, dc2: Cluster, image: str) -> Iterator[dict[str, str]]:
    """A pod on the worker of dc1 and one in dc2, both serve HTTP; their addresses."""
    with (
        dc1.pod("here", image, node="dc1-k2", command=SERVE) as here,
        dc2.pod("there", image, node="dc2-k1", command=SERVE) as there,
    ):
        yield {"here": here, "there": there}


def _resolve(cluster: Cluster, pod: str, name: str) -> str:
    return cluster.in_pod(pod, "python3", "-c", RESOLVE, name).strip()


def test_every_node_is_ready(dc1: Cluster, dc2: Cluster) -> None:
    until(lambda: dc1.ready() == {"dc1-k1": True, "dc1-k2": True}, "the nodes of dc1 are Ready")
    until(lambda: dc2.ready() == {"dc2-k1": True}, "and that of dc2")


def test_every_pod_of_the_system_is_ready(dc1: Cluster, dc2: Cluster) -> None:
    for cluster in (dc1, dc2):
        cluster.kubectl("wait", "pod", "-n", "kube-system", "--all", "--for=condition=Ready", "--timeout=120s")


def test_services_survive_a_full_synchronisation_of_kube_proxy(dc2: Cluster) -> None:
    """It makes one each time it starts, and each hour."""

    def led() -> set[str]:
        rules = json.loads(dc2.control_plane.ok("nft --json list map ip kube-proxy service-ips"))["nftables"]
        elements = next(each["map"] for each in rules if "map" in each).get("elem", [])
        return {str(element[0]) for element in elements}

    before = led()
    assert before
    for _ in range(2):
        dc2.kubectl("-n", "kube-system", "rollout", "restart", "daemonset/kube-proxy")
        dc2.kubectl("-n", "kube-system", "rollout", "status", "daemonset/kube-proxy", "--timeout=60s")
        until(lambda: dc2.control_plane.run(SYNCHRONISED)[0] == 0, "rules are written")
        assert led() == before


def test_nodes_are_members_of_the_mesh(mesh: Datacenters) -> None:
    wanted = {"dc1-s1": 1, "dc1-c1": 1, "dc1-k1": 1, "dc1-k2": 1}
    until(lambda: _members(mesh["dc1-k2"]) == wanted, "all are alive")


def _members(node: Node) -> dict[str, int]:
    return {member["Name"]: member["Status"] for member in node.api("/v1/agent/members")}


def test_a_pod_resolves_names_of_mesh_cluster_and_both_datacenters(
    dc1: Cluster, dc2: Cluster, pods: dict[str, str]
) -> None:
    for cluster, pod in ((dc1, "here"), (dc2, "there")):
        for domain in ("mesh", "consul"):
            assert _resolve(cluster, pod, f"api.service.dc2.{domain}") == API
            assert _resolve(cluster, pod, f"web.service.dc1.{domain}") == WEB
        assert _resolve(cluster, pod, "kubernetes.default").endswith(".0.1")


def test_pods_reach_each_other_across_datacenters_with_their_own_addresses(
    mesh: Datacenters, dc1: Cluster, dc2: Cluster, pods: dict[str, str]
) -> None:
    assert pods["here"].startswith("10.101.2.")
    assert pods["there"].startswith("10.102.1.")
    assert dc1.in_pod("here", "python3", "-c", FETCH, f"http://{pods['there']}:8000/").strip() == "200"
    assert dc2.in_pod("there", "python3", "-c", FETCH, f"http://{pods['here']}:8000/").strip() == "200"
    for pod in pods.values():
        assert mesh["dc1-c1"].ok(f"curl -s -m 5 -o /dev/null -w '%{{http_code}}' http://{pod}:8000/").strip() == "200"
    seen = dc2.kubectl("logs", "there")
    assert f"{pods['here']} - -" in seen, "the caller's own address is seen"


def test_the_agents_account_may_read_pods_and_little_else(dc1: Cluster) -> None:
    def may(verb: str, what: str) -> bool:
        who = "--as=system:serviceaccount:mesh-system:mesh-agent"
        return dc1.control_plane.run(f"kubectl auth can-i {who} --all-namespaces {verb} {what}")[0] == 0

    allowed = [
        ("watch", "pods"),
        ("list", "services"),
        ("get", "nodes"),
        ("create", "tokenreviews.authentication.k8s.io"),
    ]
    denied = [("get", "secrets"), ("delete", "pods"), ("create", "pods"), ("list", "nodes"), ("get", "configmaps")]
    assert [each for each in allowed if not may(*each)] == []
    assert [each for each in denied if may(*each)] == []


def test_the_token_is_for_the_agent_alone(mesh: Datacenters) -> None:
    for name in ("dc1-k1", "dc1-k2", "dc2-k1"):
        assert mesh[name].ok("stat -c '%U:%G %a' /etc/mesh/kubernetes/token").strip() == "root:mesh 640"
        assert mesh[name].run("su -s /bin/sh nobody -c 'cat /etc/mesh/kubernetes/token'")[0] != 0


def test_names_resolve_while_the_agents_of_the_nodes_are_away(
    mesh: Datacenters, dc1: Cluster, pods: dict[str, str]
) -> None:
    nodes = [mesh["dc1-k1"], mesh["dc1-k2"]]
    for node in nodes:
        node.ok("systemctl stop mesh-agent")
    try:
        until(lambda: _resolve(dc1, "here", "api.service.dc2.mesh") == API, "the datacenter's server answers")
    finally:
        for node in nodes:
            node.ok("systemctl start mesh-agent")
    until(lambda: _resolve(dc1, "here", "api.service.dc2.mesh") == API, "and the node's own agent again")


def test_a_cut_wan_leaves_both_clusters_alone(
    mesh: Datacenters, wan, dc1: Cluster, dc2: Cluster, image: str, pods: dict[str, str]
) -> None:  # type: ignore[no-untyped-def]
    wan("drop")
    for cluster, node, pod, name, address in (
        (dc1, "dc1-k2", "here", "web.service.dc1.mesh", WEB),
        (dc2, "dc2-k1", "there", "api.service.dc2.mesh", API),
    ):
        assert set(cluster.ready().values()) == {True}
        with cluster.pod("during-the-cut", image, node=node):
            assert _resolve(cluster, pod, name) == address
            until(lambda c=cluster, n=name, a=address: _resolve(c, "during-the-cut", n) == a, "a new pod resolves too")
    wan("heal")
    until(lambda: _resolve(dc1, "here", "api.service.dc2.mesh") == API, "names of the other datacenter again")
    assert dc1.in_pod("here", "python3", "-c", FETCH, f"http://{pods['there']}:8000/").strip() == "200"


def test_a_crashed_node_comes_back_with_its_pods(mesh: Datacenters, dc1: Cluster, pods: dict[str, str]) -> None:
    with crashed(mesh, "dc1-k2"):
        started = time.monotonic()
        # Of four nodes a suspect is dead after 4 s if two others confirm it, after 24 s if nobody does; before that up to 12 s for the probe.
        until(lambda: _members(mesh["dc1-s1"])["dc1-k2"] == 4, "the mesh sees that it failed", 120)
        measured(f"node killed to failed in the mesh: {time.monotonic() - started:.1f} s")
        until(lambda: not dc1.ready()["dc1-k2"], "the cluster sees it too", 180)
        measured(f"node killed to NotReady in its cluster: {time.monotonic() - started:.1f} s")
    started = time.monotonic()
    until(lambda: dc1.ready()["dc1-k2"], "the node is Ready again", 180)
    measured(f"node powered on to Ready: {time.monotonic() - started:.1f} s after boot")
    until(lambda: _resolve(dc1, "here", "api.service.dc2.mesh") == API, "its pod runs and resolves", 180)
    measured(f"node powered on to its pod at work: {time.monotonic() - started:.1f} s after boot")


# a node comes and goes


def test_a_new_node_becomes_a_full_member_of_mesh_and_cluster(
    mesh: Datacenters, dc1: Cluster, dc2: Cluster, image: str, pods: dict[str, str]
) -> None:
    before = {name: mesh[name].ok(PKI) for name in ("dc1-k1", "dc1-k2")}
    etcd = dc1.get("pods", "-n", "kube-system", "-l", "component=etcd")["items"][0]["status"]["containerStatuses"]
    mesh.lab.up(["dc1-k3"])
    started = time.monotonic()
    changes = playbook("add_node.yml", *INVENTORIES, "--limit=dc1-k3")
    measured(f"add a node by playbook: {time.monotonic() - started:.0f} s")
    assert set(changes) == {"dc1-k3"}
    until(lambda: dc1.ready() == {"dc1-k1": True, "dc1-k2": True, "dc1-k3": True}, "all are Ready")
    assert {name: mesh[name].ok(PKI) for name in before} == before, "no certificate was touched"
    assert (
        dc1.get("pods", "-n", "kube-system", "-l", "component=etcd")["items"][0]["status"]["containerStatuses"] == etcd
    )
    wanted = {"dc1-s1": 1, "dc1-c1": 1, "dc1-k1": 1, "dc1-k2": 1, "dc1-k3": 1}
    until(lambda: _members(mesh["dc1-k3"]) == wanted, "the new node knows all, and all are alive")
    with dc1.pod("newcomer", image, node="dc1-k3", command=SERVE) as address:
        assert address.startswith("10.101.3.")
        assert _resolve(dc1, "newcomer", "api.service.dc2.mesh") == API
        for cluster, pod in ((dc1, "here"), (dc2, "there")):
            assert cluster.in_pod(pod, "python3", "-c", FETCH, f"http://{address}:8000/").strip() == "200"
    assert playbook("add_node.yml", *INVENTORIES, "--limit=dc1-k3") == {"dc1-k3": 0}, "a second run changes nothing"


def test_a_node_that_is_removed_leaves_nothing(mesh: Datacenters, dc1: Cluster) -> None:
    playbook("remove_node.yml", *INVENTORIES, "--limit=dc1-k3")
    until(lambda: dc1.ready() == {"dc1-k1": True, "dc1-k2": True}, "the others are Ready")
    until(lambda: _members(mesh["dc1-s1"]).get("dc1-k3") in (None, 3), "it has left the mesh")
    assert [
        slice_["metadata"]["name"]
        for slice_ in dc1.get("endpointslices", "-n", "kube-system", "-l", "kubernetes.io/service-name=mesh-dns")[
            "items"
        ]
    ] == [
        "mesh-dns-dc1-k1",
        "mesh-dns-dc1-k2",
    ]
    for name in ("dc1-k1", "dc1-k2"):
        assert "10.101.3.0/24" not in mesh[name].ok("ip route; cat /etc/cni/routes")
    node: Node = mesh["dc1-k3"]
    assert node.ok("ls /etc/kubernetes /etc/cni /etc/mesh /var/lib/etcd 2>/dev/null || true").strip() == ""
    assert node.run("pgrep -x 'kubelet|mesh'")[0] != 0
    assert "kube-proxy" not in node.ok("nft list tables")
