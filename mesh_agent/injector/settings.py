"""What an operator may choose about injected pods. Pure."""

from dataclasses import dataclass, field
from typing import Any

from mesh_agent.injector.names import PROBE_PORTS_FROM

Resources = dict[str, dict[str, str]]


def _init_resources() -> Resources:
    return {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}}


def _sidecar_resources() -> Resources:
    return {"requests": {"cpu": "20m", "memory": "96Mi"}, "limits": {"memory": "256Mi"}}


@dataclass(frozen=True, slots=True)
class InjectorSettings:
    """Settings of the patch. Ports are the node's agent's; durations are seconds."""

    image: str
    version: str
    image_pull_policy: str = "IfNotPresent"
    agent_port: int = 8504
    xds_port: int = 8503
    probe_ports_from: int = PROBE_PORTS_FROM
    pre_stop_sleep_s: int = 2
    """How long the application goes on before it hears SIGTERM: every endpoint list has dropped the pod by then."""
    token_ttl_s: int = 600
    """The init container exchanges the token once; 600 s is the shortest life that Kubernetes gives."""
    concurrency: int = 1
    """Worker threads of Envoy; 0: one for each core."""
    log_level: str = "warning"
    init_resources: Resources = field(default_factory=_init_resources)
    sidecar_resources: Resources = field(default_factory=_sidecar_resources)


Pod = dict[str, Any]  # a pod as JSON
