"""Keys of the store: the one place that knows how they are spelled. Names are percent-encoded, so any name is safe in a key."""

from functools import lru_cache
from urllib.parse import quote, unquote

NODES = "nodes/"
SERVICES = "services/"
CHECKS = "checks/"
FEDERATED = "federated/"
INTENTIONS = "federated/intentions/"
ROOTS = "federated/roots/"
CONFIG = "federated/config/"
CA = "ca/"
"""The CA's own state, private key included: never in a View, never on a stream."""


@lru_cache(maxsize=16384)
def _part(name: str) -> str:
    return quote(name, safe="")


def node(name: str) -> str:
    """Key of a node."""
    return f"{NODES}{_part(name)}"


def service(node_name: str, service_id: str) -> str:
    """Key of a service instance."""
    return f"{SERVICES}{_part(node_name)}/{_part(service_id)}"


def check(node_name: str, check_id: str) -> str:
    """Key of a check."""
    return f"{CHECKS}{_part(node_name)}/{_part(check_id)}"


def intention(source: str, destination: str) -> str:
    """Key of an intention."""
    return f"{intentions_of(destination)}{_part(source)}"


def intentions_of(destination: str) -> str:
    """Prefix of the keys of a destination's intentions."""
    return f"{INTENTIONS}{_part(destination)}/"


def config_entry(kind: str, name: str) -> str:
    """Key of a config entry."""
    return f"{CONFIG}{_part(kind)}/{_part(name)}"


def root(datacenter: str, fingerprint: str) -> str:
    """Key of a root of the trust bundle."""
    return f"{ROOTS}{_part(datacenter)}/{fingerprint}"


def owner(key: str) -> str:
    """The node that a nodes/, services/ or checks/ key belongs to."""
    return unquote(key.split("/", 2)[1])
