"""The readers' front door to the catalog: what DNS, HTTP reads and xDS ask for."""

from typing import Protocol

from mesh_agent.catalog.view import View
from mesh_agent.model import Topic


class CatalogReader(Protocol):
    """Gives out Views. `datacenter` is the agent's own."""

    datacenter: str

    def view(self, topic: Topic) -> View | None:
        """A View that answers `topic` right now without waiting; None if unknown yet, or if its datacenter cannot be reached."""
        ...

    async def ensure(self, topic: Topic, timeout_s: float = 2.0) -> View:
        """Subscribe to `topic` and wait until it can be answered; NoPathToDatacenter or NoServers when it cannot."""
        ...

    def datacenters(self) -> list[str]:
        """Known datacenters, the own one first."""
        ...

    def known_leader(self) -> bool:
        """Whether a server of the own datacenter can be reached right now."""
        ...
