"""Runs the injector: gets the webhook's certificate and keeps it fresh, keeps the trust bundle in the webhook's configuration, serves."""

import asyncio
import logging
import random
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mesh_agent.ca.issue import new_key, validity
from mesh_agent.ca.leaf import renewal_at, retry_after_s
from mesh_agent.clock import Clock
from mesh_agent.controllers.client import Mesh
from mesh_agent.errors import MeshError
from mesh_agent.injector.bundle import Bundles
from mesh_agent.injector.certificate import check, request
from mesh_agent.injector.client import NodeAgent, WebhookConfiguration, read
from mesh_agent.injector.readiness import Readiness
from mesh_agent.injector.server import Certificates, Operations, Webhook
from mesh_agent.injector.settings import InjectorSettings
from mesh_agent.kubernetes.client import KubernetesApi
from mesh_agent.telemetry import Metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that is verified by the roots of a file, and believes the token of another. The kubelet replaces both files."""

    target: str
    ca_file: Path
    token_file: Path


@dataclass(frozen=True, slots=True)
class Options:
    """Where the injector listens, whom it asks, and the names under which the API server calls it. Ports: 0 is any."""

    agent: Peer
    api_server: Peer
    configuration: str
    dns_names: tuple[str, ...]
    port: int = 8443
    operations_port: int = 8081
    host: str = ""
    bundle_interval_s: float = 5.0
    """How often the bundle's file and the webhook's configuration are compared."""


class Injector:
    """The process of `mesh injector`."""

    def __init__(self, settings: InjectorSettings, options: Options, clock: Clock, rng: random.Random) -> None:
        self._options = options
        self._clock = clock
        self._rng = rng
        self._metrics = Metrics()
        self._readiness = Readiness()
        self._certificates = Certificates()
        self._certified = asyncio.Event()
        self._roots = ""
        self._bundles = Bundles()
        self._roots_changed = asyncio.Event()
        agent, api_server = options.agent, options.api_server
        self._mesh = Mesh(agent.target, agent.ca_file, agent.token_file)
        self._agent = NodeAgent(self._mesh)
        self._cluster = KubernetesApi(api_server.target, str(api_server.ca_file), str(api_server.token_file))
        self._configuration = WebhookConfiguration(self._cluster, options.configuration)
        self._webhook = Webhook(settings, self._metrics, clock)
        self._operations = Operations(self._readiness, self._metrics, clock)
        self.started = asyncio.Event()
        self.port = 0
        self.operations_port = 0
        self._describe()

    def _describe(self) -> None:
        self._metrics.describe(
            "mesh_injector_certificate_expiry_seconds", "End of the certificate's life, seconds since the epoch."
        )
        self._metrics.describe("mesh_injector_ready", "Whether the API server's questions can be answered.")
        self._metrics.collect(
            lambda: [
                ("mesh_injector_certificate_expiry_seconds", {}, self._readiness.certificate_until),
                ("mesh_injector_ready", {}, float(not self._readiness.missing(self._clock.wall()))),
            ]
        )

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until `stopping`."""
        self.operations_port = await self._operations.start(self._options.operations_port, self._options.host)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(work) for work in (self._keep_certificate(), self._keep_bundle())]
                tasks.append(group.create_task(self._serve()))
                await stopping.wait()
                for task in tasks:
                    task.cancel()
        finally:
            await self._webhook.stop()
            await self._operations.stop()
            await self._mesh.close()
            await self._cluster.close()

    async def _serve(self) -> None:
        await self._certified.wait()
        self.port = await self._webhook.start(self._options.port, self._certificates.front(), self._options.host)
        log.info("answering the API server on port %d", self.port)
        self.started.set()

    async def _keep_certificate(self) -> None:
        """Renew between a third and half of the certificate's life and when the roots change, for ever; a failure leaves the old one in use."""
        failures = 0
        while True:
            try:
                due = await self._renew()
                failures = 0
            except MeshError as error:
                failures += 1
                due = self._clock.wall() + retry_after_s(failures, self._rng)
                self._metrics.count("mesh_injector_certificate_failures_total")
                log.warning("no new certificate for the webhook, trying again: %s", error)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - self._clock.wall())):
                    await self._roots_changed.wait()
            self._roots_changed.clear()

    async def _renew(self) -> float:
        names = self._options.dns_names
        key = new_key()
        certificate = await self._agent.webhook_certificate(names, request(names, key))
        check(certificate, names, key)
        self._certificates.use(certificate, key)
        life = validity(certificate)
        self._readiness.certificate_until = life.not_after
        self._certified.set()
        self._metrics.count("mesh_injector_certificates_total")
        log.info("new certificate for %s", ", ".join(names), extra={"not_after": life.not_after})
        return renewal_at(life, self._rng)

    async def _keep_bundle(self) -> None:
        while True:
            try:
                await self._publish_bundle()
            except MeshError as error:
                self._metrics.count("mesh_injector_bundle_failures_total")
                log.warning("the trust bundle in the webhook's configuration may be old, trying again: %s", error)
            await asyncio.sleep(self._options.bundle_interval_s)

    async def _publish_bundle(self) -> None:
        roots = read(self._options.agent.ca_file)
        if self._roots not in ("", roots):  # the API server may not believe the root of our certificate any more
            self._roots_changed.set()
        self._roots = roots
        changes = self._bundles.changes(roots, await self._configuration.bundles(), self._clock.now())
        if changes:
            await self._configuration.publish(changes)
            self._metrics.count("mesh_injector_bundle_updates_total")
            log.info("put the trust bundle into %s", self._options.configuration, extra={"webhooks": list(changes)})
        self._readiness.bundle_published = True


async def serve(injector: Injector) -> None:
    """Run until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await injector.run(stopping)
