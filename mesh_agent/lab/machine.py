"""This machine: where the lab keeps things, what it needs, and running commands."""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from mesh_agent.errors import ConfigError, MeshError

_TOOLS = {
    "systemd-nspawn": "systemd-container",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "apt-ftparchive": "apt-utils",
}


_INOTIFY_LIMIT, _INOTIFY_INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances"), 1024


class LabError(MeshError):
    """Something in the lab did not work; the text says what. `mesh lab down` cleans up."""


def home() -> Path:
    """Where images and labs are: MESH_LAB_HOME, or /var/lib/mesh-lab."""
    return Path(os.environ.get("MESH_LAB_HOME") or "/var/lib/mesh-lab")


def check() -> None:
    """ConfigError with the reason if this machine cannot run a lab."""
    if os.uname().sysname != "Linux":
        raise ConfigError("a lab needs Linux")
    if os.geteuid() != 0:
        raise ConfigError("a lab needs root: it makes namespaces and mounts; run this with sudo")
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            raise ConfigError(f"{tool} is missing; install it: apt-get install {package}")
    if "\toverlay" not in Path("/proc/filesystems").read_text(encoding="ascii"):
        subprocess.run(["modprobe", "overlay"], check=False, capture_output=True)
        if "\toverlay" not in Path("/proc/filesystems").read_text(encoding="ascii"):
            raise ConfigError("this kernel has no overlayfs, which the hosts' disks are made of")
    if not Path("/dev/net/tun").exists():
        raise ConfigError(
            "/dev/net/tun is missing: the WAN between datacenters is made of TUN devices; load the module tun"
        )
    if cgroup_layout() == "v2" and not Path("/run/systemd/system").is_dir():
        raise ConfigError("on a machine with cgroups v2 the lab needs a running systemd (it runs each host in a scope)")


def allow_watches(say: Callable[[str], None]) -> None:
    """Hosts share the limit of inotify instances, and the usual 128 is too little for two clusters: kubelets would not start. Raised, never lowered."""
    before = int(_INOTIFY_LIMIT.read_text(encoding="ascii"))
    if before < _INOTIFY_INSTANCES:
        say(
            f"raising this machine's {_INOTIFY_LIMIT.name} from {before} to {_INOTIFY_INSTANCES}, until the last lab is down"
        )
        _inotify_before().write_text(str(before), encoding="ascii")
        _INOTIFY_LIMIT.write_text(str(_INOTIFY_INSTANCES), encoding="ascii")


def restore_watches() -> None:
    """The last lab is down: the limit is what it was."""
    if _inotify_before().exists():
        _INOTIFY_LIMIT.write_text(_inotify_before().read_text(encoding="ascii"), encoding="ascii")
        _inotify_before().unlink()


def _inotify_before() -> Path:
    return home() / "inotify-before"


def cgroup_layout() -> str:
    """`v1` (also hybrid) or `v2`."""
    return "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"


def run(*command: str | Path, quiet: bool = False, env: dict[str, str] | None = None, log: Path | None = None) -> str:
    """Run a command; its output. LabError with its last lines when it fails, unless `quiet`."""
    arguments = [str(part) for part in command]
    if log is not None:
        with log.open("ab") as file:
            code = subprocess.run(arguments, stdout=file, stderr=file, stdin=subprocess.DEVNULL, check=False, env=env)
        if code.returncode:
            tail = log.read_text(encoding="utf-8", errors="replace")[-600:]
            raise LabError(f"{arguments[0]} failed with {code.returncode}; the end of {log}:\n{tail}")
        return ""
    done = subprocess.run(arguments, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, env=env)
    if done.returncode and not quiet:
        raise LabError(f"{' '.join(arguments)}: {(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout


def ip(*arguments: str, netns: str = "", quiet: bool = False) -> str:
    """iproute2, in a network namespace."""
    return run("ip", *(("-n", netns) if netns else ()), *arguments, quiet=quiet)


def netns_exists(name: str) -> bool:
    """Whether a named network namespace is there."""
    return Path("/run/netns", name).exists()


def is_ours(pid: int, words: Sequence[str]) -> bool:
    """Whether a process still is the one that was started: each word is in its command line."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return False
    return all(word in line for word in words)
