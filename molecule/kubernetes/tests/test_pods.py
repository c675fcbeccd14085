"""Pods as members of the mesh: names, identities, intentions, and what must go on when things are changed or break."""

import json
import re
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clusters import Cluster, ask, execute, load, pod_of, refused
from support import Datacenters, measured, until
from workloads import NAMESPACE, intentions, job, namespace, probed, service

pytestmark = pytest.mark.timeout(600)
SHOP = "spiffe://mesh.internal/ns/default/dc/dc1/svc/shop"
STOCK = "spiffe://mesh.internal/ns/default/dc/dc2/svc/stock"
WEB = "spiffe://mesh.internal/ns/default/dc/dc1/svc/web"
STOCK_URL, API_URL, SHOP_URL = (
    "http://stock.service.dc2.mesh:8080/",
    "http://api.service.dc2.mesh:9090/",
    "http://shop.service.dc1.mesh:8080/",
)


@pytest.fixture(scope="module", autouse=True)
def workloads(mesh: Datacenters, dc1: Cluster, dc2: Cluster, image: str) -> Iterator[None]:
    """`shop` on the worker of dc1, `stock` in dc2; they and the services of the plain hosts may call each other."""
    dc1.apply(*namespace(), *service("shop", image, node="dc1-k2"), intentions("shop", stock="allow"))
    dc2.apply(*namespace(), *service("stock", image), intentions("stock", shop="allow", web="allow"))
    mesh["dc1-s1"].api("/v1/connect/intentions/exact?source=shop&destination=api", "PUT", {"Action": "allow"})
    for cluster, name in ((dc1, "shop"), (dc2, "stock")):
        cluster.kubectl("-n", NAMESPACE, "rollout", "status", f"deployment/{name}", "--timeout=180s")
    yield
    for cluster in (dc1, dc2):
        cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=180s")


# names, identities, intentions


def test_a_pod_calls_a_plain_host_and_a_pod_of_the_other_datacenter(dc1: Cluster) -> None:
    until(lambda: ask(dc1, "shop", API_URL)["caller"] == SHOP, "the plain host's api sees the pod's identity")
    answer = ask(dc1, "shop", STOCK_URL)
    assert (answer["service"], answer["caller"]) == ("stock", SHOP)


def test_the_reverse(mesh: Datacenters, dc2: Cluster) -> None:
    until(lambda: ask(dc2, "stock", SHOP_URL)["caller"] == STOCK, "a pod of dc2 calls a pod of dc1")
    web = mesh["dc1-c1"]
    until(
        lambda: json.loads(web.ok("curl -s -m 5 http://127.0.0.1:9192/"))["caller"] == WEB, "a plain host calls a pod"
    )


def test_pods_are_found_by_name_from_plain_hosts(mesh: Datacenters, dc1: Cluster, dc2: Cluster) -> None:
    for cluster, app, name in ((dc1, "shop", "shop.service.dc1"), (dc2, "stock", "stock.service.dc2")):
        address = cluster.get("pod", "-n", NAMESPACE, pod_of(cluster, app))["status"]["podIP"]
        for host in ("dc1-c1", "dc2-c1"):
            for domain in ("mesh", "consul"):
                until(lambda h=host, n=f"{name}.{domain}", a=address: mesh[h].dig(n) == [a], f"{name} in {domain}")


def test_probes_of_every_kind_keep_working(mesh: Datacenters, dc2: Cluster, image: str) -> None:
    """Their ports are captured and speak mutual TLS alone, and kubelets have no certificate."""

    def passing() -> int:
        return len(mesh["dc1-c1"].api("/v1/health/service/probed?dc=dc2&passing"))

    dc2.apply(*probed("probed", image))
    dc2.kubectl("-n", NAMESPACE, "wait", "pod/probed", "--for=condition=Ready", "--timeout=180s")
    until(lambda: passing() == 1, "it is ready, and the mesh has heard of it")
    assert execute(dc2, "probed", "touch", "/tmp/unwell")[0] == 0
    until(lambda: passing() == 0, "what its gRPC health says counts")
    assert execute(dc2, "probed", "rm", "/tmp/unwell")[0] == 0
    until(lambda: passing() == 1, "it is well again")
    statuses = dc2.get("pod", "-n", NAMESPACE, "probed")["status"]["containerStatuses"]
    assert {each["name"]: each["restartCount"] for each in statuses} == {"main": 0, "beside": 0}
    dc2.kubectl("-n", NAMESPACE, "delete", "pod", "probed", "--timeout=60s")


