"""SWIM with Lifeguard: who is alive, and how everybody comes to know. Pure: inputs in, effects out, one heap of timers.

Theory of operation. The machine has four parts around one table of nodes: `membership` (states and incarnations: which claim wins), `probing` (whether
a node answers), `state_exchange` (push/pull) and `outbox` (what is sent, and the updates that ride on gossip, on probes and on acks). This file hands
each message to its part and each deadline to its timer, and knows when the process has stood still.
Sources: Das et al., "SWIM" (2002); Dadgar et al., "Lifeguard" (2018); memberlist's timing rules. Deliberately absent: protocol version 1 specials.
"""

import random
from collections.abc import Callable

from mesh_agent.gossip import wire
from mesh_agent.gossip.awareness import Awareness
from mesh_agent.gossip.config import GossipConfig
from mesh_agent.gossip.core import Core
from mesh_agent.gossip.delegate import Delegate
from mesh_agent.gossip.effects import Address, Effect, SendPacket
from mesh_agent.gossip.membership import Membership
from mesh_agent.gossip.node import Node
from mesh_agent.gossip.outbox import Outbox
from mesh_agent.gossip.probe_round import ProbeRound
from mesh_agent.gossip.probing import Probing
from mesh_agent.gossip.state_exchange import StateExchange


class Swim:
    """One node's part in the protocol. Every public method that takes `now` (monotonic seconds) may leave effects in `take()`."""

    def __init__(
        self,
        config: GossipConfig,
        name: str,
        address: str,
        port: int,
        delegate: Delegate,
        rng: random.Random,
        *,
        meta: bytes = b"",
        versions: tuple[int, ...] = wire.OWN_VERSIONS,
        overhead: int = 0,
    ) -> None:
        """`overhead` bytes of each datagram are lost to encryption and label."""
        self.awareness = Awareness(config.awareness_max)
        self._core = core = Core(config, name, delegate, rng, self.awareness)
        self.name, self.nodes = name, core.nodes
        self._own = wire.Alive(1, name, address, port, meta, versions)
        self._outbox = Outbox(core, overhead)
        order = ProbeRound(core)
        self.membership = Membership(core, self._outbox, order)
        self._probing = Probing(core, self.membership, self._outbox, order)
        self._push_pull = StateExchange(core, self.membership, self._outbox)

    # shell interface

    def start(self, now: float) -> None:
        """Become alive and begin to probe and gossip."""
        self.membership.alive(self._own, now, bootstrap=True)
        for interval_s, tick in (
            (self._core.config.probe_interval_s, self._probing.tick),
            (self._core.config.gossip_interval_s, self._outbox.tick),
            (self._core.config.push_pull_interval_s, self._push_pull.tick),
        ):
            self.after(now, self._core.rng.random() * interval_s, tick)

    def take(self) -> list[Effect]:
        """The effects since the last call."""
        return self._outbox.take()

    def deadline(self) -> float | None:
        """When `wake` wants to be called."""
        return self._core.timers.deadline()

    def wake(self, now: float) -> None:
        """Do everything that is due."""
        due = self._core.timers.deadline()
        if due is not None and now - due > self._core.config.probe_interval_s:
            self._stood_still(now - due)
        self._core.timers.fire(now)

    def _stood_still(self, late_s: float) -> None:
        """The process or the machine was stopped: the answers of the others may still wait in our sockets, so nobody's time has run out yet."""
        self._core.timers.postpone(late_s)
        self.membership.postpone(late_s)
        self._probing.postpone(late_s)
        self.awareness.apply(1)

    def receive(self, message: wire.Message, sender: Address, now: float) -> None:
        """One message of a datagram."""
        if isinstance(message, wire.Ping):
            self._probing.on_ping(message, sender)
        elif isinstance(message, wire.Ack):
            self._probing.on_ack(message, now)
        elif isinstance(message, wire.Alive):
            self.membership.alive(message, now)
        elif isinstance(message, wire.Suspect):
            self.membership.suspect(message, now)
        elif isinstance(message, wire.Dead):
            self.membership.dead(message, now)
        elif isinstance(message, wire.User):
            self._core.delegate.user_message(message.payload, now)
        elif isinstance(message, wire.IndirectPing):
            self._probing.on_indirect_ping(message, sender, now)
        else:
            self._probing.on_nack(message)

    def answer(self, request: wire.StreamMessage) -> bytes | None:
        """What to answer to a request of a stream, before it is merged with `accept`."""
        if isinstance(request, wire.PushPull):
            return self._push_pull.state(join=request.join)
        if isinstance(request, wire.Ping) and request.node == self.name:
            return wire.encode(wire.Ack(request.seq))
        return None

    def accept(self, request: wire.StreamMessage, now: float) -> str | None:
        """Take over what a request of a stream says; the reason if we refuse to."""
        if isinstance(request, wire.PushPull):
            return self._push_pull.merge(request, now)
        if isinstance(request, wire.User):
            self._core.delegate.user_message(request.payload, now)
        return None

    def reply(self, token: int, answer: wire.StreamMessage | None, now: float) -> None:
        """The answer to an `Exchange`; None when there was none."""
        self._outbox.answered(token, answer, now)

    # for the layer above

    @property
    def local(self) -> Node:
        """This node."""
        return self.membership.local

    @property
    def count(self) -> int:
        """Nodes that count for scaling, dead ones included as in memberlist."""
        return len(self.nodes)

    @property
    def largest_payload_bytes(self) -> int:
        """The largest message of the layer above that fits into a packet of gossip."""
        return self._outbox.largest_payload_bytes

    def emit(self, effect: Effect) -> None:
        """Add an effect."""
        self._outbox.emit(effect)

    def after(self, now: float, delay_s: float, call: Callable[[float], None]) -> None:
        """Call `call(now)` once `delay_s` has passed."""
        self._core.timers.after(now, delay_s, call)

    def exchange(
        self, to: Address, *, join: bool, then: Callable[[str | None, float], None] = lambda error, now: None
    ) -> None:
        """Push/pull with one address; `then(error, now)` is called after merging, in any case; no error is None."""
        self._push_pull.exchange(to, join=join, then=then)

    def tell(self, node: Node, payload: bytes) -> None:
        """Send a message of the layer above straight to a node."""
        self.emit(SendPacket(node.at, (wire.encode(wire.User(payload)),), node.reads_crc))

    def tell_address(self, to: Address, payload: bytes) -> None:
        """The same, to an address."""
        self.emit(SendPacket(to, (wire.encode(wire.User(payload)),)))
