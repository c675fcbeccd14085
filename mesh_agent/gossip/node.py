"""A node as SWIM knows it. Pure."""

import math
from dataclasses import dataclass
from enum import IntEnum

from mesh_agent.gossip.effects import Address
from mesh_agent.gossip.wire import Alive


class State(IntEnum):
    """On the wire in push/pull: append only."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


@dataclass(slots=True)
class Node:
    """What is known of one node."""

    name: str
    address: str
    port: int
    meta: bytes
    versions: tuple[int, ...]
    incarnation: int
    state: State
    changed_at: float
    told_at: float = -math.inf

    @property
    def at(self) -> Address:
        """Where to reach it."""
        return self.address, self.port

    @property
    def gone(self) -> bool:
        """Dead or left."""
        return self.state >= State.DEAD

    @property
    def protocol(self) -> int:
        """The newest protocol that it speaks: 3 answers pings over TCP, 4 sends nacks, 5 reads a CRC."""
        return self.versions[1]

    @property
    def reads_crc(self) -> bool:
        """Whether a packet for it may carry a CRC."""
        return self.protocol >= 5

    def as_alive(self) -> Alive:
        """The message that says so."""
        return Alive(self.incarnation, self.name, self.address, self.port, self.meta, self.versions)
