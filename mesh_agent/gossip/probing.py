"""Probing: whether a node answers, asked directly, through others, and over TCP. Pure.

Theory of operation. Every `probe_interval_s` one node of a shuffled round is probed: ping; after `probe_timeout_s` k others ping it for us (and say so
with a nack if they got nothing), and TCP is tried; at the end of the scaled interval it is suspected. An ack that comes any way saves it. Missing nacks
say that the fault is ours: they, and refutations, raise the local health score (see `awareness`), which stretches the interval.
Sources: Das et al., "SWIM" (2002), sections 3 and 4; Dadgar et al., "Lifeguard" (2018); memberlist's timing rules.
"""

from dataclasses import dataclass

from mesh_agent.errors import RemoteProtocolError
from mesh_agent.gossip import wire
from mesh_agent.gossip.core import Core
from mesh_agent.gossip.effects import Address, Noticed, SendPacket
from mesh_agent.gossip.membership import Membership
from mesh_agent.gossip.node import Node, State
from mesh_agent.gossip.outbox import Outbox
from mesh_agent.gossip.probe_round import ProbeRound

_LEAST_STREAM_S = 0.1


@dataclass(slots=True)
class _Probe:
    """A probe of ours that waits for an ack."""

    node: str
    sent_at: float
    nacks_wanted: int = 0
    nacks: int = 0
    timed: bool = True
    answered_by_stream: bool = False


@dataclass(slots=True)
class _Relay:
    """A ping that we send for somebody else."""

    origin: Address
    seq: int
    nack: bool


