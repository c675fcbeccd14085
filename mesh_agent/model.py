"""Plain domain types: what a datacenter's catalog holds. They import nothing of ours and do no I/O.

Names follow the glossary; JSON shapes of Consul's API are the business of `http`. Structs are frozen: replace, never mutate.
"""

from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

SERF_HEALTH = "serfHealth"
"""Id of the node check that gossip drives, as in Consul."""

SERVERS = "consul"
"""Name and id of the service that the servers themselves are, as in Consul; gossip drives it too."""


class Status(StrEnum):
    """Status of a check, and the worst status of a set of checks."""

    PASSING = "passing"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def severity(self) -> int:
        """0 passing, 1 warning, 2 critical."""
        return _SEVERITY[self]


_SEVERITY = {Status.PASSING: 0, Status.WARNING: 1, Status.CRITICAL: 2}


class Model(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Common settings of the domain types: immutable, defaults omitted on the wire, unknown fields ignored."""


class Node(Model, frozen=True, kw_only=True):
    """A machine that runs an agent."""

    name: str
    id: str = ""
    address: str = ""
    tagged_addresses: dict[str, str] = {}
    meta: dict[str, str] = {}


class Upstream(Model, frozen=True, kw_only=True):
    """A service that a proxy calls, bound to a local port."""

    destination_name: str
    datacenter: str = ""
    local_bind_address: str = "127.0.0.1"
    local_bind_port: int = 0
    config: dict[str, Any] = {}


class Proxy(Model, frozen=True, kw_only=True):
    """The part of a `connect-proxy` registration that says for whom it stands and what it calls."""

    destination_service: str
    destination_id: str = ""
    local_address: str = "127.0.0.1"
    local_port: int = 0
    mode: str = ""
    upstreams: tuple[Upstream, ...] = ()
    config: dict[str, Any] = {}


class Weights(Model, frozen=True, kw_only=True):
    """DNS SRV weights by health."""

    passing: int = 1
    warning: int = 1


class ServiceAddress(Model, frozen=True, kw_only=True):
    """An address of a service for one network (`lan`, `wan`, ...)."""

    address: str
    port: int = 0


class Service(Model, frozen=True, kw_only=True):
    """One service instance as registered on a node; (node, id) is its identity."""

    id: str
    name: str
    node: str
    address: str = ""
    port: int = 0
    tags: tuple[str, ...] = ()
    meta: dict[str, str] = {}
    kind: str = ""
    proxy: Proxy | None = None
    connect_native: bool = False
    weights: Weights = Weights()
    enable_tag_override: bool = False
    tagged_addresses: dict[str, ServiceAddress] = {}

    @property
    def connect_name(self) -> str | None:
        """The service whose mesh traffic this instance accepts; None if it is outside the mesh."""
        if self.kind == "connect-proxy" and self.proxy is not None:
            return self.proxy.destination_service
        return self.name if self.connect_native else None


class Check(Model, frozen=True, kw_only=True):
    """The state of one check; `service_id` is empty for a check of the node as a whole."""

    id: str
    node: str
    name: str = ""
    status: Status = Status.CRITICAL
    notes: str = ""
    output: str = ""
    service_id: str = ""
    service_name: str = ""
    service_tags: tuple[str, ...] = ()
    kind: str = ""
    interval: str = ""
    timeout: str = ""


class Instance(NamedTuple):
    """A service instance with its node and every check that bears on it (the node's and its own)."""

    node: Node
    service: Service
    checks: tuple[Check, ...]
    create_index: int
    modify_index: int

    @property
    def status(self) -> Status:
        """The worst status of the checks; passing without checks."""
        return max((check.status for check in self.checks), key=lambda status: status.severity, default=Status.PASSING)

    @property
    def address(self) -> str:
        """Where to reach it: its own address, or its node's."""
        return self.service.address or self.node.address


class Action(StrEnum):
    """What an intention says about a source and a destination."""

    ALLOW = "allow"
    DENY = "deny"


class Intention(Model, frozen=True, kw_only=True):
    """Whether `source` may talk to `destination`; `*` stands for every service. One per pair; federated."""

    source: str
    destination: str
    action: Action
    description: str = ""
    meta: dict[str, str] = {}
    created_at: float = 0.0
    updated_at: float = 0.0

    @property
    def precedence(self) -> int:
        """Larger wins: 9 exact to exact, 8 any source to an exact destination, 6 exact to any, 5 any to any (Consul's numbers)."""
        if self.destination != "*":
            return 9 if self.source != "*" else 8
        return 6 if self.source != "*" else 5


class Root(Model, frozen=True, kw_only=True):
    """A root certificate of one datacenter's CA, part of the trust bundle of all; federated."""

    datacenter: str
    fingerprint: str
    certificate_pem: str
    active: bool = True
    not_before: float = 0.0
    not_after: float = 0.0


class ConfigEntry(Model, frozen=True, kw_only=True):
    """Settings of one service or of all, one per kind and name; federated. `settings` are spelled as in Consul's API.

    A `service-intentions` entry holds its meta alone: its sources are the intentions of that destination.
    """

    kind: str
    name: str
    settings: dict[str, Any] = {}
    meta: dict[str, str] = {}


FederatedValue = Intention | Root | ConfigEntry


class Federated(Model, frozen=True, kw_only=True):
    """Envelope of an object that every datacenter stores: newest timestamp wins, `value` None is a tombstone.

    `value` is an `Intention`, `Root` or `ConfigEntry` as plain JSON; `stamp` is (wall ms, counter, origin datacenter), see `hlc`.
    `conflict` keeps a concurrent value that lost.
    """

    stamp: tuple[int, int, str]
    value: dict[str, Any] | None = None
    conflict: dict[str, Any] | None = None


class Record(NamedTuple):
    """One stored object with its key and the revisions at which it was created and last changed."""

    key: str
    value: bytes
    created: int
    revision: int


class Topic(NamedTuple):
    """A set of records that is read, watched and subscribed to as one.

    kinds: `service` (instances of a name), `connect` (the mesh endpoints of a name), `node` (a node with all that is on it),
    `federated` (intentions, config entries, roots: everything that all datacenters share; name empty), `all` (a whole datacenter).
    """

    datacenter: str
    kind: str
    name: str = ""
