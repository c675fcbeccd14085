"""What an agent on a node of a Kubernetes cluster runs besides: following the node's pods, and the HTTPS port for pods and controllers."""

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from mesh_agent.agent.runner import LocalAgent
from mesh_agent.app.paths import Paths, write_atomically
from mesh_agent.ca.runner import AgentIdentity
from mesh_agent.clock import Clock
from mesh_agent.config import AgentConfig
from mesh_agent.errors import ConfigError
from mesh_agent.http.message import Handler
from mesh_agent.http.server import HttpServer
from mesh_agent.kubernetes.client import KubernetesApi
from mesh_agent.kubernetes.door import Door
from mesh_agent.kubernetes.runner import NodePods
from mesh_agent.kubernetes.session import SECRET_BYTES
from mesh_agent.telemetry import Metrics


class KubernetesNode:
    """See the module's text. `pods` knows the sidecars of this node's pods."""

    def __init__(
        self, config: AgentConfig, paths: Paths, agent: LocalAgent, rng: random.Random, metrics: Metrics
    ) -> None:
        settings = config.kubernetes
        self._config = config
        self._api = KubernetesApi(settings.api, settings.ca_file, settings.token_file)
        self.pods = NodePods(
            settings,
            config.node_name,
            settings.cluster or config.datacenter,
            self._api,
            agent,
            _secret(paths),
            rng,
            metrics,
        )
        self._http: HttpServer | None = None

    def start(self, group: asyncio.TaskGroup) -> None:
        """Follow the pods."""
        group.create_task(self.pods.run())

    async def open(
        self,
        identity: AgentIdentity,
        public: Handler,
        sign_webhook: Callable[[str, tuple[str, ...]], Awaitable[dict[str, Any]]],
        clock: Clock,
    ) -> None:
        """Open the door, now that there is a certificate to serve with."""
        config = self._config
        if config.ports.kubernetes < 0 or self._http is not None:
            return
        door = Door(
            datacenter=config.datacenter,
            trust_domain=config.trust_domain,
            agent_id=str(identity.spiffe_id),
            controllers=config.kubernetes.controllers,
            injectors=config.kubernetes.injectors,
            pods=self.pods,
            review=self._api.review,
            sign_webhook=sign_webhook,
            public=public,
            clock=clock,
        )
        self._http = HttpServer(door.handle, max_body_bytes=config.max_body_bytes)
        await self._http.start(config.bind_addr, config.ports.kubernetes, identity.server_context())

    async def stop(self) -> None:
        """Close the door."""
        if self._http is not None:
            await self._http.stop()
        await self._api.close()


def _secret(paths: Paths) -> bytes:
    """Under which sessions are made: drawn once, then read. Without it every pod of the node would have to start again."""
    path = paths.data / "pod-secret"
    if not path.exists():
        write_atomically(path, secrets.token_bytes(SECRET_BYTES))
    found = path.read_bytes()
    if len(found) != SECRET_BYTES:
        raise ConfigError(f"{path} is damaged; remove it and start the pods of this node again")
    return found
