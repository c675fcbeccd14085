"""What an operator may choose about controllers. Pure."""

import re
from fnmatch import fnmatchcase

import msgspec

from mesh_agent.errors import ConfigError

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,58}[a-z0-9])?\Z")
NODE_PORT_ADDRESSES = ("ExternalFirst", "ExternalOnly", "InternalOnly")


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A typo is an error, not a setting that does nothing."""


class ToMesh(Section, frozen=True, kw_only=True):
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
            raise ValueError(
                f"node port addresses: {self.node_port_addresses!r} is none of {', '.join(NODE_PORT_ADDRESSES)}"
            )

    def takes(self, namespace: str) -> bool:
        """Whether services of a namespace may be known to the mesh."""
        return matches(namespace, self.allow_namespaces) and not matches(namespace, self.deny_namespaces)


class ToKubernetes(Section, frozen=True, kw_only=True):
    """Services of the mesh that the cluster knows."""

    enabled: bool = False
    namespace: str = "mesh-services"
    datacenters: tuple[str, ...] = ()
    """Other datacenters whose services are wanted too; the own one's always are."""
    exclude: tuple[str, ...] = ("consul", "*-sidecar-proxy")
    """Patterns of services that nobody calls by this road."""
    domain: str = "mesh"


class Settings(Section, frozen=True, kw_only=True):
    """Settings of all controllers. Durations are seconds."""

    cluster: str = ""
    """Default: the datacenter."""
    datacenter: str = ""
    """Filled in from the agent."""
    namespace: str = "mesh-system"
    identity: str = ""
    """Which replica this is."""
    lease_s: float = 15.0
    resync_s: float = 60.0
    """How often everything is compared anew, although nothing seems to have changed."""
    bundle_namespaces: tuple[str, ...] = ()
    """Patterns of namespaces that get the trust bundle whatever they are labelled."""
    to_mesh: ToMesh = ToMesh()
    to_kubernetes: ToKubernetes = ToKubernetes()


def load(text: str, *, cluster: str, namespace: str, identity: str) -> Settings:
    """Settings from a JSON object and what the pod knows of itself; ConfigError says what is wrong."""
    try:
        found = msgspec.json.decode(text, type=Settings)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"the controllers' settings are wrong: {error}") from error
    if cluster and not _NAME.match(cluster):
        raise ConfigError(f"the cluster's name is {cluster!r}; use lower case letters, digits and '-', at most 60")
    return msgspec.structs.replace(found, cluster=cluster, namespace=namespace, identity=identity)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether any pattern (`*` and `?`) fits."""
    return any(fnmatchcase(name, each) for each in patterns)
