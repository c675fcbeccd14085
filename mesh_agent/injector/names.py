"""Names that the injector, the init container and the node's agent share: what a pod carries once it is injected. Pure.

Containers: `mesh-init` (command `mesh sidecar init`, user 0, group 5994, NET_ADMIN and NET_RAW alone) and `mesh-sidecar` (Envoy as user 5995).
"""

INIT_CONTAINER = "mesh-init"
SIDECAR_CONTAINER = "mesh-sidecar"
SIDECAR_UID = 5995
SIDECAR_GID = 5994
"""User and group of Envoy: traffic of this user in this group is not captured. Images run as any user, also as 5995, but hardly as this pair."""

MESH_VOLUME = "mesh"
MESH_DIRECTORY = "/mesh"
"""Memory volume of the two containers; `mesh-init` writes `bootstrap.json` there."""
BOOTSTRAP_FILE = f"{MESH_DIRECTORY}/bootstrap.json"

TOKEN_VOLUME = "mesh-token"  # noqa: S105 (a volume's name)
TOKEN_DIRECTORY = "/var/run/secrets/mesh.openmesh.io"  # noqa: S105
TOKEN_FILE = f"{TOKEN_DIRECTORY}/token"
"""Service account token of the audience `mesh`; mounted in `mesh-init` alone (environment MESH_TOKEN_FILE)."""
TOKEN_AUDIENCE = "mesh"  # noqa: S105

CA_CONFIG_MAP = "mesh-ca-bundle"
CA_KEY = "roots.pem"
CA_VOLUME = "mesh-ca-bundle"
CA_DIRECTORY = "/mesh-ca"
CA_FILE = f"{CA_DIRECTORY}/{CA_KEY}"
"""The trust bundle; mounted in both containers (environment MESH_CA_FILE of `mesh-init`)."""

PUBLIC_PORT = 20000
"""Envoy's listener for connections from the mesh."""
OUTBOUND_PORT = 15001
"""Envoy's listener for captured outbound connections."""
READY_PORT = 20200
READY_PATH = "/ready"
"""Envoy's readiness: plain HTTP, 200 when the sidecar has its configuration; not captured, admits the pod's gateway and node alone."""
PROBE_PORTS_FROM = 20300
"""Kubelet's probes of captured ports go to ports from here on; MESH_PROBES says where they lead: `20300:8080,20301:9090`."""
RESERVED_PORTS = (OUTBOUND_PORT, PUBLIC_PORT, READY_PORT)

ENV_NODE_IP = "MESH_NODE_IP"
ENV_POD_NAME = "MESH_POD_NAME"
ENV_POD_UID = "MESH_POD_UID"
ENV_POD_NAMESPACE = "MESH_POD_NAMESPACE"
ENV_POD_IP = "MESH_POD_IP"
ENV_AGENT_PORT = "MESH_AGENT_PORT"
"""The agent's HTTPS port for pods (8504)."""
ENV_XDS_PORT = "MESH_XDS_PORT"
"""The agent's xDS port with TLS (8503)."""
ENV_TOKEN_FILE = "MESH_TOKEN_FILE"  # noqa: S105
ENV_CA_FILE = "MESH_CA_FILE"
ENV_PROBES = "MESH_PROBES"
ENV_EXCLUDE_OUTBOUND_CIDRS = "MESH_EXCLUDE_OUTBOUND_CIDRS"
ENV_EXCLUDE_OUTBOUND_PORTS = "MESH_EXCLUDE_OUTBOUND_PORTS"
ENV_EXCLUDE_INBOUND_PORTS = "MESH_EXCLUDE_INBOUND_PORTS"

ANNOTATION_STATUS = "mesh.openmesh.io/status"
