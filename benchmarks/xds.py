"""What delta ADS costs, next to a bare gRPC server that writes the same bytes, in the same run; and how fast an intention takes effect at Envoy.

    python -m benchmarks.xds [--streams 100] [--proxies 1] [--services 1000] [--endpoints 5] [--rounds 7]
    python -m benchmarks.xds --envoy [--rounds 20]

Fan-out: the endpoints of one service change, and every stream must hear of it. Full push: every stream connects anew and is sent everything. The server
runs alone in a process of its own; the streams are in this one and ignore what they get. "bare" is grpc.aio with handlers that write ready-made
bytes of the same sizes. Times are medians from the trigger to the last stream; CPU is that of the server's process. The rounds of the two alternate.
Run it as a module: as a script, this directory would hide the protocol buffers' package `xds`.
"""

import argparse
import asyncio
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import grpc
from envoy.config.core.v3.base_pb2 import Node as EnvoyNode
from envoy.service.discovery.v3 import discovery_pb2

from mesh_agent.model import Action, Node, Service, Upstream
from mesh_agent.xds.naming import CLUSTER, ENDPOINTS, LISTENER, SECRET, server_name
from tests.support.callers import GREETING, Closed, Line, greeting_echo, http_app
from tests.support.sidecars import DC, TRUST_DOMAIN, Town
from tests.support.xds import proxy

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"


def cpu_s() -> float:
    """CPU time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def rss_mib() -> float:
    """Resident memory of this process."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def destination(number: int) -> str:
    return f"service-{number}"


# -- the server's process