def test_an_intention_that_goes_is_enforced_and_comes_back(dc1: Cluster, dc2: Cluster) -> None:
    try:
        dc2.apply(intentions("stock", web="allow"))
        seconds = until(lambda: refused(dc1, "shop", STOCK_URL), "shop is refused")
        measured(
            f"ServiceIntentions changed in dc2 to enforced for a pod in dc1: {seconds:.2f} s, two process starts in it"
        )
    finally:
        dc2.apply(intentions("stock", shop="allow", web="allow"))
    until(lambda: ask(dc1, "shop", STOCK_URL)["caller"] == SHOP, "shop may call again")
    (condition,) = dc2.get("serviceintentions", "-n", NAMESPACE, "stock")["status"]["conditions"]
    assert (condition["type"], condition["status"]) == ("Synced", "True")


def test_nothing_but_the_mesh_gets_in_or_out(mesh: Datacenters, dc1: Cluster) -> None:
    address = dc1.get("pod", "-n", NAMESPACE, pod_of(dc1, "shop"))["status"]["podIP"]
    for port in (8080, 20000):
        code, out = mesh["dc1-c1"].run(f"curl -s -m 5 http://{address}:{port}/")
        assert code != 0, f"plaintext from a host to port {port} of a pod: {out}"
    assert refused(dc1, "shop", "http://10.2.0.12:8600/"), "a port that no service of the mesh has"
    assert refused(dc1, "shop", "http://web.service.dc1.mesh:8080/"), "a service without an intention"


def test_a_pod_cannot_get_an_identity_with_another_token(dc1: Cluster) -> None:
    script = (
        "import json,os,ssl,sys,urllib.request;"
        "token=open('/var/run/secrets/kubernetes.io/serviceaccount/token').read();"
        "request=urllib.request.Request(f'https://{sys.argv[1]}:8504/v1/kubernetes/session',method='POST',data=b'{}',"
        "headers={'Authorization':'Bearer '+token});"
        "print(urllib.request.urlopen(request,timeout=5,context=ssl._create_unverified_context()).read())"
    )
    pod = dc1.get("pod", "-n", NAMESPACE, pod_of(dc1, "shop"))
    code, out = execute(dc1, "shop", "python3", "-c", script, pod["status"]["hostIP"])
    assert code != 0, f"the application's own token gave a session: {out}"
    mounts = [m["mountPath"] for each in pod["spec"]["containers"] for m in each["volumeMounts"]]
    assert not [path for path in mounts if "mesh" in path], "nothing of the sidecar's is in the application"


# change and loss


def test_no_plaintext_leaves_while_pods_start_and_stop(
    mesh: Datacenters, dc1: Cluster, image: str, tmp_path: Path
) -> None:
    marker = f"marker-{secrets.token_hex(8)}"
    url = STOCK_URL + marker
    script = (
        "import time,urllib.request\n"
        "for _ in range(400):\n"
        "    try:\n"
        f"        assert urllib.request.urlopen('{url}', timeout=5).status == 200; break\n"
        "    except OSError:\n"
        "        time.sleep(0.05)\n"
        "else:\n"
        "    raise SystemExit('never answered')\n"
    )
    starts = 50
    began = time.monotonic()
    with _capture(mesh, tmp_path) as stop:
        dc1.apply(job("burst", "shop", image, script, count=starts, at_once=10))
        dc1.kubectl("-n", NAMESPACE, "wait", "--for=condition=Complete", "job/burst", "--timeout=400s")
        packets = stop()
    assert len(packets) > 100_000
    assert marker.encode() not in packets
    measured(f"{starts} injected pods started, called and ended in {time.monotonic() - began:.0f} s, none in plaintext")
    with _capture(mesh, tmp_path) as stop:
        plain = script.replace(STOCK_URL, "http://10.1.0.12:7777/")
        mesh["dc1-c1"].ok("systemd-run --unit plain-control --collect python3 -m http.server 7777 --directory /")
        try:
            plain = plain.replace("except OSError", "except urllib.error.HTTPError:\n        break\n    except OSError")
            dc1.apply(job("control", "shop", image, "import urllib.error\n" + plain, count=1, at_once=1, inject=False))
            dc1.kubectl("-n", NAMESPACE, "wait", "--for=condition=Complete", "job/control", "--timeout=120s")
        finally:
            mesh["dc1-c1"].run("systemctl stop plain-control")
        assert marker.encode() in stop(), "the capture would have seen it"


