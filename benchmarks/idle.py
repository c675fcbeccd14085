"""What an idle agent costs: resident memory and CPU of a server and a client agent, beside an empty uvloop process of the same language.

    python -m benchmarks.idle [--seconds 30]

Both agents run as processes on loopback, gossip encrypted; the client follows one service and has one check of an interval of 10 s.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.support.agents import Cluster

_BARE = "import asyncio, uvloop; uvloop.run(asyncio.sleep(3600))"
_TICKS = os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    """Resident memory in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def cpu_s(pid: int) -> float:
    """CPU seconds used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def measure(seconds: float) -> None:
    """Start, let it settle, watch."""
    with tempfile.TemporaryDirectory() as scratch:
        cluster = Cluster(Path(scratch))
        server = cluster.add("server", "dc1", 1, server=True)
        client = cluster.add("client", "dc1", 2)
        bare = await asyncio.create_subprocess_exec(sys.executable, "-c", _BARE)
        try:
            await cluster.start()
            check = {"TCP": f"{server.address}:8500", "Interval": "10s"}
            await client.put("/v1/agent/service/register", {"Name": "web", "Port": 80, "Check": check})
            await client.addresses("web.service.mesh")
            await asyncio.sleep(5)
            pids = {"server agent": server.pid, "client agent": client.pid, "bare uvloop process": bare.pid}
            before, started = {name: cpu_s(pid) for name, pid in pids.items()}, time.monotonic()
            await asyncio.sleep(seconds)
            passed = time.monotonic() - started
            print(f"idle for {passed:.0f} s; target for a client agent: 60 MiB, 0.5 % of a core")
            for name, pid in pids.items():
                share = (cpu_s(pid) - before[name]) / passed * 100
                ratio = rss_mib(pid) / rss_mib(bare.pid)
                print(f"{name:20} RSS {rss_mib(pid):6.1f} MiB ({ratio:.1f} x bare)  CPU {share:5.2f} % of a core")
        finally:
            bare.kill()
            await bare.wait()
            await cluster.stop()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    asyncio.run(measure(parser.parse_args().seconds))


if __name__ == "__main__":
    main()