class Mesh:
    """Our server with proxies that all call the same services."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.town = Town(directory)
        self.options = options
        self._flap = 0

    async def start(self) -> None:
        await self.town.__aenter__()
        upstreams = tuple(
            Upstream(destination_name=destination(number), local_bind_port=10000 + number)
            for number in range(self.options.services)
        )
        for number in range(self.options.services):
            for at in range(self.options.endpoints):
                self._endpoint(number, at, 21000)
        for number in range(self.options.proxies):
            self.town.registrations.put(proxy(f"caller-{number}", upstreams=upstreams, local_port=0))

    def _endpoint(self, number: int, at: int, port: int) -> None:
        service = proxy(destination(number))
        node = Node(name=f"n{number}-{at}", address=f"10.{number >> 8}.{number & 255}.{at + 1}")
        self.town.catalog.put(
            node,
            Service(
                **{name: getattr(service, name) for name in service.__struct_fields__}
                | {"node": node.name, "port": port, "address": ""}
            ),
        )

    def trigger(self) -> None:
        self._flap += 1
        self._endpoint(0, 0, 21001 + self._flap % 100)

    async def stop(self) -> None:
        await self.town.__aexit__(None, None, None)


class Bare:
    """grpc.aio alone: one response to each request of a stream, and one more to all when it is triggered."""

    def __init__(self, path: Path, sizes: dict[str, int], flap: int) -> None:
        self._path = path
        self._payloads = {kind: bytes(size) for kind, size in sizes.items()}
        self._flap = bytes(flap)
        self._turn = asyncio.Event()

    async def start(self) -> None:
        self._server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(
            self._serve, request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString
        )
        service = METHOD.split("/")[1]
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"DeltaAggregatedResources": handler}),)
        )
        self._server.add_insecure_port(f"unix:{self._path}")
        await self._server.start()

    async def _serve(self, requests: Any, context: Any) -> None:
        async def answer() -> None:
            async for request in requests:
                if not request.response_nonce:
                    await context.write(self._payloads[request.type_url])

        reading = asyncio.create_task(answer())
        try:
            while not reading.done():
                turn = self._turn
                waiting = asyncio.ensure_future(turn.wait())
                await asyncio.wait((waiting, reading), return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if turn.is_set():
                    await context.write(self._flap)
        finally:
            reading.cancel()

    def trigger(self) -> None:
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()

    async def stop(self) -> None:
        await self._server.stop(0)


async def serve(pipe: Connection, server: Any) -> None:
    """Do what the other process asks for."""
    await server.start()
    pipe.send("ready")
    loop = asyncio.get_running_loop()
    while (command := await loop.run_in_executor(None, pipe.recv)) != "stop":
        if command == "trigger":
            pipe.send((time.monotonic(), cpu_s()))
            server.trigger()
        else:
            pipe.send((cpu_s(), rss_mib()))
    await server.stop()


def server_process(
    pipe: Connection, directory: str, options: argparse.Namespace, bare: tuple[dict[str, int], int] | None
) -> None:
    """Entry of the child process."""

    async def run() -> None:
        found = Mesh(Path(directory), options) if bare is None else Bare(Path(directory, "ads.sock"), *bare)
        await serve(pipe, found)

    asyncio.run(run())


class Server:
    """A server in a process of its own."""

    def __init__(self, options: argparse.Namespace, bare: tuple[dict[str, int], int] | None = None) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="mesh-bench-")
        self.socket = Path(self._directory.name, "ads.sock")
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=server_process, args=(theirs, self._directory.name, options, bare))
        self._process.start()
        self._pipe.recv()

    def trigger(self) -> tuple[float, float]:
        self._pipe.send("trigger")
        return self._pipe.recv()

    def used(self) -> tuple[float, float]:
        self._pipe.send("used")
        return self._pipe.recv()

    def stop(self) -> None:
        self._pipe.send("stop")
        self._process.join(20)
        self._directory.cleanup()


# -- the streams' process


class Streams:
    """Proxies that ask for everything and acknowledge nothing but count it."""

    def __init__(self, server: Server, options: argparse.Namespace) -> None:
        self._server = server
        self._options = options
        self.arrivals: list[tuple[float, int]] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def connect(self) -> None:
        """Open all streams and wait until each has everything."""
        names = [server_name(destination(number), DC, TRUST_DOMAIN) for number in range(self._options.services)]
        requests = [
            discovery_pb2.DeltaDiscoveryRequest(type_url=CLUSTER),
            discovery_pb2.DeltaDiscoveryRequest(type_url=ENDPOINTS, resource_names_subscribe=names),
            discovery_pb2.DeltaDiscoveryRequest(type_url=SECRET, resource_names_subscribe=["leaf", "roots"]),
            discovery_pb2.DeltaDiscoveryRequest(type_url=LISTENER),
        ]
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        self._channels = [
            grpc.aio.insecure_channel(f"unix:{self._server.socket}", options=options)
            for _ in range(self._options.streams)
        ]
        self.arrivals.clear()
        for number, channel in enumerate(self._channels):
            self._tasks.append(asyncio.create_task(self._stream(channel, number, requests)))
        await self.heard(len(requests))

    async def _stream(self, channel: Any, number: int, requests: list[Any]) -> None:
        call = channel.stream_stream(METHOD, request_serializer=discovery_pb2.DeltaDiscoveryRequest.SerializeToString)()
        node = EnvoyNode(id=f"caller-{number % self._options.proxies}-sidecar-proxy")
        for request in requests:
            first = discovery_pb2.DeltaDiscoveryRequest()
            first.CopyFrom(request)
            first.node.CopyFrom(node)
            await call.write(first)
        while (data := await call.read()) is not grpc.aio.EOF:
            self.arrivals.append((time.monotonic(), len(data)))

    async def heard(self, count: int) -> None:
        """Wait until so many responses per stream have arrived."""
        wanted = count * self._options.streams
        async with asyncio.timeout(120):
            while len(self.arrivals) < wanted:
                for task in self._tasks:
                    if task.done():
                        await task
                await asyncio.sleep(0.002)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await asyncio.gather(*(channel.close() for channel in self._channels))


async def full_push(server: Server, options: argparse.Namespace) -> tuple[float, float, list[int]]:
    """Wall and CPU seconds of connecting all streams anew, and the sizes of what one of them got."""
    streams = Streams(server, options)
    before, _ = server.used()
    began = time.monotonic()
    await streams.connect()
    wall = streams.arrivals[-1][0] - began
    after, _ = server.used()
    await streams.close()
    return wall, after - before, [size for _, size in streams.arrivals]


async def fan_out(server: Server, streams: Streams) -> tuple[float, float, int]:
    """Wall and CPU seconds from one change until the last stream has heard of it, and the size of the response."""
    streams.arrivals.clear()
    began, before = server.trigger()
    await streams.heard(1)
    after, _ = server.used()
    return streams.arrivals[-1][0] - began, after - before, streams.arrivals[0][1]


async def sizes_of(server: Server, options: argparse.Namespace) -> tuple[dict[str, int], int]:
    """What one stream is sent at first, by type, and at a change."""
    single = argparse.Namespace(**vars(options) | {"streams": 1})
    streams = Streams(server, single)
    await streams.connect()
    # Which size belongs to which type does not matter: the bare server sends all of them, too.
    found = [size for _, size in streams.arrivals]
    _, _, flap = await fan_out(server, streams)
    await streams.close()
    return dict(zip((SECRET, CLUSTER, ENDPOINTS, LISTENER), sorted(found), strict=True)), flap


def line(name: str, ours: list[tuple[float, float]], bare: list[tuple[float, float]]) -> None:
    """One result: medians and the ratio."""
    wall, cpu = (statistics.median(each[at] for each in ours) * 1e3 for at in (0, 1))
    bare_wall, bare_cpu = (statistics.median(each[at] for each in bare) * 1e3 for at in (0, 1))
    print(
        f"{name:<10} ads {wall:8.1f} ms, cpu {cpu:8.1f} ms | bare {bare_wall:8.1f} ms, cpu {bare_cpu:8.1f} ms"
        f" | wall x{wall / bare_wall:.2f} cpu x{cpu / max(bare_cpu, 1e-3):.2f}"
    )


async def compare(options: argparse.Namespace) -> None:
    """Ours against bare gRPC."""
    ours = Server(options)
    bare = Server(options, await sizes_of(ours, options))
    try:
        first = await full_push(ours, options)
        print(
            f"{options.streams} streams of {options.proxies} proxies, {options.services} services x {options.endpoints} endpoints;"
            f" {sum(first[2]) / options.streams / 1024:.0f} KiB a stream"
        )
        print(f"first push with all snapshots built: {first[0] * 1e3:.0f} ms, cpu {first[1] * 1e3:.0f} ms")
        results: dict[str, tuple[list[Any], list[Any]]] = {"full push": ([], []), "fan-out": ([], [])}
        for _ in range(max(2, options.rounds // 2)):
            for at, server in enumerate((ours, bare)):
                results["full push"][at].append(await full_push(server, options))
        pairs = [Streams(ours, options), Streams(bare, options)]
        for streams in pairs:
            await streams.connect()
        for _ in range(options.rounds):
            for at, (server, streams) in enumerate(zip((ours, bare), pairs, strict=True)):
                results["fan-out"][at].append(await fan_out(server, streams))
        for name, (mine, theirs) in results.items():
            line(name, mine, theirs)
        print(f"memory of the server's process: {ours.used()[1]:.0f} MiB, bare {bare.used()[1]:.0f} MiB")
        for streams in pairs:
            await streams.close()
    finally:
        ours.stop()
        bare.stop()


# -- real Envoy


async def enforcement(options: argparse.Namespace) -> None:
    """From the change of an intention until Envoy acts on it."""
    async with greeting_echo() as echo, http_app("api") as app:
        for protocol, port in (("tcp", echo), ("http", app)):
            with tempfile.TemporaryDirectory() as directory:
                async with Town(Path(directory)) as town:
                    await _flips(town, protocol, port, options.rounds)


async def _flips(town: Town, protocol: str, app_port: int, rounds: int) -> None:
    api = town.register("api", app_port=app_port, protocol=protocol)
    web = town.register("web", protocol=protocol, calls=("api",))
    town.intend("web", "api", Action.ALLOW)
    await asyncio.gather(town.envoy(api), town.envoy(web))
    assert web.proxy is not None
    port = web.proxy.upstreams[0].local_bind_port
    admitted = _greeted if protocol == "tcp" else _ok
    times: dict[str, list[float]] = {
        "deny, open connection": [],
        "deny, new connection": [],
        "allow, new connection": [],
    }

    async def until(wanted: bool) -> None:
        while await admitted(await Line.to(port)) is not wanted:
            pass

    await until(True)
    for _ in range(rounds):
        held = await Line.to(port)
        assert await admitted(held, close=False)
        began = time.monotonic()
        town.intend("web", "api", Action.DENY)
        if protocol == "tcp":
            await held.closed()
        else:
            while (await held.get())[0] != 403:
                pass
            held.close()
        times["deny, open connection"].append(time.monotonic() - began)
        town.intend("web", "api", Action.ALLOW)
        await until(True)
        for name, action in (("deny", Action.DENY), ("allow", Action.ALLOW)):
            began = time.monotonic()
            town.intend("web", "api", action)
            await until(action is Action.ALLOW)
            times[f"{name}, new connection"].append(time.monotonic() - began)
    for name, found in times.items():
        each = sorted(seconds * 1e3 for seconds in found)
        print(
            f"{protocol:<4} {name:<22} median {statistics.median(each):6.1f} ms [{each[0]:.1f}-{each[-1]:.1f}] n={len(each)}"
        )


async def _greeted(line: Line, *, close: bool = True) -> bool:
    try:
        return await line.read(len(GREETING)) == GREETING
    except Closed:
        return False
    finally:
        if close:
            line.close()


async def _ok(line: Line, *, close: bool = True) -> bool:
    try:
        return (await line.get())[0] == 200
    except Closed:
        return False
    finally:
        if close:
            line.close()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--proxies", type=int, default=1)
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--endpoints", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--envoy", action="store_true", help="measure how fast an intention takes effect at a real Envoy"
    )
    options = parser.parse_args()
    asyncio.run(enforcement(options) if options.envoy else compare(options))


if __name__ == "__main__":
    main()
