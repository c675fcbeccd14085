"""How many DNS queries a second one process answers, next to a bare UDP echo loop in the same language on the same machine.

    python benchmarks/dns.py [--seconds 3] [--clients 4]

Both servers run alone in a process of their own (uvloop); the load comes from another process: `dnsperf` if it is installed, else a generator in
this file that keeps several sockets busy (it is itself Python and the slower of the two, so only the ratio means something then).
"Replica" is an answer from a subscribed topic: another datacenter on a server, everything on a client agent.
The echo server sends a constant 60-byte answer, the ceiling of what a `DatagramProtocol` can do.
"""

import argparse
import asyncio
import multiprocessing
import os
import random
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mesh_agent.catalog.runner import Catalog, FrameStream, Subscriber
from mesh_agent.catalog.stream import Update
from mesh_agent.catalog.view import View
from mesh_agent.clock import SystemClock
from mesh_agent.config import AgentConfig
from mesh_agent.dns.server import DnsServer
from mesh_agent.errors import Unreachable
from mesh_agent.model import Node, Service, Topic
from tests.support.catalog import ViewWriter

QUESTIONS = [
    ("A, 1 instance", "one.service.mesh A"),
    ("A, 3 instances", "three.service.mesh A"),
    ("A, 50 instances (3 sent)", "fifty.service.mesh A"),
    ("SRV, 3 instances", "three.service.mesh SRV"),
    ("SRV, 50 instances (3 sent)", "fifty.service.mesh SRV"),
    ("A, 3 instances, replica", "three.service.dc2.mesh A"),
    ("NXDOMAIN", "nothing.service.mesh A"),
]


def fill(datacenter: str) -> View:
    """A datacenter with services of 1, 3 and 50 instances."""
    writer = ViewWriter(datacenter)
    for count, service in ((1, "one"), (3, "three"), (50, "fifty")):
        for at in range(count):
            node = Node(name=f"node-{at}", address=f"10.0.0.{at + 1}", meta={"rack": "r1"})
            writer.instance(Service(id=service, name=service, node=node.name, port=8080), node)
    return writer.view


async def never() -> FrameStream:
    """A publisher that is not there."""
    raise Unreachable("not connected")


def catalog() -> Catalog:
    """What a server has: a full View of its own datacenter, and of another one what it subscribed to (as client agents have of their own)."""
    far = fill("dc2")
    subscriber = Subscriber("dc2", never, clock=SystemClock(), rng=random.Random(1), silence_s=1.0, keep_when_lost=True)
    topic = Topic("dc2", "service", "three")
    records = list(far.records(topic).values())
    subscriber.want(topic).update(Update(topic, far.index, records, [], reset=True))
    known = {"dc2": subscriber}
    return Catalog("dc1", fill("dc1"), known.get, lambda: ["dc1", "dc2"], lambda: True)


class Echo(asyncio.DatagramProtocol):
    """Sends 60 bytes that carry the id of the query."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._send = transport.sendto  # type: ignore[attr-defined]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._send(data[:2] + _ECHO, addr)


_ECHO = b"\x85\0\0\1\0\1" + bytes(52)
"""58 bytes behind the id, with the flags and counts of an answer."""


def serve(kind: str, ready: Connection) -> None:
    """Run one server until killed; reports its port."""

    async def main() -> None:
        if kind == "echo":
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
            ready.send(transport.get_extra_info("sockname")[1])
        else:
            config = AgentConfig(node_name="bench", server=True)
            ready.send(await DnsServer(config, catalog(), random.Random(1)).start("127.0.0.1", 0))
        await asyncio.Event().wait()

    uvloop.run(main())


def resident_kib(pid: int) -> int:
    """RSS of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]


def query_bytes(question: str) -> bytes:
    """The query as a datagram, id 0."""
    name, qtype = question.split()
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    number = {"A": 1, "SRV": 33}[qtype]
    return bytes(2) + b"\x01\x00\0\1" + bytes(6) + labels + b"\0" + number.to_bytes(2, "big") + b"\0\1"


def load_by_python(port: int, question: str, seconds: float, clients: int) -> float:
    """Answers a second: every socket keeps 8 queries under way."""
    tail = query_bytes(question)[2:]
    poll = select.epoll()
    sockets = {}
    for _ in range(clients):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.connect(("127.0.0.1", port))
        client.setblocking(False)
        sockets[client.fileno()] = client
        poll.register(client, select.EPOLLIN)
        for ident in range(8):
            client.send(ident.to_bytes(2, "big") + tail)
    answered = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        for fd, _ in poll.poll(0.2):
            client = sockets[fd]
            try:
                while True:
                    ident = client.recv(4096)[:2]
                    answered += 1
                    client.send(ident + tail)
            except BlockingIOError:
                continue
    for client in sockets.values():
        client.close()
    poll.close()
    return answered / elapsed


def load_by_dnsperf(port: int, question: str, seconds: float, clients: int) -> float:
    """Answers a second as dnsperf counts them."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as questions:
        questions.write(question + "\n")
        questions.flush()
        command = ["dnsperf", "-s", "127.0.0.1", "-p", str(port), "-d", questions.name, "-c", str(clients), "-q", "64"]
        done = subprocess.run([*command, "-l", str(seconds)], capture_output=True, text=True, check=True)
    return float(re.search(r"Queries per second:\s+([\d.]+)", done.stdout)[1])  # type: ignore[index]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=4)
    arguments = parser.parse_args()
    dnsperf = shutil.which("dnsperf")
    load = load_by_dnsperf if dnsperf else load_by_python
    context = multiprocessing.get_context("spawn")
    servers = {}
    for kind in ("echo", "mesh"):
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(kind, theirs), daemon=True)
        process.start()
        servers[kind] = (process, ours.recv())
    try:
        print(
            f"load: {'dnsperf' if dnsperf else 'python'}, {arguments.clients} clients, {arguments.seconds:g} s a row, {os.cpu_count()} cores"
        )
        print(f"{'':28}{'mesh q/s':>10}{'echo q/s':>10}{'ratio':>8}")
        for title, question in QUESTIONS:
            # The echo loop is measured again beside each row: other load on the machine changes both.
            rates = [
                load(servers[kind][1], question, arguments.seconds, arguments.clients) for kind in ("mesh", "echo")
            ]
            print(f"{title:28}{rates[0]:10.0f}{rates[1]:10.0f}{rates[0] / rates[1]:8.2f}", flush=True)
        print(f"RSS of the mesh server: {resident_kib(servers['mesh'][0].pid or 0) / 1024:.1f} MiB")
    finally:
        for process, _ in servers.values():
            process.terminate()
            process.join()


if __name__ == "__main__":
    main()
