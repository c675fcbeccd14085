"""The base image that every host's disk begins with: Debian 12 by debootstrap, made once, named by the hash of its recipe."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mesh_agent.lab.machine import home, run

SUITE = "bookworm"
_DEFAULT_MIRROR = "https://deb.debian.org/debian"

PACKAGES = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "libpam-systemd",
    "udev",
    "python3",
    "python3-apt",
    "python3-venv",
    "openssh-server",
    "openssl",
    "sudo",
    "iproute2",
    "iptables",
    "nftables",
    "kmod",
    "procps",
    "ca-certificates",
    "curl",
    "iputils-ping",
    "less",
    "gnupg",
    "conntrack",
    "ethtool",
    "socat",
    "netcat-openbsd",
    "cron",
    "bind9-dnsutils",
    "tcpdump",
    "jq",
]

POOL = ["dnsmasq", "python3-packaging", "containerd", "runc", "containernetworking-plugins", "nginx-light", "serf"]
"""Packages that can be installed offline inside a host, from /srv/pool."""

_MASKED = [
    "systemd-udevd.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udev-trigger.service",
    "systemd-modules-load.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-kernel-config.mount",
    "sys-fs-fuse-connections.mount",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "getty.target",
    "console-getty.service",
    "getty@tty1.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "fstrim.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "systemd-timesyncd.service",
    "systemd-binfmt.service",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-remount-fs.service",
]

_INIT = """#!/bin/sh
# First process of a host: make the v1 controllers writable for systemd, runc and kubelet, then become systemd.
for c in cpu cpuacct cpuset memory devices freezer blkio pids; do mount -o remount,bind,rw /sys/fs/cgroup/$c 2>/dev/null; done
[ -e /dev/console ] || ln -s /dev/null /dev/console
exec /lib/systemd/systemd "$@"
"""
_JOURNALD = "[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\nReadKMsg=no\n"
_SSHD = "UseDNS no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\n"
_POOL_LIST = "deb [trusted=yes] file:/srv/pool ./\n"


def recipe() -> str:
    """A short hash of everything that decides what the image is."""
    parts = [SUITE, *PACKAGES, "|", *POOL, "|", *_MASKED, _INIT, _JOURNALD, _SSHD, _POOL_LIST, "1"]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def directory() -> Path:
    """Where the image of this recipe is, or will be: `root` and `pool`."""
    return home() / "base" / recipe()


def mirror() -> str:
    """MESH_LAB_MIRROR, or where this machine's own apt gets Debian from, or Debian itself."""
    chosen = os.environ.get("MESH_LAB_MIRROR", "")
    if chosen:
        return chosen
    for path in sorted(Path("/etc/apt").glob("sources.list*")) + sorted(Path("/etc/apt/sources.list.d").glob("*")):
        if path.is_file():
            found = _mirror_in(path.read_text(encoding="utf-8", errors="replace"))
            if found:
                return found
    return _DEFAULT_MIRROR


def _mirror_in(text: str) -> str:
    for stanza in text.split("\n\n"):
        uris = re.search(r"^URIs:\s*(\S+)", stanza, re.MULTILINE)
        suites = re.search(r"^Suites:\s*(.*)$", stanza, re.MULTILINE)
        if uris and suites and SUITE in suites.group(1).split():
            return uris.group(1)
    line = re.search(rf"^deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+{SUITE}\s", text, re.MULTILINE)
    return line.group(1) if line else ""


def ensure(say: Callable[[str], None]) -> Path:
    """The image, built if it is not there (about two minutes); `say` gets a line for each step."""
    ready = directory()
    if (ready / "root").is_dir():
        return ready
    say(f"building the base image ({SUITE}, {len(PACKAGES)} packages) once; later labs reuse it")
    fresh = ready.with_name(ready.name + f".new-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        _build(fresh, say)
        fresh.rename(ready)
    except OSError:
        if not (ready / "root").is_dir():  # else: somebody else was faster
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return ready


def _build(into: Path, say: Callable[[str], None]) -> None:
    root, pool, log = into / "root", into / "pool", into / "build.log"
    cache = home() / "debs"
    cache.mkdir(parents=True, exist_ok=True)
    say("1/4 debootstrap")
    include = ",".join(PACKAGES)
    command = ("debootstrap", "--variant=minbase", f"--cache-dir={cache}", f"--include={include}")
    run(*command, SUITE, root, mirror(), log=log)
    run("chroot", root, "apt-get", "clean", log=log)
    say("2/4 settings")
    _finish(root, log)
    say(f"3/4 packages for offline use: {', '.join(POOL)}")
    _fill_pool(root, pool, log)
    say("4/4 package index")
    (root / "etc/apt/sources.list").unlink(missing_ok=True)
    (root / "etc/apt/sources.list.d/lab-pool.list").write_text(_POOL_LIST, encoding="ascii")
    shutil.rmtree(root / "var/lib/apt/lists")
    (root / "var/lib/apt/lists/partial").mkdir(parents=True)
    with _bound(pool, root / "srv/pool"):
        run("chroot", root, "apt-get", "update", "-q", log=log)
    (root / "etc/resolv.conf").write_text("", encoding="ascii")


def _finish(root: Path, log: Path) -> None:
    (root / "etc/machine-id").write_text("", encoding="ascii")
    (root / "etc/hostname").unlink(missing_ok=True)
    for unit in _MASKED:
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    for path, text in (
        ("sbin/lab-init", _INIT),
        ("etc/systemd/journald.conf.d/lab.conf", _JOURNALD),
        ("etc/ssh/sshd_config.d/lab.conf", _SSHD),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="ascii")
    (root / "sbin/lab-init").chmod(0o755)
    run("chroot", root, "systemctl", "disable", "ssh", log=log)
    run("chroot", root, "systemctl", "set-default", "multi-user.target", log=log)
    for name in ("pool", "wheelhouse", "artifacts"):
        (root / "srv" / name).mkdir(parents=True, exist_ok=True)


def _fill_pool(root: Path, pool: Path, log: Path) -> None:
    (pool / "partial").mkdir(parents=True)
    resolver = Path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace")
    (root / "etc/resolv.conf").write_text(resolver, encoding="utf-8")
    options = ("-o", "Dir::Cache::archives=/srv/pool", "-o", "APT::Sandbox::User=root")
    with _bound(pool, root / "srv/pool"):
        run("chroot", root, "apt-get", "update", "-q", log=log)
        run(
            "chroot", root, "apt-get", "install", "-qq", "-y", "--no-install-recommends", "-d", *options, *POOL, log=log
        )
    shutil.rmtree(pool / "partial", ignore_errors=True)
    (pool / "lock").unlink(missing_ok=True)
    index = subprocess.run(["apt-ftparchive", "packages", "."], cwd=pool, capture_output=True, check=True)
    (pool / "Packages").write_bytes(index.stdout)


@contextmanager
def _bound(source: Path, target: Path) -> Iterator[None]:
    run("mount", "--bind", source, target)
    try:
        yield
    finally:
        run("umount", target)
