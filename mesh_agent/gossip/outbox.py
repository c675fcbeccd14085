"""What a machine wants done: effects in order, packets with as much gossip as fits beside their message, and exchanges that wait for an answer. Pure."""

from collections.abc import Callable

from mesh_agent.gossip import wire
from mesh_agent.gossip.broadcasts import Broadcasts
from mesh_agent.gossip.core import Core
from mesh_agent.gossip.effects import Address, Effect, Exchange, SendPacket

_COMPOUND_HEADER, _COMPOUND_PART = 2, 2
_CRC = 5
_MOST_PARTS = 200

Answered = Callable[[wire.StreamMessage | None, float], None]
"""Called with the answer of a stream (None when there was none) and the time."""


class Outbox:
    """One node's effects, and the broadcasts that ride on its packets."""

    def __init__(self, core: Core, overhead: int) -> None:
        """`overhead` bytes of each datagram are lost to encryption and label."""
        self._core = core
        self._budget = core.config.packet_bytes - _COMPOUND_HEADER - _CRC - overhead
        self.queue = Broadcasts(core.config.retransmit_mult, largest_bytes=self._budget - _COMPOUND_PART)
        self._effects: list[Effect] = []
        self._token = 0
        self._exchanges: dict[int, Answered] = {}

    @property
    def largest_payload_bytes(self) -> int:
        """The largest message of the layer above that fits into a packet of gossip."""
        return self._budget - _COMPOUND_PART - 1

    def emit(self, effect: Effect) -> None:
        """Add an effect."""
        self._effects.append(effect)

    def take(self) -> list[Effect]:
        """The effects since the last call."""
        effects, self._effects = self._effects, []
        return effects

    def send(self, to: Address, message: bytes) -> None:
        """One message, with as much gossip as fits beside it."""
        self.emit(SendPacket(to, (message, *self._gossip(self._budget - len(message) - _COMPOUND_PART))))

    def open(self, to: Address, request: bytes, then: Answered, timeout_s: float) -> None:
        """A request over a stream."""
        self._token += 1
        self._exchanges[self._token] = then
        self.emit(Exchange(to, request, self._token, timeout_s))

    def answered(self, token: int, answer: wire.StreamMessage | None, now: float) -> None:
        """The answer to an `Exchange`; None when there was none."""
        then = self._exchanges.pop(token, None)
        if then is not None:
            then(answer, now)

    def tick(self, now: float) -> None:
        """Gossip to a few nodes; the dead are told for a while, too, so that those who are not can object."""
        self._core.timers.after(now, self._core.config.gossip_interval_s, self.tick)
        if not self.queue and not self._core.delegate.has_broadcasts():
            return
        fresh = now - self._core.config.gossip_to_dead_s
        peers = [
            n for n in self._core.nodes.values() if n.name != self._core.name and (not n.gone or n.changed_at > fresh)
        ]
        for peer in self._core.rng.sample(peers, min(self._core.config.gossip_nodes, len(peers))):
            parts = self._gossip(self._budget)
            if not parts:
                return
            self.emit(SendPacket(peer.at, tuple(parts), peer.reads_crc))

    def _gossip(self, budget: int) -> list[bytes]:
        """Broadcasts that fit: SWIM's own first, then those of the layer above."""
        parts = self.queue.take(_COMPOUND_PART, budget, len(self._core.nodes))
        budget -= sum(len(part) + _COMPOUND_PART for part in parts)
        if budget > _COMPOUND_PART + 1:
            payloads = self._core.delegate.broadcasts(_COMPOUND_PART + 1, budget)
            parts += [wire.encode(wire.User(payload)) for payload in payloads]
        return parts[:_MOST_PARTS]
