"""What the HTTP API needs of the rest, as narrow protocols; `app` hands them in."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mesh_agent.agent.runner import LocalAgent
from mesh_agent.ca.runner import LeafCache
from mesh_agent.catalog.reader import CatalogReader
from mesh_agent.clock import Clock
from mesh_agent.config.settings import AgentConfig
from mesh_agent.http.message import Response
from mesh_agent.telemetry import Metrics


class Pool(Protocol):
    """A gossip pool."""

    @property
    def members(self) -> list[Any]:
        """Everybody known."""
        ...

    @property
    def local(self) -> Any:
        """This node."""
        ...

    @property
    def keyring(self) -> Any:
        """The keyring, None if the pool is not encrypted."""
        ...

    async def join(self, addresses: Iterable[str]) -> int:
        """Join through any of the addresses; JoinFailed if none answers."""
        ...

    def force_leave(self, name: str, *, prune: bool = False) -> None:
        """Declare a failed member left."""
        ...

    async def operate_keys(self, operation: str, key: str = "") -> Any:
        """A key operation on every member."""
        ...


class Forward(Protocol):
    """Hands a request to a server of a datacenter."""

    async def __call__(
        self, datacenter: str, method: str, target: str, body: bytes, *, timeout_s: float, repeatable: bool, hops: int
    ) -> Response:
        """The server's answer; `hops` counts how often the request was forwarded, this time included; NoServers or NoPathToDatacenter without one."""
        ...


class Writer(Protocol):
    """A server's way to change the catalog."""

    async def commit(self, puts: dict[str, bytes], deletes: list[str]) -> int:
        """Write; returns the revision."""
        ...

    async def put_federated(self, key: str, value: Any) -> None:
        """Write an object that all datacenters share; None deletes it."""
        ...

    async def change_federated(self, values: Mapping[str, Any], expect: Mapping[str, int] | None = None) -> None:
        """Write several such objects at once; StoreConflict if a record is not at the expected revision (0: absent)."""
        ...


@dataclass(frozen=True)
class Deps:
    """Everything that routes use. `wan` and `writer` are None on client agents."""

    config: AgentConfig
    node_id: str
    version: str
    catalog: CatalogReader
    agent: LocalAgent
    lan: Pool
    wan: Pool | None
    leafs: LeafCache
    forward: Forward
    writer: Writer | None
    metrics: Metrics
    clock: Clock
    leave: Callable[[], Awaitable[None]]
    after: Callable[[float, Callable[[], None]], Callable[[], None]]
    """`after(seconds, call)` calls once later; the returned function takes it back."""
    future: Callable[[], Any]
    """A fresh future: awaitable, with `set_result` and `done` (asyncio's, which this layer does not import)."""

    @property
    def own(self) -> str:
        """The own datacenter."""
        return self.config.datacenter