@contextmanager
def _capture(mesh: Datacenters, directory: Path) -> Iterator[Any]:
    """Everything on the WAN link, and on the network and the pods' bridge of both nodes of dc1; `stop()` gives the bytes."""
    places = [("@dc1", "wan0"), ("dc1-k1", "any"), ("dc1-k2", "any")]
    files, processes = [directory / f"{secrets.token_hex(4)}.pcap" for _ in places], []
    try:
        for (where, device), file in zip(places, files, strict=True):
            netns = ["ip", "netns", "exec", f"{mesh.lab.name}-{where}"] if where[0] != "@" else mesh.lab.enter(where)
            line = [
                *netns,
                "tcpdump",
                "-i",
                device,
                "-U",
                "--immediate-mode",
                "-s",
                "0",
                "-w",
                str(file),
                "-Z",
                "root",
                "not",
                "port",
                "6443",
            ]
            process = subprocess.Popen(line, stderr=subprocess.PIPE)
            processes.append(process)
            assert process.stderr is not None
            while b"listening" not in (said := process.stderr.readline()):
                assert said, "tcpdump ended"

        def stop() -> bytes:
            last = secrets.token_hex(16)
            mesh["dc1-k1"].ok(f"ping -c 1 -p {last} 10.1.0.22 && ping -c 1 -p {last} 10.2.0.12")
            for file in files:
                until(lambda f=file: bytes.fromhex(last) in f.read_bytes(), "the last packet is in the capture")
            return b"".join(file.read_bytes() for file in files)

        yield stop
    finally:
        for process in processes:
            process.terminate()
            process.wait()
            process.stderr.close()


def test_an_agent_that_restarts_loses_no_request(mesh: Datacenters, dc1: Cluster) -> None:
    with load(dc1, "shop", STOCK_URL) as result:
        for _ in range(3):
            mesh["dc1-k2"].ok("systemctl restart mesh-agent")
            until(lambda: mesh["dc1-k2"].api_status("/v1/agent/self")[0] == 200, "the agent answers")
            until(lambda: ask(dc1, "shop", API_URL)["caller"] == SHOP, "and the pod's names resolve")
    assert result["failed"] == []
    assert result["good"] > 20
    measured(f"agent of the node restarted three times: {result['good']} requests of its pod, none failed")


def test_scaling_is_followed_by_names_endpoints_and_catalog(mesh: Datacenters, dc1: Cluster, dc2: Cluster) -> None:
    def ready() -> int:
        return int(dc2.get("deployment", "-n", NAMESPACE, "stock")["status"].get("readyReplicas", 0))

    def known() -> tuple[int, int]:
        found = mesh["dc1-c1"].api("/v1/health/connect/stock?dc=dc2&passing")
        return len(mesh["dc1-c1"].dig("stock.service.dc2.mesh +tcp")), len(found)

    for count in (20, 1):
        with load(dc1, "shop", STOCK_URL) as result:
            dc2.kubectl("-n", NAMESPACE, "scale", "deployment/stock", f"--replicas={count}")
            until(lambda c=count: ready() == c, f"{count} pods are ready", 240)
            seconds = until(lambda c=count: known() == (c, c), "names and catalog have them all")
            measured(
                f"scaled to {count}: followed by DNS and catalog of the other datacenter within {seconds:.2f} s, two process starts in it"
            )
        assert result["failed"] == []
        measured(f"while scaling to {count}: {result['good']} requests from the other datacenter, none failed")


