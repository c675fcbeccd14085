"""What a user registers with this agent: services and checks as values. Durations are seconds. Pure."""

import msgspec

from mesh_agent.model import Proxy, ServiceAddress, Status, Weights

_KINDS = (
    ("ttl", "ttl_s"),
    ("http", "http"),
    ("tcp", "tcp"),
    ("alias", "alias_service"),
    ("alias", "alias_node"),
    ("udp", "udp"),
    ("grpc", "grpc"),
    ("script", "args"),
    ("systemd", "systemd_unit"),
    ("maintenance", "maintenance"),
    ("kubernetes-readiness", "pod"),
)


class Definition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Common settings: immutable, defaults omitted on disk."""


class CheckDefinition(Definition, frozen=True, kw_only=True):
    """One check; exactly one of its kinds is set. `service_id` is empty for a check of the node."""

    id: str = ""
    name: str = ""
    notes: str = ""
    service_id: str = ""
    status: Status = Status.CRITICAL
    ttl_s: float = 0.0
    http: str = ""
    method: str = "GET"
    header: dict[str, list[str]] = {}
    body: str = ""
    tls_skip_verify: bool = False
    tcp: str = ""
    udp: str = ""
    grpc: str = ""
    grpc_use_tls: bool = False
    args: tuple[str, ...] = ()
    systemd_unit: str = ""
    alias_node: str = ""
    alias_service: str = ""
    interval_s: float = 0.0
    timeout_s: float = 10.0
    success_before_passing: int = 0
    failures_before_critical: int = 0
    deregister_after_s: float = 0.0
    output_max_bytes: int = 0
    """Less output than the agent would keep; 0: as much as the agent keeps."""
    maintenance: bool = False
    """Only set by maintenance mode: critical until it is taken away."""
    pod: str = ""
    """`namespace/name` of the pod whose readiness this is. Its `status` and `notes` say what Kubernetes says; nothing is run."""

    @property
    def kind(self) -> str:
        """ttl, http, tcp, udp, grpc, script, systemd, alias, maintenance or kubernetes-readiness; '' if nothing is set."""
        return next((kind for kind, field in _KINDS if getattr(self, field)), "")


class ServiceDefinition(Definition, frozen=True, kw_only=True):
    """One service instance. `sidecar` is registered with it as `<id>-sidecar-proxy`."""

    name: str
    id: str = ""
    tags: tuple[str, ...] = ()
    address: str = ""
    port: int = 0
    meta: dict[str, str] = {}
    kind: str = ""
    proxy: Proxy | None = None
    connect_native: bool = False
    weights: Weights = Weights()
    enable_tag_override: bool = False
    tagged_addresses: dict[str, ServiceAddress] = {}
    checks: tuple[CheckDefinition, ...] = ()
    sidecar: "ServiceDefinition | None" = None

    @property
    def service_id(self) -> str:
        """The id, which is the name unless it was given."""
        return self.id or self.name

    @property
    def all_checks(self) -> tuple[CheckDefinition, ...]:
        """Its own checks and its sidecar's."""
        return self.checks + (self.sidecar.checks if self.sidecar is not None else ())
