"""The settings of an agent. Field names are the TOML keys; durations are seconds (`_s`), sizes bytes; -1 switches a port off."""

from typing import Literal

import msgspec


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the settings file: unknown keys are mistakes."""


class Ports(Section, frozen=True, kw_only=True):
    """Listening ports (Consul's numbers); -1: do not listen. On a client agent `server` and `serf_wan` are not used.

    `grpc` (xDS; Consul's is 8502) is off: whoever reaches it reads the private keys of this node's services. Sidecars use the socket in `runtime_dir`.
    `grpc_tls` (xDS for pods) and `kubernetes` (HTTPS for pods and controllers) are open only when `[kubernetes].api` is set.
    """

    http: int = 8500
    https: int = 8501
    grpc: int = -1
    dns: int = 8600
    server: int = 8300
    serf_lan: int = 8301
    serf_wan: int = 8302
    grpc_tls: int = 8503
    kubernetes: int = 8504
    sidecar_min: int = 21000
    sidecar_max: int = 21255


class DnsConfig(Section, frozen=True, kw_only=True):
    """DNS answers."""

    node_ttl_s: int = 0
    service_ttl_s: int = 0
    soa_min_ttl_s: int = 0
    udp_answer_limit: int = 3
    enable_truncate: bool = True
    only_passing: bool = False
    recursors: tuple[str, ...] = ()
    recursor_timeout_s: float = 2.0


class ChecksConfig(Section, frozen=True, kw_only=True):
    """Health checks of this agent."""

    enable_script_checks: bool = False
    output_max_bytes: int = 4096
    update_interval_s: float = 300.0
    """An unchanged output is synced at most this often; a status change at once."""


class CaConfig(Section, frozen=True, kw_only=True):
    """The certificate authority of this datacenter (servers)."""

    root_ttl_s: float = 10 * 365 * 86400.0
    leaf_ttl_s: float = 72 * 3600.0
    agent_ttl_s: float = 72 * 3600.0


class TlsConfig(Section, frozen=True, kw_only=True):
    """HTTPS on `ports.https`. It uses the agent's own mesh certificate; clients must present one of the mesh unless told otherwise."""

    verify_incoming: bool = True


class KubernetesConfig(Section, frozen=True, kw_only=True):
    """The Kubernetes cluster whose node this is. `api` (a URL) switches everything on; without it nothing of Kubernetes runs."""

    api: str = ""
    ca_file: str = ""
    """PEM roots of the API server."""
    token_file: str = ""
    """Token of the service account `mesh-agent`; read again when it changes."""
    controllers: tuple[str, ...] = ("mesh-system/mesh-controller",)
    """Service accounts (`namespace/name`) that may use what controllers need of the HTTP API through `ports.kubernetes`."""
    injectors: tuple[str, ...] = ("mesh-system/mesh-injector",)
    """Service accounts that get the certificate of their webhook, the Service of the same name. Also a setting of servers: they sign for no other."""
    cluster: str = ""
    """Name of the cluster, in the meta of its instances; default: the datacenter."""
    namespaces: tuple[str, ...] = ()
    """Only pods of these namespaces take part; empty: all."""


class TelemetryConfig(Section, frozen=True, kw_only=True):
    """Logs and metrics."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "text"] = "auto"


class AgentConfig(Section, frozen=True, kw_only=True):
    """Everything an agent wants to know. `server` agents hold the store; `bind_addr` is where peers reach this agent."""

    node_name: str
    datacenter: str = "dc1"
    server: bool = False
    dev: bool = False
    data_dir: str = "/var/lib/mesh"
    runtime_dir: str = "/run/mesh"
    services_dir: str = ""
    node_meta: dict[str, str] = {}
    bind_addr: str = "127.0.0.1"
    advertise_addr: str = ""
    advertise_addr_wan: str = ""
    client_addr: str = "127.0.0.1"
    dns_addrs: tuple[str, ...] = ()
    """DNS listens on these addresses too, besides `client_addr`: for a cluster's CoreDNS, which forwards to its node's agent."""
    domain: str = "mesh"
    alt_domain: str = "consul"
    trust_domain: str = "mesh.internal"
    retry_join: tuple[str, ...] = ()
    retry_join_wan: tuple[str, ...] = ()
    retry_interval_s: float = 2.0
    encrypt: str = ""
    encrypt_wan: str = ""
    join_token: str = ""
    encrypt_file: str = ""
    encrypt_wan_file: str = ""
    join_token_file: str = ""
    store: Literal["memory", "sqlite"] = "sqlite"
    default_intention: Literal["allow", "deny"] = "deny"
    leave_on_terminate: bool | None = None
    """Leave gracefully on SIGTERM; default: clients yes when told to by `mesh leave` only, servers no (a restart is not a departure)."""
    max_body_bytes: int = 512 * 1024
    ports: Ports = Ports()
    dns: DnsConfig = DnsConfig()
    checks: ChecksConfig = ChecksConfig()
    ca: CaConfig = CaConfig()
    tls: TlsConfig = TlsConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    @property
    def advertised(self) -> str:
        """The address that LAN peers are told."""
        return self.advertise_addr or self.bind_addr

    @property
    def advertised_wan(self) -> str:
        """The address that other datacenters are told."""
        return self.advertise_addr_wan or self.advertised
