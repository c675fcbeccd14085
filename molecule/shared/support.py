"""What the scenarios' tests share: hosts of the lab, the lab itself, waiting, and a summary of what was measured.

MESH_PROJECT and MESH_LAB_INVENTORY (default: inventory/lab) say which lab, MESH_LAB_NAME what it is called.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import testinfra

from mesh_agent.lab.lab import Lab
from mesh_agent.lab.spec import read
from mesh_agent.lab.testinfra_backend import register

register()
MEASURED: list[str] = []
JOURNAL = "journalctl --no-pager -o short-precise -n 100 -u 'mesh-*' -u kubelet --since '-5 min'"


class Node:
    """A host of the lab."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.host = testinfra.get_host(f"lab://{name}")

    def run(self, command: str, *arguments: str) -> tuple[int, str]:
        """Exit code and output of a shell command."""
        done = self.host.run(command, *arguments)
        return done.rc, done.stdout

    def ok(self, command: str, *arguments: str) -> str:
        """Output of a command that must succeed."""
        done = self.host.run(command, *arguments)
        assert done.rc == 0, f"{self.name}: {command}: {done.rc}\n{done.stdout}{done.stderr}"
        return str(done.stdout)

    def dig(self, name: str, *, server: str = "") -> list[str] | str:
        """Addresses of a name by the host's own resolver, sorted, or the rcode."""
        return self.timed_dig(name, server=server)[0]

    def timed_dig(self, name: str, *, server: str = "") -> tuple[list[str] | str, float]:
        """The same, and how long the answer took in seconds, without the start of the process; infinity if there was none."""
        answer = self.ok(f"dig +tries=1 +time=4 {server} {name} A || true")
        status = answer.partition("status: ")[2].partition(",")[0]
        took_s = float(answer.partition("Query time: ")[2].partition(" ")[0] or "inf") / 1000
        if status != "NOERROR":
            return status or "TIMEOUT", took_s
        rows = [line.split() for line in answer.splitlines() if line and not line.startswith(";")]
        return sorted(row[4] for row in rows if row[3] == "A"), took_s

    def api(self, path: str, method: str = "GET", body: object = None) -> Any:
        """JSON of the agent's HTTP API; AssertionError for an error status."""
        status, text = self.api_status(path, method, body)
        assert status == 200, f"{self.name} {method} {path}: {status} {text}"
        return json.loads(text) if text.strip() else None

    def api_status(self, path: str, method: str = "GET", body: object = None) -> tuple[int, str]:
        """Status and text of the agent's HTTP API."""
        data = "" if body is None else json.dumps(body)
        out = self.ok(
            "curl -s -m 20 -X %s -d %s -w '\\n%%{http_code}' %s", method, data, f"http://127.0.0.1:8500{path}"
        )
        text, _, status = out.rpartition("\n")
        return int(status), text

    def timed_status(self, path: str) -> tuple[int, float]:
        """Status of a GET of the agent's HTTP API, and how long it took in seconds, without the start of the process."""
        what = "%%{http_code} %%{time_total}"
        status, took_s = self.ok(f"curl -s -m 20 -o /dev/null -w '{what}' %s", f"http://127.0.0.1:8500{path}").split()
        return int(status), float(took_s)


class Datacenters:
    """All hosts, and the lab that they are in."""

    def __init__(self) -> None:
        inventory = Path(os.environ["MESH_PROJECT"], os.environ.get("MESH_LAB_INVENTORY", "inventory/lab"))
        self.lab = Lab(os.environ["MESH_LAB_NAME"], read(inventory), lambda text: None)
        self.nodes = {host.name: Node(host.name) for host in self.lab.spec.hosts}
        self.address = {host.name: host.address for host in self.lab.spec.hosts}

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]


@pytest.fixture(scope="session")
def mesh() -> Datacenters:
    """The mesh."""
    return Datacenters()


@pytest.fixture
def wan(mesh: Datacenters):  # type: ignore[no-untyped-def]
    """Changes the WAN; it is as new afterwards."""
    try:
        yield mesh.lab.wan
    finally:
        mesh.lab.wan("heal")


@contextmanager
def crashed(mesh: Datacenters, name: str) -> Iterator[None]:
    """A host without power as long as the block runs: a test that fails in it does not take the next ones with it."""
    mesh.lab.crash(name)
    try:
        yield
    finally:
        mesh.lab.start(name)


def until(condition: Callable[[], Any], what: str, deadline_s: float = 60.0) -> float:
    """Wait for `condition` to hold; how long that took, in seconds. An answer that cannot be read yet is no answer."""
    started = time.monotonic()
    last: object = None
    while time.monotonic() - started < deadline_s:
        try:
            last = condition()
            if last:
                return time.monotonic() - started
        except (AssertionError, LookupError, ValueError) as error:
            last = error
        time.sleep(0.05)
    pytest.fail(f"not within {deadline_s:g} s: {what} (last: {last})")


def measured(text: str) -> None:
    """Remember a figure for the summary."""
    MEASURED.append(text)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Show with a test that failed what the hosts' journals say of the mesh."""
    report = yield
    if report.failed:
        nodes = getattr(item, "funcargs", {}).get("mesh")
        for name, node in nodes.nodes.items() if nodes else ():
            report.sections.append((f"journal of {name}", node.run(JOURNAL)[1]))
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what was measured."""
    terminalreporter.section("measured")
    for line in MEASURED:
        terminalreporter.write_line(line)
