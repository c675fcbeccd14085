"""Renders the chart with the real helm, and reads what comes out."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from mesh_agent.artifacts import layout
from mesh_agent.lab.machine import home

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "mesh"
CASES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
Object = dict[str, Any]  # a manifest


def program(name: str) -> str:
    """The newest helm or kubeconform among the artifacts, else that of the machine."""
    built = (home() / "artifacts").glob(f"{name}-*/{name}")
    newest = max(built, key=lambda path: layout.version_key(path.parent.name), default=None)
    found = str(newest) if newest is not None else shutil.which(name)
    assert found, f"{name} is missing; `mesh artifacts build {name}` makes it"
    return found


@dataclass(frozen=True)
class Rendered:
    """What helm made of some values, or why it refused them."""

    code: int
    text: str
    complaint: str

    @cached_property
    def objects(self) -> list[Object]:
        """The manifests, hooks and tests included."""
        assert self.code == 0, self.complaint
        return [found for found in yaml.safe_load_all(self.text) if found]

    def find(self, kind: str, name: str) -> Object:
        """One object."""
        found = [each for each in self.objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
        assert len(found) == 1, f"{len(found)} objects {kind}/{name}"
        return found[0]

    def of(self, *kinds: str) -> list[Object]:
        """All objects of some kinds."""
        return [each for each in self.objects if each["kind"] in kinds]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm, away from the settings and plug-ins of the machine."""
    environment = {"PATH": os.environ["PATH"], "HELM_NO_PLUGINS": "1"}
    for each in ("HOME", "HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"):
        environment[each] = "/nonexistent"
    return subprocess.run([program("helm"), *arguments], capture_output=True, text=True, env=environment, check=False)


@cache
def render(
    *values: Path, settings: tuple[str, ...] = (), namespace: str = "mesh-system", release: str = "mesh"
) -> Rendered:
    """`helm template` with values files and `--set` settings."""
    arguments = [
        "template",
        release,
        str(CHART),
        "--namespace",
        namespace,
        "--include-crds",
        "--kube-version",
        "1.37.2",
    ]
    for each in values:
        arguments += ["--values", str(each)]
    for setting in settings:
        arguments += ["--set", setting]
    done = helm(*arguments)
    return Rendered(done.returncode, done.stdout, done.stderr)


def case(name: str) -> Rendered:
    """The chart with the values of a case."""
    return render(CHART / "ci" / f"{name}-values.yaml")


def pods(found: Object) -> Iterator[Object]:
    """The pod specs that an object runs."""
    if found["kind"] == "Pod":
        yield found["spec"]
    elif found["kind"] in ("Deployment", "DaemonSet", "Job"):
        yield found["spec"]["template"]["spec"]
