"""What an operator may choose about controllers. Pure."""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from mesh_agent.errors import ConfigError

NODE_PORT_ADDRESSES = ("ExternalFirst", "ExternalOnly", "InternalOnly")


@dataclass(frozen=True, slots=True)
class ToMesh:
    """Services of the cluster that the mesh knows."""

    enabled: bool = True
    by_default: bool = False
    """Without an annotation: False opts in (only services that say so), True opts out."""
    cluster_ip: bool = True
    """Services of type ClusterIP too: useful where pods can be reached from outside the cluster."""
    prefix: str = ""
    namespace_suffix: bool = True
    """`web` of namespace `shop` is `web-shop` in the mesh; it never is an instance of a mesh service `web`."""
    node_port_addresses: str = "ExternalFirst"
    allow_namespaces: tuple[str, ...] = ("*",)
    deny_namespaces: tuple[str, ...] = ("kube-system", "kube-public", "kube-node-lease")

    def __post_init__(self) -> None:
        if self.node_port_addresses not in NODE_PORT_ADDRESSES:
            raise ConfigError(
                f"node port addresses: {self.node_port_addresses!r} is none of {', '.join(NODE_PORT_ADDRESSES)}"
            )

    def takes(self, namespace: str) -> bool:
        """Whether services of a namespace may be known to the mesh."""
        return matches(namespace, self.allow_namespaces) and not matches(namespace, self.deny_namespaces)


@dataclass(frozen=True, slots=True)
class ToKubernetes:
    """Services of the mesh that the cluster knows."""

    enabled: bool = False
    namespace: str = "mesh-services"
    datacenters: tuple[str, ...] = ()
    """Other datacenters whose services are wanted too; the own one's always are."""
    exclude: tuple[str, ...] = ("consul", "*-sidecar-proxy")
    """Patterns of services that nobody calls by this road."""
    domain: str = "mesh"


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of all controllers. Durations are seconds."""

    cluster: str
    datacenter: str = ""
    """Filled in from the agent."""
    namespace: str = "mesh-system"
    identity: str = ""
    """Which replica this is."""
    lease_s: float = 15.0
    resync_s: float = 60.0
    """How often everything is compared anew, although nothing seems to have changed."""
    to_mesh: ToMesh = field(default_factory=ToMesh)
    to_kubernetes: ToKubernetes = field(default_factory=ToKubernetes)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether any pattern (`*` and `?`) fits."""
    return any(fnmatchcase(name, each) for each in patterns)
