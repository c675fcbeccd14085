"""`mesh agent --dev`: everything in one process on loopback, for trying things out; nothing survives it and nothing is protected."""

import atexit
import shutil
import socket
import tempfile
from collections.abc import Mapping
from typing import Any

from mesh_agent.config import AgentConfig, load


def dev_config(flags: Mapping[str, Any]) -> AgentConfig:
    """Settings of a development agent: a server with a memory store, no encryption; `flags` win. Without a `data_dir` it has one that goes with the process."""
    defaults: dict[str, Any] = {
        "node_name": socket.gethostname().partition(".")[0].lower() or "dev",
        "server": True,
        "dev": True,
        "store": "memory",
        "data_dir": flags.get("data_dir") or _scratch(),
        "default_intention": "allow",
        "telemetry.log_format": "text",
    }
    defaults["runtime_dir"] = defaults["data_dir"]
    return load(None, {}, {**defaults, **flags})


def _scratch() -> str:
    path = tempfile.mkdtemp(prefix="mesh-dev-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