def test_without_an_injector_the_system_goes_on_and_nothing_starts_outside_the_mesh(dc1: Cluster) -> None:
    injector = dc1.get("deployments", "-n", "mesh-system", "-l", "app.kubernetes.io/component=injector")["items"][0][
        "metadata"
    ]["name"]
    dc1.kubectl("-n", "mesh-system", "scale", f"deployment/{injector}", "--replicas=0")
    try:
        until(
            lambda: not dc1.get("pods", "-n", "mesh-system", "-l", "app.kubernetes.io/component=injector")["items"],
            "it is gone",
            120,
        )
        before = dc1.get("pods", "-n", "kube-system", "-l", "k8s-app=kube-dns")["items"]
        dc1.kubectl("-n", "kube-system", "delete", "pod", before[0]["metadata"]["name"])
        dc1.kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")
        dc1.kubectl("-n", NAMESPACE, "scale", "deployment/shop", "--replicas=2")
        until(
            lambda: "failed calling webhook" in dc1.kubectl("-n", NAMESPACE, "get", "events"),
            "a pod of the mesh is refused",
        )
        assert ask(dc1, "shop", STOCK_URL)["caller"] == SHOP, "and the one that runs goes on"
    finally:
        dc1.kubectl("-n", NAMESPACE, "scale", "deployment/shop", "--replicas=1")
        dc1.kubectl("-n", "mesh-system", "scale", f"deployment/{injector}", "--replicas=1")
        dc1.kubectl("-n", "mesh-system", "rollout", "status", f"deployment/{injector}", "--timeout=120s")


def test_a_cut_wan_leaves_pods_of_both_datacenters_alive(
    mesh: Datacenters, dc1: Cluster, dc2: Cluster, wan: Any
) -> None:
    wan("drop")
    until(lambda: refused(dc1, "shop", "http://api.service.dc2.mesh:9090/"), "the other datacenter is not reached")
    address = dc2.get("service", "-n", NAMESPACE, "stock")["spec"]["clusterIP"]
    assert re.fullmatch(r"10\.112\..*", address)
    assert mesh["dc2-c1"].dig("stock.service.mesh") != "SERVFAIL"
    assert mesh["dc1-c1"].dig("shop.service.mesh") != "SERVFAIL"
    wan("heal")
    until(lambda: ask(dc1, "shop", API_URL)["caller"] == SHOP, "healed")
    until(lambda: ask(dc2, "stock", SHOP_URL)["caller"] == STOCK, "in both directions")


# the chart


def _helm(cluster: Cluster, *arguments: str) -> str:
    helm = "/srv/artifacts/helm-3.22.0/helm --kubeconfig=/etc/kubernetes/admin.conf --namespace=mesh-system"
    return cluster.control_plane.ok(helm + " %s" * len(arguments), *arguments)


def test_the_chart_is_upgraded_and_rolled_back_under_load(dc1: Cluster) -> None:
    with load(dc1, "shop", STOCK_URL) as result:
        _helm(
            dc1,
            "upgrade",
            "mesh",
            "/opt/mesh/chart/chart.tgz",
            "--reuse-values",
            "--set=logLevel=debug",
            "--wait",
            "--timeout=240s",
        )
        _helm(dc1, "rollback", "mesh", "--wait", "--timeout=240s")
    assert result["failed"] == []
    measured(f"helm upgrade and rollback: {result['good']} requests, none failed")


def test_the_charts_own_tests_pass(dc2: Cluster) -> None:
    assert "Phase:          Succeeded" in _helm(dc2, "test", "mesh", "--timeout=240s")


def test_the_chart_leaves_nothing_but_its_definitions(dc1: Cluster, image: str) -> None:
    """Last: afterwards there is no chart in dc1."""
    dc1.kubectl("delete", "namespace", NAMESPACE, "--timeout=180s")
    _helm(dc1, "uninstall", "mesh", "--wait", "--timeout=180s")
    kinds = "deployments,daemonsets,services,serviceaccounts,configmaps,secrets,roles,rolebindings,clusterroles,clusterrolebindings"
    kinds += ",mutatingwebhookconfigurations,networkpolicies,poddisruptionbudgets,leases"
    left = dc1.get(kinds, "--all-namespaces", "-l", "app.kubernetes.io/instance=mesh")["items"]
    assert [f"{each['kind']} {each['metadata']['name']}" for each in left] == []
    definitions = [each["metadata"]["name"] for each in dc1.get("customresourcedefinitions")["items"]]
    assert len([name for name in definitions if name.endswith(".mesh.openmesh.io")]) == 3
    dc1.apply(*namespace())
