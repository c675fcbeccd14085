"""Machines in hand: a Swim with a delegate that writes down what it hears, a Serf, and time that passes from deadline to deadline."""

import random
from dataclasses import dataclass, field
from typing import TypeVar

from mesh_agent.gossip import GossipConfig, Keyring, layers, wire
from mesh_agent.gossip import serf_wire as wire_of_serf
from mesh_agent.gossip.effects import Effect, SendPacket
from mesh_agent.gossip.node import Node, State
from mesh_agent.gossip.serf import Serf
from mesh_agent.gossip.swim import Swim

T = TypeVar("T")
SELF = ("10.0.0.1", 7946)
PEER = ("10.0.0.2", 7946)
CODEC = layers.Codec(None, lambda size: b"\0" * size, compression=False)


@dataclass
class Ear:
    """The layer above Swim, for tests of Swim alone."""

    said: list[tuple[str, str]] = field(default_factory=list)
    refused: str | None = None
    pings: list[tuple[str, float]] = field(default_factory=list)
    queue: list[bytes] = field(default_factory=list)

    def node_joined(self, node: Node, now: float) -> None:
        self.said.append(("joined", node.name))

    def node_updated(self, node: Node, now: float) -> None:
        self.said.append(("updated", node.name))

    def node_gone(self, node: Node, now: float) -> None:
        self.said.append((node.state.name.lower(), node.name))

    def user_message(self, payload: bytes, now: float) -> None:
        self.said.append(("user", payload.decode()))

    def has_broadcasts(self) -> bool:
        return bool(self.queue)

    def broadcasts(self, overhead: int, budget: int) -> list[bytes]:
        taken, self.queue = self.queue, []
        return taken

    def local_state(self, *, join: bool) -> bytes:
        return b"state"

    def merge_state(self, state: bytes, now: float) -> None:
        self.said.append(("state", state.decode()))

    def ack_payload(self) -> bytes:
        return b"here"

    def ping_completed(self, node: Node, rtt_s: float, payload: bytes) -> None:
        self.pings.append((node.name, round(rtt_s, 3)))

    def refuse(self, alive: wire.Alive) -> str | None:
        return self.refused


class Bench:
    """A Swim that has been started at time 0."""

    def __init__(self, config: GossipConfig | None = None, *, peers: int = 0) -> None:
        self.ear = Ear()
        self.swim = Swim(config or GossipConfig.lan(), "self", *SELF, self.ear, random.Random(5))
        self.now = 0.0
        self.swim.start(0.0)
        self.effects: list[Effect] = []
        for number in range(peers):
            self.hear(alive(f"p{number}", address=f"10.0.1.{number + 1}"))
        self.take()

    def hear(self, message: wire.Message, sender: tuple[str, int] = PEER) -> None:
        """One message now."""
        self.swim.receive(message, sender, self.now)

    def take(self) -> list[Effect]:
        """The effects since the last call."""
        found, self.effects = self.effects + self.swim.take(), []
        return found

    def sent(self, kind: type[T]) -> list[tuple[tuple[str, int], T]]:
        """Messages of a kind that were sent since the last `take`, and whereto; the rest of the effects is kept."""
        self.effects += self.swim.take()
        return [(effect.to, m) for effect in self.effects if isinstance(effect, SendPacket) for m in unpacked(effect) if isinstance(m, kind)]  # fmt: skip

    def pass_time(self, seconds: float) -> None:
        """From deadline to deadline, as a shell does."""
        end = self.now + seconds
        while (due := self.swim.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.swim.wake(self.now)
        self.now = end

    def state(self, name: str) -> tuple[State, int]:
        """State and incarnation of a node."""
        node = self.swim.nodes[name]
        return node.state, node.incarnation


def unpacked(packet: SendPacket) -> list[wire.Message]:
    """The messages of a packet."""
    return CODEC.decode_packet(layers.compound(list(packet.parts)))


def alive(
    name: str,
    incarnation: int = 1,
    *,
    address: str = PEER[0],
    port: int = 7946,
    meta: bytes = b"",
    versions: tuple[int, ...] = wire.OWN_VERSIONS,
) -> wire.Alive:
    """An alive message."""
    return wire.Alive(incarnation, name, address, port, meta, versions)


def entry(
    name: str, incarnation: int, state: State, *, versions: tuple[int, ...] = wire.OWN_VERSIONS
) -> wire.StateEntry:
    """A node of a push/pull."""
    return wire.StateEntry(name, PEER[0], 7946, b"", incarnation, int(state), versions)


class Member:
    """A Serf that has been started at time 0."""

    def __init__(self, *, keyring: Keyring | None = None, config: GossipConfig | None = None) -> None:
        self.serf = Serf(
            config or GossipConfig.lan(), "self", *SELF, {"role": "node"}, random.Random(5), keyring=keyring
        )
        self.now = 0.0
        self.serf.start(0.0)
        self.serf.take()

    def hear(self, message: wire_of_serf.SerfMessage | wire.Message) -> None:
        """A message of either layer."""
        if not isinstance(message, wire.Ping | wire.Alive | wire.Suspect | wire.Dead | wire.User | wire.Ack | wire.Nack | wire.IndirectPing):  # fmt: skip
            message = wire.User(wire_of_serf.encode(message))
        self.serf.swim.receive(message, PEER, self.now)

    def took(self, kind: type[T]) -> list[T]:
        """Effects of a kind since the last call; others are dropped."""
        return [effect for effect in self.serf.take() if isinstance(effect, kind)]

    def told(self) -> list[tuple[tuple[str, int], wire_of_serf.SerfMessage | None]]:
        """Serf messages that were sent straight to an address since the last call."""
        return [
            (packet.to, wire_of_serf.decode(message.payload))
            for packet in self.took(SendPacket)
            for message in unpacked(packet)
            if isinstance(message, wire.User)
        ]

    def spread(self) -> list[wire_of_serf.SerfMessage | None]:
        """What it gossips of this layer now."""
        return [wire_of_serf.decode(payload) for payload in self.serf.broadcasts(3, 1300)]

    def pass_time(self, seconds: float) -> None:
        """From deadline to deadline."""
        end = self.now + seconds
        while (due := self.serf.swim.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.serf.swim.wake(self.now)
        self.now = end