class Probing:
    """One node's probes, and its answers to those of others."""

    def __init__(self, core: Core, membership: Membership, outbox: Outbox, probe_round: ProbeRound) -> None:
        self._core = core
        self._membership = membership
        self._outbox = outbox
        self._round = probe_round
        self._seq = 0
        self._probes: dict[int, _Probe] = {}
        self._relays: dict[int, _Relay] = {}
        self._probing: int | None = None

    def postpone(self, by_s: float) -> None:
        """Time in which we could not have heard an ack does not count, and no round trip is known of it."""
        for probe in self._probes.values():
            probe.sent_at += by_s
            probe.timed = False

    # our probes

    def tick(self, now: float) -> None:
        """Probe the next node, unless a probe is still on its way."""
        target = self._round.next() if self._probing is None else None
        if target is not None:
            self._probe(target, now)
        # After the probe's own timers: a probe that ends with this interval makes room for the next one.
        self._core.timers.after(now, self._core.config.probe_interval_s, self.tick)

    def _probe(self, node: Node, now: float) -> None:
        seq = self._next_seq()
        self._probes[seq] = _Probe(node.name, now)
        self._probing = seq
        ping = self._ping(node.name, seq)
        if node.state is State.SUSPECT:
            suspect = wire.encode(wire.Suspect(node.incarnation, node.name, self._core.name))
            self._outbox.emit(SendPacket(node.at, (ping, suspect), node.reads_crc))
        else:
            self._outbox.send(node.at, ping)
        self._core.timers.after(now, self._core.config.probe_timeout_s, lambda at: self._probe_indirectly(seq, at))
        self._core.timers.after(now, self._interval_s, lambda at: self._probe_ends(seq, at))

    def _probe_indirectly(self, seq: int, now: float) -> None:
        probe = self._probes.get(seq)
        node = None if probe is None else self._core.nodes.get(probe.node)
        if probe is None or node is None:
            return
        probe.timed = False
        own = self._membership.local
        peers = [peer for peer in self._membership.alive_peers() if peer is not node]
        for peer in self._core.rng.sample(peers, min(self._core.config.indirect_checks, len(peers))):
            nack = peer.protocol >= 4
            probe.nacks_wanted += nack
            ask = wire.IndirectPing(
                seq, node.name, node.address, node.port, nack, own.address, own.port, self._core.name
            )
            self._outbox.send(peer.at, wire.encode(ask))
        if node.protocol >= 3:
            left_s = max(_LEAST_STREAM_S, probe.sent_at + self._interval_s - now)
            ping = self._ping(node.name, seq)
            self._outbox.open(node.at, ping, lambda answer, at: self._on_stream_ack(seq, answer), left_s)

    def _on_stream_ack(self, seq: int, answer: wire.StreamMessage | None) -> None:
        probe = self._probes.get(seq)
        if probe is not None and isinstance(answer, wire.Ack) and answer.seq == seq:
            probe.answered_by_stream = True

    def _probe_ends(self, seq: int, now: float) -> None:
        probe = self._end(seq)
        if probe is None:
            return
        if probe.answered_by_stream:
            self._outbox.emit(
                Noticed(f"node {probe.node!r} answers over TCP but not over UDP: packets are lost, or UDP is blocked")
            )
            self._core.awareness.apply(-1)
            return
        self._core.awareness.apply(max(0, probe.nacks_wanted - probe.nacks) if probe.nacks_wanted else 1)
        node = self._core.nodes.get(probe.node)
        if node is not None:
            self._membership.suspect(wire.Suspect(node.incarnation, node.name, self._core.name), now)

    def on_ack(self, ack: wire.Ack, now: float) -> None:
        """A node that we pinged answers, for ourselves or for somebody else."""
        relay = self._relays.pop(ack.seq, None)
        if relay is not None:
            self._outbox.send(relay.origin, wire.encode(wire.Ack(relay.seq)))
            return
        probe = self._end(ack.seq)
        if probe is None:
            return
        self._core.awareness.apply(-1)
        node = self._core.nodes.get(probe.node)
        # The direct way is timed until others are asked; after that the ack may have come through one of them.
        if node is not None and probe.timed:
            self._core.delegate.ping_completed(node, now - probe.sent_at, ack.payload)

    def on_nack(self, nack: wire.Nack) -> None:
        """Somebody who pings a node for us has not heard of it."""
        probe = self._probes.get(nack.seq)
        if probe is not None:
            probe.nacks += 1

    @property
    def _interval_s(self) -> float:
        return self._core.awareness.scale(self._core.config.probe_interval_s)

    def _end(self, seq: int) -> _Probe | None:
        if self._probing == seq:
            self._probing = None
        return self._probes.pop(seq, None)

    def _next_seq(self) -> int:
        self._seq = (self._seq + 1) & 0xFFFFFFFF
        return self._seq

    def _ping(self, node: str, seq: int) -> bytes:
        own = self._membership.local
        return wire.encode(wire.Ping(seq, node, own.address, own.port, self._core.name))

    # probes of others

    def on_ping(self, ping: wire.Ping, sender: Address) -> None:
        """Somebody asks whether we are alive."""
        if not ping.node or ping.node == self._core.name:
            ack = wire.Ack(ping.seq, self._core.delegate.ack_payload())
            self._outbox.send(_origin(ping, sender), wire.encode(ack))

    def on_indirect_ping(self, ask: wire.IndirectPing, sender: Address, now: float) -> None:
        """Somebody wants us to ping a node."""
        if not ask.address or not ask.port:
            raise RemoteProtocolError(f"an indirect ping of {ask.node!r} without an address")
        seq = self._next_seq()
        self._relays[seq] = _Relay(_origin(ask, sender), ask.seq, ask.nack)
        self._outbox.send((ask.address, ask.port), self._ping(ask.node, seq))
        self._core.timers.after(now, self._core.config.probe_timeout_s, lambda at: self._relay_ends(seq))

    def _relay_ends(self, seq: int) -> None:
        relay = self._relays.pop(seq, None)
        if relay is not None and relay.nack:
            self._outbox.send(relay.origin, wire.encode(wire.Nack(relay.seq)))


def _origin(ping: wire.Ping | wire.IndirectPing, sender: Address) -> Address:
    """Where an answer is wanted."""
    return (ping.source_address, ping.source_port) if ping.source_address and ping.source_port else sender
