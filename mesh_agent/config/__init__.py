"""Settings: frozen structs and the one `load` (TOML file < environment < flags)."""

from mesh_agent.config.load import load
from mesh_agent.config.settings import (
    AgentConfig,
    CaConfig,
    ChecksConfig,
    DnsConfig,
    KubernetesConfig,
    Ports,
    TelemetryConfig,
    TlsConfig,
)

__all__ = [
    "AgentConfig",
    "CaConfig",
    "ChecksConfig",
    "DnsConfig",
    "KubernetesConfig",
    "Ports",
    "TelemetryConfig",
    "TlsConfig",
    "load",
]
