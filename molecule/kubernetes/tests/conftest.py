"""Fixtures: what all scenarios share, and the clusters."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))

from support import Datacenters, Node, measured, mesh, pytest_terminal_summary, until, wan

__all__ = [
    "Cluster",
    "Datacenters",
    "Node",
    "dc1",
    "dc2",
    "measured",
    "mesh",
    "pytest_terminal_summary",
    "until",
    "wan",
]


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


@pytest.fixture(scope="session")
def dc1(mesh: Datacenters) -> Cluster:
    """The cluster of dc1."""
    return Cluster(mesh["dc1-k1"])


@pytest.fixture(scope="session")
def dc2(mesh: Datacenters) -> Cluster:
    """The cluster of dc2."""
    return Cluster(mesh["dc2-k1"])
