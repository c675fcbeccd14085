"""The Envoy of a pod and its agent: only the node's agent is obeyed, and the trust bundle may change under it."""

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest

from mesh_agent.ca.issue import Authority
from mesh_agent.ca.spiffe_id import agent_id
from mesh_agent.sidecar.bootstrap import PodSidecar, pod_bootstrap, roots_secret
from mesh_agent.xds.server import AdsServer
from tests.support.ports import free_port
from tests.support.sidecars import DC, PATIENCE_S, TRUST_DOMAIN, Town, envoy_binary, eventually, until

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(120)]

_VERIFY_FAILED = "CERTIFICATE_VERIFY_FAILED"
IDENTITY = agent_id(TRUST_DOMAIN, DC, "n1", server=False)


class PodEnvoy:
    """An Envoy that starts from a pod's bootstrap, an ADS server with TLS beside it, and a trust bundle as kubelet projects it."""

    def __init__(self, town: Town, directory: Path) -> None:
        self.town = town
        self.directory = directory
        self.log = directory / "envoy.log"
        self.xds, self.ready = free_port(), free_port()
        self.server: AdsServer | None = None
        self.credential = ("", "")
        self._generation = 0
        self.bundle = directory / "ca"
        self.bundle.mkdir()

    def trust(self, *authorities: Authority) -> None:
        """Replace the projected bundle in one step, as kubelet does: a fresh directory, and a link that is swapped."""
        self._generation += 1
        fresh = self.bundle / f"..generation{self._generation}"
        fresh.mkdir()
        (fresh / "roots.pem").write_text("".join(each.certificate_pem for each in authorities))
        link = self.bundle / "..data_tmp"
        link.symlink_to(fresh.name)
        os.replace(link, self.bundle / "..data")
        if not (self.bundle / "roots.pem").is_symlink():
            (self.bundle / "roots.pem").symlink_to("..data/roots.pem")

    async def serve(self, issuer: Authority, *, node: str = "n1") -> None:
        """Be the agent of `node`, with a certificate of `issuer`, in the place of whoever was."""
        await self.hang_up()
        leaf = self.town.authorities.leaf("agent", issuer, identity=agent_id(TRUST_DOMAIN, DC, node, server=False))
        self.credential = (leaf.certificate_pem, leaf.key_pem)
        self.server = AdsServer(self.town.configs, self.town.metrics)
        await self.server.start_tls("127.0.0.1", self.xds, lambda: self.credential, _admit)

    async def hang_up(self) -> None:
        """The agent goes."""
        if self.server is not None:
            await self.server.stop()
            self.server = None

    def bootstrap(self) -> None:
        secret = self.directory / "agent-roots.json"
        secret.write_text(json.dumps(roots_secret(str(self.bundle / "roots.pem"))))
        sidecar = PodSidecar(
            proxy_id="web-sidecar-proxy",
            service="web",
            pod_uid="uid-1",
            session="right",
            agent_address="127.0.0.1",
            agent_port=self.xds,
            agent_ids=(str(IDENTITY),),
            ready_address="127.0.0.1",
            ready_port=self.ready,
            ready_path="/ready",
            roots_secret=str(secret),
        )
        (self.directory / "bootstrap.json").write_text(json.dumps(pod_bootstrap(sidecar)))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.bootstrap()
        with self.log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(envoy_binary(), "--config-path", str(self.directory / "bootstrap.json"), "--drain-time-s", "0"),
                *(
                    "--disable-hot-restart",
                    "--concurrency",
                    "1",
                    "-l",
                    "warning",
                    "--component-log-level",
                    "config:debug",
                ),
                stdout=output,
                stderr=output,
            )
        try:
            yield
        finally:
            process.kill()
            await process.wait()
            await self.hang_up()

    async def answers(self, path: str, *, patience_s: float = PATIENCE_S) -> int:
        """HTTP status of the ready port; 0 if nobody answers."""
        try:
            async with asyncio.timeout(patience_s):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.ready)
                try:
                    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
                    found = re.match(rb"HTTP/1.1 (\d+)", await reader.read())
                    return int(found.group(1)) if found else 0
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return 0

    def connected(self) -> bool:
        return self.server is not None and "web-sidecar-proxy" in self.server.proxies


def _admit(metadata: Mapping[str, str], proxy_id: str) -> Callable[[], bool]:
    assert (metadata["mesh-session"], metadata["mesh-pod"]) == ("right", "uid-1")
    return lambda: True


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[PodEnvoy]:
    town = Town(tmp_path)
    async with town.following():
        town.register("web")
        yield PodEnvoy(town, tmp_path)


async def test_it_is_ready_with_its_first_configuration_and_not_before(pod: PodEnvoy) -> None:
    issuer = pod.town.authorities.root()
    pod.trust(issuer)
    async with pod.running():
        await until(lambda: _said(pod, "stream"), "it asks for its configuration")
        assert await pod.answers("/ready", patience_s=2.0) == 0
        await pod.serve(issuer)
        await until(lambda: _is(pod, "/ready", 200), "it is ready")
        assert await pod.answers("/config_dump") == 404
        assert await pod.answers("/") == 404
        await pod.hang_up()
        assert await pod.answers("/ready") == 200, "and stays so while the agent is away"


async def _is(pod: PodEnvoy, path: str, status: int) -> bool:
    return await pod.answers(path, patience_s=2.0) == status


async def test_it_obeys_its_nodes_agent_alone(pod: PodEnvoy) -> None:
    issuer, stranger = pod.town.authorities.root(), pod.town.authorities.root()
    pod.trust(issuer)
    async with pod.running():
        for impostor, node in ((issuer, "n2"), (stranger, "n1")):
            await pod.serve(impostor, node=node)
            await until(lambda: _said(pod, _VERIFY_FAILED), f"the certificate of {node} is refused")
            assert not pod.connected()
            assert await pod.answers("/ready", patience_s=2.0) == 0
            pod.log.write_text("")
        await pod.serve(issuer)
        await eventually(pod.connected, "the node's agent is obeyed")


async def _said(pod: PodEnvoy, text: str) -> bool:
    return text in pod.log.read_text()


async def test_roots_may_be_replaced_while_it_runs(pod: PodEnvoy) -> None:
    old, new = pod.town.authorities.root(), pod.town.authorities.root()
    pod.trust(old)
    await pod.serve(old)
    async with pod.running():
        await eventually(pod.connected, "it is connected under the old root")
        pod.trust(old, new)
        await pod.serve(new)
        await eventually(pod.connected, "it is connected under the new root")
        pod.trust(new)
        pod.log.write_text("")
        await pod.serve(old)
        await until(lambda: _said(pod, _VERIFY_FAILED), "the old root counts no more")
        assert not pod.connected()
        await pod.serve(new)
        await eventually(pod.connected, "it is connected again")
