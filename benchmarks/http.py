"""How many HTTP reads a second one process answers, next to the barest possible server in the same language on the same machine.

    python -m benchmarks.http [--seconds 3] [--connections 32] [--waiters 1000]

Both servers run alone in a process of their own (uvloop). The bare one is an `asyncio.Protocol` with httptools that sends the very bytes that ours sends,
without looking at anything but the target: the ceiling. The load comes from a third process that keeps connections open with one request under way on
each; `wrk` takes its place if it is installed. Reads are hot: the catalog does not change between them, except in the rows that say so.
The last rows wake blocking queries: how long after a change the first, the median and the last of the waiters has its answer.
"""

import argparse
import asyncio
import multiprocessing
import os
import re
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import httptools
import uvloop

from mesh_agent.catalog.runner import Catalog
from mesh_agent.clock import SystemClock
from mesh_agent.config import AgentConfig
from mesh_agent.http.api import Api
from mesh_agent.http.deps import Deps
from mesh_agent.http.message import Answer, Request, Response
from mesh_agent.http.server import HttpServer
from mesh_agent.model import Node, Service
from mesh_agent.telemetry import Metrics
from tests.support.catalog import ViewWriter

READS = [
    ("health, 3 instances", "/v1/health/service/web3?passing"),
    ("health, 50 instances", "/v1/health/service/web50?passing"),
    ("health, 50, never asked before", "/v1/health/service/web50?passing&fresh="),
    ("catalog, 3 instances", "/v1/catalog/service/web3"),
    ("leader", "/v1/status/leader"),
]
WAKES = [("3 instances", "web3"), ("50 instances", "web50")]
_HELD = 100
"""Blocking queries are opened in batches, so that no backlog overflows."""


class Api3:
    """The public API over a catalog with services of 3 and 50 instances; `PUT /change/<service>` changes one of them."""

    def __init__(self) -> None:
        self._writer = ViewWriter("dc1")
        for service, count in (("web3", 3), ("web50", 50)):
            for at in range(count):
                node = Node(name=f"node-{at}", address=f"10.0.0.{at + 1}", meta={"rack": "r1"})
                self._writer.instance(self._service(service, at, 0), node)
        self._changes = 0
        view = self._writer.view
        unused = cast(Any, None)  # not part of what is measured
        loop = asyncio.get_running_loop()

        def after(seconds: float, call: Callable[[], None]) -> Callable[[], None]:
            return loop.call_later(seconds, call).cancel

        class NoMembers:
            members: tuple[()] = ()

        deps = Deps(
            config=AgentConfig(node_name="bench", server=True),
            node_id="",
            version="",
            catalog=Catalog("dc1", view, lambda _: None, lambda: ["dc1"], lambda: True),
            agent=unused,
            lan=cast(Any, NoMembers()),
            wan=None,
            leafs=unused,
            forward=unused,
            writer=unused,
            metrics=Metrics(),
            clock=SystemClock(),
            leave=unused,
            after=after,
            future=loop.create_future,
        )
        self._api = Api(deps)

    def _service(self, name: str, at: int, change: int) -> Service:
        meta = {"version": "1.2.3", "change": str(change)}
        return Service(id=name, name=name, node=f"node-{at}", port=8080, tags=("primary", "v1"), meta=meta)

    def handle(self, request: Request) -> Answer | Awaitable[Answer]:
        """Answer a request."""
        if request.method == "PUT":
            self._changes += 1
            self._writer.put(self._service(request.path.rpartition("/")[2], 1, self._changes))
            return Response()
        return self._api.handle(request)


class Bare(asyncio.Protocol):
    """Answers every target with the bytes that were found for it before; queries with an index wait for `PUT /change/...`."""

    answers: dict[bytes, bytes] = {}  # noqa: RUF012 (one table for all connections)
    waiting: list[asyncio.Transport] = []  # noqa: RUF012

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url = url

    def on_message_complete(self) -> None:
        if self._url.startswith(b"/change/"):
            for transport in self.waiting:
                transport.write(self.answers[b"web3" if self._url.endswith(b"web3") else b"web50"])
            self.waiting.clear()
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        elif b"index=" in self._url:
            self.waiting.append(self._transport)
        else:
            known = self.answers.get(self._url)
            self._transport.write(known or self.answers[b"web3" if b"web3" in self._url else b"web50"])


