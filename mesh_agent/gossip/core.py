"""What the parts of a SWIM machine have in common. Pure."""

import random
from dataclasses import dataclass, field

from mesh_agent.gossip.awareness import Awareness
from mesh_agent.gossip.config import GossipConfig
from mesh_agent.gossip.delegate import Delegate
from mesh_agent.gossip.node import Node
from mesh_agent.gossip.timers import Timers


@dataclass(frozen=True, slots=True)
class Core:
    """One node's settings, its table of nodes (which `Membership` alone changes), its timers and its health."""

    config: GossipConfig
    name: str
    delegate: Delegate
    rng: random.Random
    awareness: Awareness
    nodes: dict[str, Node] = field(default_factory=dict)
    timers: Timers = field(default_factory=Timers)
