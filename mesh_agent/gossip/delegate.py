"""What SWIM wants of the layer above it (serf), and tells it. Pure."""

from typing import Protocol

from mesh_agent.gossip.node import Node
from mesh_agent.gossip.wire import Alive


class Delegate(Protocol):
    """The layer above: serf."""

    def node_joined(self, node: Node, now: float) -> None:
        """A node is alive that was not."""

    def node_updated(self, node: Node, now: float) -> None:
        """Its metadata or address changed."""

    def node_gone(self, node: Node, now: float) -> None:
        """It is dead or left."""

    def user_message(self, payload: bytes, now: float) -> None:
        """A message for the layer above."""

    def has_broadcasts(self) -> bool:
        """Whether there are payloads to gossip."""
        ...

    def broadcasts(self, overhead: int, budget: int) -> list[bytes]:
        """Payloads to gossip."""
        ...

    def local_state(self, *, join: bool) -> bytes:
        """State for a push/pull."""
        ...

    def merge_state(self, state: bytes, now: float) -> None:
        """The other side's state."""

    def ack_payload(self) -> bytes:
        """Rides on acks of direct pings."""
        ...

    def ping_completed(self, node: Node, rtt_s: float, payload: bytes) -> None:
        """A direct ping was answered."""

    def refuse(self, alive: Alive) -> str | None:
        """A reason not to have this node in the pool."""
        ...
