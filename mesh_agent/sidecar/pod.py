"""What the injector tells the init container by environment variables. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from mesh_agent.errors import ConfigError
from mesh_agent.injector import names
from mesh_agent.sidecar.capture import Capture


@dataclass(frozen=True, slots=True)
class PodEnvironment:
    """The variables, read."""

    node_ip: str
    pod_ip: str
    pod_name: str
    pod_namespace: str
    pod_uid: str
    token_file: str
    ca_file: str
    agent_port: int
    xds_port: int
    probes: tuple[tuple[int, int], ...]
    exclude_outbound_cidrs: tuple[str, ...]
    exclude_outbound_ports: tuple[int, ...]
    exclude_inbound_ports: tuple[int, ...]

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> "PodEnvironment":
        """From the environment; ConfigError names the variable that is missing or wrong."""
        return cls(
            node_ip=_required(environ, names.ENV_NODE_IP),
            pod_ip=_required(environ, names.ENV_POD_IP),
            pod_name=_required(environ, names.ENV_POD_NAME),
            pod_namespace=_required(environ, names.ENV_POD_NAMESPACE),
            pod_uid=_required(environ, names.ENV_POD_UID),
            token_file=environ.get(names.ENV_TOKEN_FILE, names.TOKEN_FILE),
            ca_file=environ.get(names.ENV_CA_FILE, names.CA_FILE),
            agent_port=_port(names.ENV_AGENT_PORT, environ.get(names.ENV_AGENT_PORT, "8504")),
            xds_port=_port(names.ENV_XDS_PORT, environ.get(names.ENV_XDS_PORT, "8503")),
            probes=tuple(_probe(each) for each in _items(environ, names.ENV_PROBES)),
            exclude_outbound_cidrs=_items(environ, names.ENV_EXCLUDE_OUTBOUND_CIDRS),
            exclude_outbound_ports=_ports(environ, names.ENV_EXCLUDE_OUTBOUND_PORTS),
            exclude_inbound_ports=_ports(environ, names.ENV_EXCLUDE_INBOUND_PORTS),
        )

    def capture(self, *, gateway: str, nameservers: tuple[str, ...]) -> Capture:
        """The rules' facts; the pod's network says the rest."""
        return Capture(
            probers=(gateway, self.node_ip),
            nameservers=nameservers,
            probes=self.probes,
            exclude_outbound_cidrs=self.exclude_outbound_cidrs,
            exclude_outbound_ports=self.exclude_outbound_ports,
            exclude_inbound_ports=self.exclude_inbound_ports,
            envoy_uid=names.SIDECAR_UID,
            envoy_gid=names.SIDECAR_GID,
            public_port=names.PUBLIC_PORT,
            outbound_port=names.OUTBOUND_PORT,
            ready_port=names.READY_PORT,
        )


def _required(environ: Mapping[str, str], name: str) -> str:
    found = environ.get(name, "")
    if not found:
        raise ConfigError(f"{name} is not set; `mesh sidecar init` runs in a pod that the injector has prepared")
    return found


def _items(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in environ.get(name, "").split(",") if part.strip())


def _ports(environ: Mapping[str, str], name: str) -> tuple[int, ...]:
    return tuple(_port(name, each) for each in _items(environ, name))


def _port(name: str, text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ConfigError(f"{name}: {text!r} is not a port (1 to 65535)")
    return int(text)


def _probe(text: str) -> tuple[int, int]:
    port, _, target = text.partition(":")
    return _port(names.ENV_PROBES, port), _port(names.ENV_PROBES, target)
