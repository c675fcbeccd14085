"""Where an agent keeps things on disk, and the id that it keeps for life."""

import contextlib
import os
import secrets
import uuid
from pathlib import Path

from mesh_agent.errors import ConfigError


class Paths:
    """The data directory (state that survives) and the runtime directory (sockets)."""

    def __init__(self, data_dir: str, runtime_dir: str) -> None:
        self.data = Path(data_dir)
        self.runtime = Path(runtime_dir)
        self.store = self.data / "store.sqlite"
        self.state = self.data / "state"
        self.certs = self.data / "certs"
        self.topics = self.data / "topics.msgpack"
        self.lan_keyring = self.data / "serf" / "local.keyring"
        self.wan_keyring = self.data / "serf" / "remote.keyring"
        self.lan_peers = self.data / "serf" / "local.peers"
        self.wan_peers = self.data / "serf" / "remote.peers"
        self.xds_socket = self.runtime / "xds.sock"

    def prepare(self) -> None:
        """Create what is missing; ConfigError if that is not allowed."""
        try:
            for path in (self.data, self.state, self.certs, self.lan_keyring.parent):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.runtime.mkdir(parents=True, exist_ok=True, mode=0o755)
        except OSError as error:
            raise ConfigError(f"data_dir/runtime_dir: {error}; choose directories that this user may write") from error

    def node_id(self) -> str:
        """The node's UUID: made once, then read."""
        path = self.data / "node-id"
        if not path.exists():
            write_atomically(path, str(uuid.UUID(bytes=secrets.token_bytes(16), version=4)).encode())
        return path.read_text(encoding="utf-8").strip()


def boot_id() -> str:
    """What is another one each time this host starts: BOOT_ID, or the kernel's; empty where neither is known."""
    with contextlib.suppress(OSError):
        return os.environ.get("BOOT_ID") or Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def write_atomically(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file in one step, so that a crash leaves the old or the new one."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
