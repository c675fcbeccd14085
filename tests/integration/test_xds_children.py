"""gRPC in the agent's process must not harm the programs that the agent starts (script checks)."""

import asyncio
import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
CHILDREN, AT_ONCE, STREAMS = 300, 4, 3


async def exit_codes(directory: Path) -> set[int]:
    """Exit codes of many programs that were started while proxies came and went."""
    from tests.support.sidecars import Town

    async with Town(directory) as town:
        import grpc  # only now: it is the server that must import it first

        ended = False

        async def proxies() -> None:
            """Proxies that nobody knows: each connects, is turned away, and goes. Told to end, not cancelled: gRPC can swallow that."""
            options = [("grpc.use_local_subchannel_pool", 1)]
            while not ended:
                async with grpc.aio.insecure_channel(f"unix:{town.ads_socket}", options=options) as channel:
                    call = channel.stream_stream(METHOD)()
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        await call.write(b"")
                        await call.read()

        async def child() -> int:
            process = await asyncio.create_subprocess_exec("/bin/true")
            return await process.wait()

        coming = [asyncio.create_task(proxies()) for _ in range(STREAMS)]
        codes: set[int] = set()
        for _ in range(CHILDREN // AT_ONCE):
            codes.update(await asyncio.gather(*(child() for _ in range(AT_ONCE))))
        ended = True
        await asyncio.gather(*coming)
        return codes


def test_programs_that_the_agent_starts_are_not_harmed_by_grpc() -> None:
    found = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "[0]"


if __name__ == "__main__":
    import uvloop

    with tempfile.TemporaryDirectory() as place:
        print(sorted(uvloop.run(exit_codes(Path(place)))))
