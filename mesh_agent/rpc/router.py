"""Which servers there are, and in which order to try them. Pure.

Servers are learnt from gossip: a member with the tag `role=consul`, an integer `port` and its datacenter. One server is preferred until it fails, so
that connections are reused; then the next one is, and the failed one goes to the end of the line.
"""

import random
from collections.abc import Iterable
from typing import NamedTuple, Protocol


class MemberLike(Protocol):
    """What the router reads of a gossip member."""

    @property
    def name(self) -> str:
        """Member name; `<node>.<dc>` in the WAN pool."""
        ...

    @property
    def address(self) -> str:
        """IP address."""
        ...

    @property
    def tags(self) -> dict[str, str]:
        """Tags."""
        ...

    @property
    def status(self) -> str:
        """alive, leaving, left or failed."""
        ...


class ServerAddress(NamedTuple):
    """One server: where its RPC listens, and the fingerprints of the roots that its gossip tag vouches for."""

    name: str
    datacenter: str
    address: str
    port: int
    roots: tuple[str, ...]

    @property
    def target(self) -> str:
        """As an HTTP target."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"https://{host}:{self.port}"


def server_of(member: MemberLike) -> ServerAddress | None:
    """The server that a member says it is, or None."""
    tags = member.tags
    port = tags.get("port", "")
    if tags.get("role") != "consul" or not port.isdigit() or not tags.get("dc"):
        return None
    roots = tuple(root for root in tags.get("roots", "").split(",") if root)
    return ServerAddress(member.name, tags["dc"], member.address, int(port), roots)


class Router:
    """Orders the live servers of a datacenter."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._order: dict[str, list[str]] = {}

    def servers(self, members: Iterable[MemberLike], datacenter: str) -> list[ServerAddress]:
        """Live servers of `datacenter`, the preferred one first; if gossip has none alive, those that failed: after a partition RPC may be first to know."""
        known = [
            (member.status, server)
            for member in members
            if (server := server_of(member)) is not None and server.datacenter == datacenter
        ]
        live = {server.name: server for status, server in known if status == "alive"}
        live = live or {server.name: server for status, server in known if status == "failed"}
        order = [name for name in self._order.get(datacenter, []) if name in live]
        fresh = sorted(name for name in live if name not in order)
        self._rng.shuffle(fresh)
        self._order[datacenter] = order + fresh
        return [live[name] for name in self._order[datacenter]]

    def failed(self, server: ServerAddress) -> None:
        """Try this one last from now on."""
        order = self._order.get(server.datacenter, [])
        if server.name in order:
            order.remove(server.name)
            order.append(server.name)


def datacenters(members: Iterable[MemberLike], own: str) -> list[str]:
    """Datacenters with a server that is known and has not left, the own one first."""
    found = {
        server.datacenter for member in members if member.status != "left" and (server := server_of(member)) is not None
    }
    return [own, *sorted(found - {own})]
