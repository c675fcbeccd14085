"""Show the mesh of the lab at work: members, a lookup across datacenters, a request over mutual TLS, a refused one. Exit code 1 if any of it is not so.

usage: proof.py [--inventory inventory/lab]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mesh_agent.lab.lab import Lab
from mesh_agent.lab.spec import read

CALLER, CALLED, URL = "dc1-c1", "api.service.dc2.mesh", "http://127.0.0.1:9191/"
INTENTION = "http://127.0.0.1:8500/v1/connect/intentions/exact?source=web&destination=api"
WEB = "spiffe://mesh.internal/ns/default/dc/dc1/svc/web"
SHOP = "spiffe://mesh.internal/ns/default/dc/dc1/svc/shop"
CONTROL_PLANE = "dc1-k1"
POD = """
apiVersion: v1
kind: Namespace
metadata: {name: demo, labels: {mesh.openmesh.io/inject: enabled, pod-security.kubernetes.io/enforce: privileged}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: shop, namespace: demo}
---
apiVersion: v1
kind: Pod
metadata: {name: shop, namespace: demo}
spec:
  serviceAccountName: shop
  securityContext: {runAsUser: 1000, runAsGroup: 1000}
  containers:
    - {name: main, image: "IMAGE", imagePullPolicy: IfNotPresent, command: [python3, -m, http.server, "8080"], ports: [{containerPort: 8080}]}
"""
DEADLINE_S = 60.0
STATUS = {1: "[green]alive[/]", 2: "leaving", 3: "left", 4: "[red]failed[/]"}


class Proof:
    """Asks hosts of a lab and prints what they answer."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._console = Console(highlight=False, soft_wrap=True)
        self.failed = 0

    def run(self, host: str, *command: str, given: str = "") -> str:
        """Output of a command in a host, whatever its exit code."""
        line = [*self._lab.enter(host), *command]
        return subprocess.run(line, capture_output=True, text=True, check=False, input=given).stdout

    def has(self, host: str) -> bool:
        """Whether the lab has a host of this name."""
        return any(each.name == host for each in self._lab.spec.hosts)

    def await_that(self, what: str, ask: Callable[[], str], good: Callable[[str], bool]) -> None:
        """Ask until the answer is good or time is up; print the last answer."""
        until = time.monotonic() + DEADLINE_S
        while not good(answer := ask().strip()) and time.monotonic() < until:
            time.sleep(0.1)
        fine = good(answer)
        self.failed += not fine
        self._console.print(f"{'[green]✓[/]' if fine else '[red]✗[/]'} [bold]{what}[/]")
        for text in answer.splitlines() or ["(no answer)"]:
            self._console.print(f"    {text}")

    def members(self) -> None:
        """A table of both LAN pools, as their servers see them."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 4), header_style="bold")
        for column in ("datacenter", "member", "address", "status", "role"):
            table.add_column(column)
        for host in self._lab.spec.hosts:
            if host.name.endswith("-s1"):
                for row in self._members_of(host.name):
                    table.add_row(host.datacenter, *row)
        self._console.print("[bold]Members of both datacenters[/]")
        self._console.print(table)

    def _members_of(self, server: str) -> list[list[str]]:
        found: list[dict[str, Any]] = json.loads(self.run(server, "mesh", "members", "-o", "json") or "[]")
        here = self._lab.spec.host(server).datacenter
        wanted = {each.name for each in self._lab.spec.hosts if each.datacenter == here and each.boot}
        self.failed += {member["Name"] for member in found if member["Status"] == 1} != wanted
        roles = {"consul": "server", "node": "client"}
        return [
            [m["Name"], m["Addr"], STATUS.get(m["Status"], "?"), roles.get(m["Tags"].get("role", ""), "?")]
            for m in sorted(found, key=lambda m: str(m["Name"]))
        ]


def prove(proof: Proof) -> None:
    """Everything that is to be seen."""
    call = ("curl", "-s", "-m", "5", URL)
    status = ("curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", URL)
    proof.members()
    proof.await_that(
        f"{CALLER} finds a service of the other datacenter: dig {CALLED}",
        lambda: proof.run(CALLER, "dig", "+short", CALLED),
        lambda answer: bool(answer) and all(line.startswith("10.2.0.") for line in answer.splitlines()),
    )
    proof.await_that(
        "web (dc1) calls api (dc2) over mutual TLS; api saw this identity",
        lambda: proof.run(CALLER, *call),
        lambda answer: WEB in answer,
    )
    deny = ("curl", "-s", "-m", "5", "-X", "PUT", "-d", '{"Action": "deny"}', INTENTION)
    allow = ("curl", "-s", "-m", "5", "-X", "PUT", "-d", '{"Action": "allow"}', INTENTION)
    try:
        proof.run(CALLER, *deny)
        proof.await_that(
            "the same call while the intention says deny: status",
            lambda: proof.run(CALLER, *status),
            lambda answer: answer in ("403", "000", "503"),
        )
    finally:
        proof.run(CALLER, *allow)
    proof.await_that("and allowed again: status", lambda: proof.run(CALLER, *status), lambda answer: answer == "200")
    plain = ("curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "http://10.2.0.12:21000/")
    proof.await_that(
        "a stranger without a certificate is refused by the sidecar of api: status (000 is a closed connection)",
        lambda: proof.run("dc1-c2" if proof.has("dc1-c2") else "dc1-s1", *plain),
        lambda answer: answer == "000",
    )


def prove_pods(proof: Proof) -> None:
    """A pod of one datacenter calls a plain host of the other, through its sidecar."""
    nodes = ("kubectl", "get", "nodes", "--no-headers")
    for host in (CONTROL_PLANE, "dc2-k1"):
        proof.await_that(
            f"nodes of the cluster, as {host} sees them",
            lambda h=host: proof.run(h, *nodes),
            lambda answer: bool(answer) and " NotReady " not in answer,
        )
    image = proof.run(CONTROL_PLANE, "head", "-1", "/srv/artifacts/mesh/IMAGES").strip()
    proof.run(CONTROL_PLANE, "kubectl", "apply", "-f", "-", given=POD.replace("IMAGE", image))
    allow = INTENTION.replace("source=web", "source=shop")
    proof.run(CALLER, "curl", "-s", "-m", "5", "-X", "PUT", "-d", '{"Action": "allow"}', allow)
    ask = f"import urllib.request; print(urllib.request.urlopen('http://{CALLED}:9090/', timeout=5).read().decode())"
    call = ("kubectl", "-n", "demo", "exec", "shop", "-c", "main", "--", "python3", "-c", ask)
    proof.await_that(
        f"a pod of dc1 calls http://{CALLED}:9090/ on a plain host of dc2; api saw this identity",
        lambda: proof.run(CONTROL_PLANE, *call),
        lambda answer: SHOP in answer,
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inventory", type=Path, default=Path("inventory/lab"))
    options = parser.parse_args()
    proof = Proof(Lab(os.environ.get("MESH_LAB_NAME", "lab"), read(options.inventory), lambda text: None))
    prove(proof)
    if proof.has(CONTROL_PLANE):
        prove_pods(proof)
    return 1 if proof.failed else 0


if __name__ == "__main__":
    sys.exit(main())