def serve(kind: str, ready: Connection) -> None:
    """Run one server until killed; reports its port."""
    allow_many_files()

    async def main() -> None:
        api = Api3()
        if kind == "mesh":
            ready.send(await HttpServer(api.handle).start("127.0.0.1", 0))
            await asyncio.Event().wait()
        targets = [target for _, target in READS]
        for target in targets:
            path, _, query = target.partition("?")
            parameters = {part.partition("=")[0]: [part.partition("=")[2]] for part in query.split("&") if part}
            answer = api.handle(Request("GET", path, parameters, target=target))
            Bare.answers[target.encode()] = cast(Response, answer).encode(close=False)
        Bare.answers[b"web3"] = Bare.answers[READS[0][1].encode()]
        Bare.answers[b"web50"] = Bare.answers[READS[1][1].encode()]
        server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", 0, backlog=1024)
        ready.send(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    uvloop.run(main())


def allow_many_files() -> None:
    """A thousand waiters are a thousand sockets."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), most))


class Client(asyncio.Protocol):
    """One connection with one request under way; `done(client)` is called for each whole answer."""

    def __init__(self, done: Callable[["Client"], None]) -> None:
        self._done = done
        self._buffer = bytearray()
        self._wanted = 0
        self.head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, target: str, method: str = "GET") -> None:
        """Send a request."""
        self.asked_at = time.perf_counter()
        self.transport.write(f"{method} {target} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._wanted:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self.head = bytes(self._buffer[:end])
            self._wanted = end + 4 + int(re.search(rb"Content-Length: (\d+)", self.head)[1])  # type: ignore[index]
        if len(self._buffer) >= self._wanted:
            self._buffer.clear()
            self._wanted = 0
            self._done(self)


async def load_by_python(port: int, target: str, seconds: float, connections: int) -> tuple[float, float, float]:
    """(answers a second, median ms, 99th percentile ms)."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    serial = 0

    def next_target() -> str:
        nonlocal serial
        serial += 1
        return f"{target}{serial}" if target.endswith("=") else target

    def done(client: Client) -> None:
        latencies.append(time.perf_counter() - client.asked_at)
        client.ask(next_target())

    clients = [(await loop.create_connection(lambda: Client(done), "127.0.0.1", port))[1] for _ in range(connections)]
    started = time.perf_counter()
    for client in clients:
        client.ask(next_target())
    await asyncio.sleep(seconds)
    elapsed = time.perf_counter() - started
    found = sorted(latencies)
    for client in clients:
        client.transport.abort()
    return len(found) / elapsed, statistics.median(found) * 1e3, found[int(len(found) * 0.99)] * 1e3


async def wake(port: int, service: str, waiters: int, rounds: int) -> tuple[float, float, float]:
    """Milliseconds after a change at which the first, the median and the last waiter had its answer: the median of some rounds."""
    loop = asyncio.get_running_loop()
    arrived: list[float] = []
    arrival, everybody = asyncio.Event(), asyncio.Event()
    index = "1"

    def done(client: Client) -> None:
        nonlocal index
        arrived.append(time.perf_counter())
        arrival.set()
        found = re.search(rb"X-Consul-Index: (\d+)", client.head)
        index = found[1].decode() if found else index
        if len(arrived) >= waiters:
            everybody.set()

    changed = asyncio.Event()
    changer = (await loop.create_connection(lambda: Client(lambda _: changed.set()), "127.0.0.1", port))[1]
    clients = [(await loop.create_connection(lambda: Client(done), "127.0.0.1", port))[1] for _ in range(waiters)]
    results = []
    target = f"/v1/health/service/{service}?passing"
    first = (await loop.create_connection(lambda: Client(done), "127.0.0.1", port))[1]
    first.ask(target)
    await arrival.wait()
    for _ in range(rounds):
        arrived.clear()
        everybody.clear()
        for at in range(0, waiters, _HELD):
            for client in clients[at : at + _HELD]:
                client.ask(f"{target}&index={index}&wait=60s")
            await asyncio.sleep(0.05)
        started = time.perf_counter()
        changed.clear()
        changer.ask(f"/change/{service}", "PUT")
        await everybody.wait()
        await changed.wait()
        times = sorted(at - started for at in arrived)
        results.append((times[0], times[len(times) // 2], times[-1]))
    for client in [*clients, changer, first]:
        client.transport.abort()
    return cast(tuple[float, float, float], tuple(statistics.median(each) * 1e3 for each in zip(*results, strict=True)))


def load_by_wrk(port: int, target: str, seconds: float, connections: int) -> tuple[float, float, float]:
    """(answers a second, median ms, 99th percentile ms) as wrk counts them."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency"]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}{target}"], capture_output=True, text=True, check=True
    ).stdout

    def milliseconds(percent: str) -> float:
        amount, unit = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)", done).groups()  # type: ignore[union-attr]
        return float(amount) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]

    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", done)[1])  # type: ignore[index]
    return rate, milliseconds("50"), milliseconds("99")


def load(port: int, target: str, seconds: float, connections: int) -> tuple[float, float, float]:
    """As fast as can be."""
    if shutil.which("wrk") and not target.endswith("="):
        return load_by_wrk(port, target, seconds, connections)
    return uvloop.run(load_by_python(port, target, seconds, connections))


def resident_mib(pid: int) -> float:
    """RSS of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def report(ports: dict[str, int], pid: int, arguments: argparse.Namespace) -> None:
    """Measure and print; the bare server is measured again beside each row, for other load on the machine changes both."""
    print(f"{'':32}{'mesh/s':>8}{'bare/s':>9}{'ratio':>7}{'mesh p50/p99 ms':>18}{'bare p50/p99 ms':>18}")
    for title, target in READS:
        mesh = load(ports["mesh"], target, arguments.seconds, arguments.connections)
        bare = load(ports["bare"], target, arguments.seconds, arguments.connections)
        shown = "".join(f"{each[1]:9.2f} / {each[2]:6.2f}" for each in (mesh, bare))
        print(f"{title:32}{mesh[0]:8.0f}{bare[0]:9.0f}{mesh[0] / bare[0]:7.2f}{shown}", flush=True)
    print(f"\n{arguments.waiters} blocking queries woken{'':6}{'mesh first/median/last ms':>28}{'bare':>26}")
    for title, service in WAKES:
        found = [uvloop.run(wake(ports[kind], service, arguments.waiters, 5)) for kind in ("mesh", "bare")]
        shown = "".join(f"{each[0]:12.1f} /{each[1]:6.1f} /{each[2]:6.1f}" for each in found)
        print(f"{title:32}{shown}", flush=True)
    print(f"RSS of the mesh server: {resident_mib(pid):.1f} MiB")


def main() -> None:
    """Start both servers, measure, end them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--waiters", type=int, default=1000)
    arguments = parser.parse_args()
    allow_many_files()
    context = multiprocessing.get_context("spawn")
    servers = {}
    try:
        for kind in ("mesh", "bare"):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(kind, theirs), daemon=True)
            process.start()
            servers[kind] = (process, ours.recv())
        print(
            f"load: {'wrk' if shutil.which('wrk') else 'python'}, {arguments.connections} connections, {arguments.seconds:g} s a row, {os.cpu_count()} cores"
        )
        report({kind: port for kind, (_, port) in servers.items()}, servers["mesh"][0].pid or 0, arguments)
    finally:
        for process, _ in servers.values():
            process.terminate()
            process.join()


if __name__ == "__main__":
    main()
