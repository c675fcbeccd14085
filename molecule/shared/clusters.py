"""The clusters of the scenarios: kubectl of each datacenter, what runs in pods, requests from pods, and playbooks run by a test."""

import json
import os
import re
import secrets
import shlex
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import Datacenters, Node
from workloads import NAMESPACE

ASK = "import sys,urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())"


class Cluster:
    """The cluster of one datacenter, by the kubectl of its control plane host."""

    def __init__(self, control_plane: Node) -> None:
        self.control_plane = control_plane

    def kubectl(self, *arguments: str) -> str:
        """Output of a command that must succeed."""
        return self.control_plane.ok("kubectl" + " %s" * len(arguments), *arguments)

    def get(self, *arguments: str) -> Any:
        """What `kubectl get` says, as JSON."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Create or change objects."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        self.control_plane.ok("printf %%s %s | kubectl apply -f -", text)

    def ready(self) -> dict[str, bool]:
        """Each node, and whether it is Ready."""
        return {node["metadata"]["name"]: _condition(node, "Ready") for node in self.get("nodes")["items"]}

    @contextmanager
    def pod(self, name: str, image: str, *, node: str = "", command: str = "exec sleep 3600") -> Iterator[str]:
        """A pod that runs a command until the test is over; its address."""
        line = ["/bin/sh", "-c", command]
        container = {"name": "main", "image": image, "imagePullPolicy": "IfNotPresent", "command": line}
        spec = {"containers": [container], "terminationGracePeriodSeconds": 0, "restartPolicy": "Always"}
        if node:
            spec["nodeName"] = node
        self.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
        try:
            self.kubectl("wait", "--for=condition=Ready", "--timeout=120s", f"pod/{name}")
            yield self.get("pod", name)["status"]["podIP"]
        finally:
            self.kubectl("delete", "pod", name, "--ignore-not-found", "--wait=true", "--force", "--grace-period=0")

    def in_pod(self, name: str, *command: str) -> str:
        """Output of a command in a pod."""
        return self.kubectl("exec", name, "--", *command)


def _condition(thing: dict[str, Any], name: str) -> bool:
    return any(each["type"] == name and each["status"] == "True" for each in thing["status"].get("conditions", ()))


def playbook(name: str, *more: str) -> dict[str, int]:
    """Run a playbook of the project with further arguments; how many changes each host saw."""
    done = subprocess.run(
        ["ansible-playbook", f"playbooks/{name}", *more],
        cwd=Path(os.environ["MESH_PROJECT"]),
        env=os.environ | {"ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    recap = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)", done.stdout, re.MULTILINE)
    return {host: int(changed) for host, changed in recap}


def pod_of(cluster: Cluster, app: str) -> str:
    """Name of a running pod of an app."""
    found = cluster.get("pods", "-n", NAMESPACE, "-l", f"app={app}", "--field-selector=status.phase=Running")["items"]
    alive = [each["metadata"]["name"] for each in found if "deletionTimestamp" not in each["metadata"]]
    assert alive, f"no pod of {app} runs"
    return str(alive[0])


def execute(cluster: Cluster, app: str, *command: str) -> tuple[int, str]:
    """Exit code and output of a command in a pod of an app."""
    line = ("kubectl", "-n", NAMESPACE, "exec", pod_of(cluster, app), "-c", "main", "--", *command)
    done = cluster.control_plane.host.run("%s " * len(line) + "2>&1", *line)
    return done.rc, done.stdout


def ask(cluster: Cluster, app: str, url: str) -> dict[str, Any]:
    """What a pod gets from a URL; AssertionError if nothing."""
    code, out = execute(cluster, app, "python3", "-c", ASK, url)
    assert code == 0, out
    return dict(json.loads(out))


def refused(cluster: Cluster, app: str, url: str) -> bool:
    """Whether a pod gets nothing from a URL."""
    return execute(cluster, app, "python3", "-c", ASK, url)[0] != 0


@contextmanager
def load(cluster: Cluster, app: str, url: str) -> Iterator[dict[str, Any]]:
    """Requests from a pod as long as the block runs; yields a dict that has `good` and `failed` afterwards."""
    within = ("kubectl", "-n", NAMESPACE, "exec", pod_of(cluster, app), "-c", "main", "--")
    with _requests(cluster.control_plane, within, "/programs/load.py", url) as result:
        yield result


@contextmanager
def load_from_host(node: Node, url: str) -> Iterator[dict[str, Any]]:
    """The same from a host."""
    program = f"/tmp/load-{secrets.token_hex(4)}.py"
    node.ok("printf %%s %s > %s", Path(__file__).with_name("load.py").read_text(encoding="utf-8"), program)
    with _requests(node, (), program, url) as result:
        yield result


@contextmanager
def _requests(node: Node, within: tuple[str, ...], program: str, url: str) -> Iterator[dict[str, Any]]:
    stop, result = f"/tmp/stop-{secrets.token_hex(4)}", dict[str, Any]()

    def run() -> None:
        result.update(json.loads(node.ok(shlex.join([*within, "python3", program, url, stop]))))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield result
    finally:
        node.ok(shlex.join([*within, "touch", stop]))
        thread.join()


@pytest.fixture(scope="session")
def image(mesh: Datacenters) -> str:
    """An image that every node has: that of the mesh."""
    return mesh["dc1-k1"].ok("head -1 /srv/artifacts/mesh/IMAGES").strip()


@pytest.fixture(scope="session")
def dc1(mesh: Datacenters) -> Cluster:
    """The cluster of dc1."""
    return Cluster(mesh["dc1-k1"])


@pytest.fixture(scope="session")
def dc2(mesh: Datacenters) -> Cluster:
    """The cluster of dc2."""
    return Cluster(mesh["dc2-k1"])
