"""The WAN: a relay between TUN devices in the datacenters' routers, with delay, jitter, loss and rate. `python -m mesh_agent.lab.relay STATE_FILE`.

The kernel's netem is not to be had everywhere; a relay in user space is. The state file (JSON) lists the links; it is read again when it changes, so
a running link is changed by replacing the file, and `applied()` says when that is in force. Each packet leaves after delay +- jitter, in the order of
departure times; a rate is a token bucket's serialisation time. The process ends on SIGTERM, or when the state file is gone.
"""

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x0001 | 0x1000
_CLONE_NEWNET = 0x40000000
_LOOK_S = 0.05
_BATCH, _MAX_QUEUED = 64, 20_000


@dataclass
class Wire:
    """One link: both ends, and what it does to packets."""

    ends: tuple[int, int]
    rng: random.Random
    up: bool = True
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    bits_per_s: float = 0.0
    busy_until: dict[int, float] = field(default_factory=dict)

    def set(self, state: dict[str, Any]) -> None:
        """Take new properties."""
        self.up = bool(state.get("up", True))
        self.delay_s, self.jitter_s = state.get("delay_ms", 0) / 1e3, state.get("jitter_ms", 0) / 1e3
        self.loss = state.get("loss_pct", 0) / 100
        self.bits_per_s = state.get("rate_kbit", 0) * 1e3

    def departure(self, to: int, size: int, now: float) -> float | None:
        """When a packet of `size` bytes that came at `now` leaves; None if it is lost."""
        if not self.up or (self.loss and self.rng.random() < self.loss):
            return None
        at = now
        if self.bits_per_s:
            at = max(now, self.busy_until.get(to, 0.0)) + size * 8 / self.bits_per_s
            self.busy_until[to] = at
        return at + max(0.0, self.delay_s + self.rng.uniform(-self.jitter_s, self.jitter_s))


def open_tun(netns: str, device: str, address: str, peer: str) -> int:
    """A TUN device in a network namespace; its file descriptor stays usable from here."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{netns}", os.O_RDONLY)
    try:
        if libc.setns(there, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter network namespace {netns}")
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN_NO_PI))
        for command in (
            ["ip", "addr", "add", address, "peer", peer, "dev", device],
            ["ip", "link", "set", device, "up", "mtu", "1500", "txqueuelen", "1000"],
        ):
            subprocess.run(command, check=True)
    finally:
        libc.setns(here, _CLONE_NEWNET)
        os.close(here)
        os.close(there)
    return descriptor


def applied(state_file: Path) -> bool:
    """Whether the relay has taken over what the state file says now."""
    try:
        return acknowledgement(state_file).read_bytes() == state_file.read_bytes()
    except FileNotFoundError:
        return False


def acknowledgement(state_file: Path) -> Path:
    """Where the relay keeps the state that is in force."""
    return state_file.with_suffix(".applied")


class Relay:
    """All links of a lab."""

    def __init__(self, state_file: Path) -> None:
        self._file = state_file
        self._state = b""
        self._wires: dict[str, Wire] = {}
        self._by_end: dict[int, tuple[Wire, int]] = {}
        self._queue: list[tuple[float, int, int, bytes]] = []
        self._order = 0

    def look(self) -> None:
        """Read the state file if it changed; FileNotFoundError when it is gone."""
        state = self._file.read_bytes()
        if state == self._state:
            return
        self._state = state
        for name, link in json.loads(state).items():
            wire = self._wires.get(name)
            if wire is None:
                one, two = (
                    open_tun(link["netns"][at], link["device"], link["addresses"][at], link["addresses"][1 - at])
                    for at in (0, 1)
                )
                wire = self._wires[name] = Wire((one, two), random.Random(link["device"]))  # noqa: S311 (no secret)
                self._by_end |= {one: (wire, two), two: (wire, one)}
            wire.set(link)
        fresh = self._file.with_suffix(".applying")
        fresh.write_bytes(state)
        fresh.replace(acknowledgement(self._file))

    def run(self) -> None:
        """Relay until the state file is gone."""
        next_look = 0.0
        while True:
            now = time.monotonic()
            if now >= next_look:
                next_look = now + _LOOK_S
                try:
                    self.look()
                except FileNotFoundError:
                    return
            self._send_due(now)
            until = min(next_look, self._queue[0][0] if self._queue else next_look)
            readable, _, _ = select.select(list(self._by_end), [], [], max(0.0, until - time.monotonic()))
            for descriptor in readable:
                self._receive(descriptor)

    def _send_due(self, now: float) -> None:
        while self._queue and self._queue[0][0] <= now:
            _, _, to, packet = heapq.heappop(self._queue)
            _write(to, packet)

    def _receive(self, descriptor: int) -> None:
        wire, to = self._by_end[descriptor]
        for _ in range(_BATCH):
            try:
                packet = os.read(descriptor, 65535)
            except BlockingIOError:
                return
            except OSError:  # the device is down
                return
            now = time.monotonic()
            at = wire.departure(to, len(packet), now)
            if at is None or len(self._queue) > _MAX_QUEUED:
                continue
            if at <= now and not self._queue:
                _write(to, packet)
                continue
            self._order += 1
            heapq.heappush(self._queue, (at, self._order, to, packet))


def _write(descriptor: int, packet: bytes) -> None:
    try:
        os.write(descriptor, packet)
    except OSError:  # the device is down, or its queue is full: the packet is lost, as on a wire
        return


if __name__ == "__main__":
    Relay(Path(sys.argv[1])).run()
