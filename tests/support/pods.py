"""A node with pods on one machine: network namespaces, a bridge, real nftables, real Envoy as its own user. Needs root.

The test itself moves into the node's namespace, so that its agent, its API server and its sockets are there; a pod is a namespace of its own,
with the init container and the sidecar as processes in it. Nothing of it survives the test: a namespace ends with its last process.
"""

import asyncio
import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.callers import Line
from tests.support.kubernetes import Object
from tests.support.sidecars import envoy_binary, eventually

GATEWAY = "10.244.1.1"
API_SERVER = "10.96.0.1"
UID, GID = 5995, 5994
_CLONE_NEWNET = 0x40000000
_SO_RCVBUFFORCE = 33
_ETH_P_ALL = 3
_LIBC = ctypes.CDLL(None, use_errno=True)


def run(*command: str) -> None:
    """A command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, f"{' '.join(command)}: {done.stderr}{done.stdout}"


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextlib.contextmanager
def node_network() -> Iterator[None]:
    """This thread, and what it starts, is in a network of its own: a bridge for pods, no way out."""
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _check(_LIBC.unshare(_CLONE_NEWNET))
        for line in (
            "link set lo up",
            "link add pods0 type bridge",
            f"addr add {GATEWAY}/24 dev pods0",
            f"addr add {API_SERVER}/32 dev pods0",
            "link set pods0 up",
        ):
            run("ip", *line.split())
        yield
    finally:
        _check(_LIBC.setns(before, _CLONE_NEWNET))
        os.close(before)


class PodNetwork:
    """One pod: a namespace, and processes in it."""

    def __init__(self, name: str, number: int, directory: Path) -> None:
        self.name, self.address = name, f"10.244.1.{number}"
        self.directory = directory
        self.mesh = directory / "mesh"
        self.output = directory / "envoy.log"
        self._veth = f"veth{number}"
        self._holder: asyncio.subprocess.Process | None = None
        self._processes: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> "PodNetwork":
        self.mesh.mkdir(parents=True)
        (self.directory / "ca").mkdir()
        for path in (self.directory, self.mesh, self.directory / "ca"):
            path.chmod(0o755)
        self._holder = await asyncio.create_subprocess_exec("unshare", "--net", "sleep", "infinity")
        try:
            await self._connect()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _connect(self) -> None:
        own = os.readlink("/proc/thread-self/ns/net")
        await eventually(lambda: os.readlink(f"/proc/{self.pid}/ns/net") != own, "the pod has a network of its own")
        run("ip", "link", "add", self._veth, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        run("ip", "link", "set", self._veth, "master", "pods0", "up")
        for line in (
            "link set lo up",
            f"addr add {self.address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {GATEWAY}",
        ):
            run(*self.inside("ip", *line.split()))

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if self._holder is not None:
            self._holder.kill()
            await self._holder.wait()

    @property
    def pid(self) -> int:
        """Of the process that holds the namespace."""
        assert self._holder is not None
        return self._holder.pid

    def inside(self, *command: str) -> list[str]:
        """A command in this pod's network."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command]

    async def init(
        self,
        found: Object,
        token: str,
        roots: str,
        *,
        env: dict[str, str] | None = None,
        without_rights: bool = False,
        patience_s: float = 60.0,
    ) -> tuple[int, str]:
        """Run the init container; exit code and output."""
        (self.directory / "token").write_text(token)
        (self.directory / "ca/roots.pem").write_text(roots)
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "MESH_NODE_IP": GATEWAY,
            "MESH_POD_IP": self.address,
            "MESH_POD_NAME": found["metadata"]["name"],
            "MESH_POD_NAMESPACE": found["metadata"]["namespace"],
            "MESH_POD_UID": found["metadata"]["uid"],
            "MESH_TOKEN_FILE": str(self.directory / "token"),
            "MESH_CA_FILE": str(self.directory / "ca/roots.pem"),
        }
        rights = ["--bounding-set", "-all", "--inh-caps", "-all"] if without_rights else []
        command = ["setpriv", "--regid", str(GID), "--clear-groups", *rights, sys.executable, "-m", "mesh_agent"]
        command += ["sidecar", "init", "--directory", str(self.mesh), "--patience-s", str(patience_s)]
        process = await asyncio.create_subprocess_exec(
            *self.inside(*command),
            env=environ | (env or {}),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._processes.append(process)
        output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode()

    async def sidecar(self) -> None:
        """Start Envoy as its own user, as the sidecar container does."""
        command = ["setpriv", "--reuid", str(UID), "--regid", str(GID), "--clear-groups", envoy_binary()]
        command += ["--config-path", str(self.mesh / "bootstrap.json"), "--drain-time-s", "0", "--disable-hot-restart"]
        command += ["--concurrency", "1", "--log-level", "warning", "--file-flush-interval-msec", "50"]
        with self.output.open("ab") as output:
            self._processes.append(
                await asyncio.create_subprocess_exec(*self.inside(*command), stdout=output, stderr=output)
            )

    async def serve(self, program: str, *arguments: str) -> None:
        """Run a Python program in the pod, as the application does; it says `ready` when it listens."""
        process = await asyncio.create_subprocess_exec(
            *self.inside(sys.executable, "-c", program, *arguments), stdout=asyncio.subprocess.PIPE
        )
        self._processes.append(process)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"

    def log(self) -> str:
        """What Envoy has said."""
        return self.output.read_text() if self.output.exists() else ""

    async def dial(self, address: str, port: int, timeout_s: float = 5.0) -> Line:
        """Connect from within the pod, as user 0; OSError if that fails."""

        def connect() -> socket.socket:
            before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            there = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
            try:
                _check(_LIBC.setns(there, _CLONE_NEWNET))
                return socket.create_connection((address, port), timeout_s)
            finally:
                _check(_LIBC.setns(before, _CLONE_NEWNET))
                os.close(before)
                os.close(there)

        connected = await asyncio.to_thread(connect)
        connected.setblocking(False)
        return Line(*await asyncio.open_connection(sock=connected))

    def rules(self) -> str:
        """The rules that are loaded."""
        return subprocess.run(self.inside("nft", "list", "ruleset"), capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def shared_directory() -> Iterator[Path]:
    """A directory that Envoy's user may read."""
    path = Path(tempfile.mkdtemp(prefix="mesh-pods-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@contextlib.contextmanager
def capture(text: bytes) -> Iterator[Callable[[], int]]:
    """Count the frames with this text on any interface of the node; the result tells how many there were so far."""
    seen = 0
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    listener.setblocking(False)
    listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)

    def take() -> None:
        nonlocal seen
        with contextlib.suppress(BlockingIOError):
            while True:
                seen += text in listener.recv(1 << 17)

    loop = asyncio.get_running_loop()
    loop.add_reader(listener, take)

    def count() -> int:
        take()
        return seen

    try:
        yield count
    finally:
        loop.remove_reader(listener)
        listener.close()


def greeter(name: str) -> str:
    """A server that greets with its name and echoes, for `serve`."""
    return f"""
import asyncio, sys
async def greet(reader, writer):
    writer.write(b"{name} ")
    while data := await reader.read(4096):
        writer.write(data)
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(greet, "0.0.0.0", int(sys.argv[1]))
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


async def greets(pod: PodNetwork, address: str, port: int) -> str:
    """Who greets at an address when a pod dials it; '' if nobody does."""
    try:
        line = await pod.dial(address, port)
    except OSError:
        return ""
    try:
        async with asyncio.timeout(5.0):
            return (await line.reader.readuntil(b" ")).decode().strip()
    except (OSError, EOFError, TimeoutError):
        return ""
    finally:
        line.close()
        with contextlib.suppress(OSError):
            await line.writer.wait_closed()
