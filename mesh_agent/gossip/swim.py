"""SWIM with Lifeguard: who is alive, and how everybody comes to know. Pure: inputs in, effects out, one heap of timers.

Theory of operation. Each node has a state and an incarnation that only it raises. States: alive -> suspect (a probe failed) -> dead (nobody refuted it
in time) or left (it said so itself); a suspect refutes by a larger incarnation. A larger incarnation wins; at equal ones dead beats suspect beats alive.
Every `probe_interval_s` one node of a shuffled round is probed: ping; after `probe_timeout_s` k others ping it for us (and say so with a nack if they got
nothing), and TCP is tried; at the end of the scaled interval it is suspected. Updates ride on gossip, on probes and on acks; now and then two nodes
exchange everything (push/pull). Sources: Das et al., "SWIM" (2002); Dadgar et al., "Lifeguard" (2018); memberlist's timing rules.
Deliberately absent: name conflict resolution by vote (a conflict is noticed and the first claim stands), protocol version 1 specials.
"""

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from mesh_agent.errors import RemoteProtocolError
from mesh_agent.gossip import wire
from mesh_agent.gossip.awareness import Awareness
from mesh_agent.gossip.broadcasts import Broadcasts
from mesh_agent.gossip.config import GossipConfig
from mesh_agent.gossip.effects import Address, Effect, Exchange, Noticed, SendPacket
from mesh_agent.gossip.suspicion import Suspicion

_MAX_META = 512
_COMPOUND_HEADER, _COMPOUND_PART = 2, 2
_CRC = 5
_MAX_NAME = 255
_MAX_INCARNATION = 0xFFFFFFFF


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

    def refuse(self, alive: wire.Alive) -> str | None:
        """A reason not to have this node in the pool."""
        ...


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
        self.config = config
        self.name = name
        self.nodes: dict[str, Node] = {}
        self.awareness = Awareness(config.awareness_max)
        self.leaving = False
        self._delegate = delegate
        self._rng = rng
        self._versions = versions
        self._budget = config.packet_bytes - _COMPOUND_HEADER - _CRC - overhead
        self._incarnation = 0
        self._seq = 0
        self._token = 0
        self._order: list[str] = []
        self._turn = 0
        self._queue = Broadcasts(config.retransmit_mult, largest_bytes=self._budget - _COMPOUND_PART)
        self._suspicions: dict[str, Suspicion] = {}
        self._probes: dict[int, _Probe] = {}
        self._relays: dict[int, _Relay] = {}
        self._probing: int | None = None
        self._exchanges: dict[int, Callable[[wire.StreamMessage | None, float], None]] = {}
        self._timers: list[tuple[float, int, Callable[[float], None]]] = []
        self._timer_order = 0
        self._out: list[Effect] = []
        self._alive_count = 0
        self._own = (address, port, meta)

    @property
    def largest_payload_bytes(self) -> int:
        """The largest message of the layer above that fits into a packet of gossip."""
        return self._budget - _COMPOUND_PART - 1

    # shell interface

    def start(self, now: float) -> None:
        """Become alive and begin to probe and gossip."""
        address, port, meta = self._own
        self._incarnation = 1
        self._alive(wire.Alive(1, self.name, address, port, meta, self._versions), now, bootstrap=True)
        self.after(now, self._rng.random() * self.config.probe_interval_s, self._probe_tick)
        self.after(now, self._rng.random() * self.config.gossip_interval_s, self._gossip_tick)
        self.after(now, self._rng.random() * self.config.push_pull_interval_s, self._push_pull_tick)

    def take(self) -> list[Effect]:
        """The effects since the last call."""
        effects, self._out = self._out, []
        return effects

    def emit(self, effect: Effect) -> None:
        """Add an effect (for the layer above)."""
        self._out.append(effect)

    def deadline(self) -> float | None:
        """When `wake` wants to be called."""
        return self._timers[0][0] if self._timers else None

    def wake(self, now: float) -> None:
        """Do everything that is due."""
        late_s = now - self._timers[0][0] if self._timers else 0.0
        if late_s > self.config.probe_interval_s:
            self._stood_still(late_s)
        while self._timers and self._timers[0][0] <= now:
            _, _, call = heapq.heappop(self._timers)
            call(now)

    def after(self, now: float, delay_s: float, call: Callable[[float], None]) -> None:
        """Call `call(now)` once `delay_s` has passed."""
        self._call_at(now + delay_s, call)

    def _call_at(self, when: float, call: Callable[[float], None]) -> None:
        self._timer_order += 1
        heapq.heappush(self._timers, (when, self._timer_order, call))

    def _stood_still(self, late_s: float) -> None:
        """The process or the machine was stopped: the answers of the others may still wait in our sockets, so nobody's time has run out yet."""
        self._timers = [(when + late_s, order, call) for when, order, call in self._timers]
        for suspicion in self._suspicions.values():
            suspicion.postpone(late_s)
        for probe in self._probes.values():
            probe.sent_at += late_s
            probe.timed = False
        self.awareness.apply(1)

    def receive(self, message: wire.Message, sender: Address, now: float) -> None:
        """One message of a datagram."""
        if isinstance(message, wire.Ping):
            self._on_ping(message, sender)
        elif isinstance(message, wire.Ack):
            self._on_ack(message, now)
        elif isinstance(message, wire.Alive):
            self._alive(message, now)
        elif isinstance(message, wire.Suspect):
            self._suspect(message, now)
        elif isinstance(message, wire.Dead):
            self._dead(message, now)
        elif isinstance(message, wire.User):
            self._delegate.user_message(message.payload, now)
        elif isinstance(message, wire.IndirectPing):
            self._on_indirect_ping(message, sender, now)
        else:
            self._on_nack(message)

    def answer(self, request: wire.StreamMessage) -> bytes | None:
        """What to answer to a request of a stream, before it is merged with `accept`."""
        if isinstance(request, wire.PushPull):
            return wire.encode_push_pull(self.local_state(join=request.join))
        if isinstance(request, wire.Ping) and request.node == self.name:
            return wire.encode(wire.Ack(request.seq))
        return None

    def accept(self, request: wire.StreamMessage, now: float) -> None:
        """Take over what a request of a stream says."""
        if isinstance(request, wire.PushPull):
            self.merge(request, now)
        elif isinstance(request, wire.User):
            self._delegate.user_message(request.payload, now)

    def reply(self, token: int, answer: wire.StreamMessage | None, now: float) -> None:
        """The answer to an `Exchange`; None when there was none."""
        call = self._exchanges.pop(token, None)
        if call is not None:
            call(answer, now)

    # what the layer above does

    @property
    def local(self) -> Node:
        """This node."""
        return self.nodes[self.name]

    @property
    def count(self) -> int:
        """Nodes that count for scaling, dead ones included as in memberlist."""
        return len(self.nodes)

    def exchange(
        self, to: Address, *, join: bool, then: Callable[[str | None, float], None] = lambda error, now: None
    ) -> None:
        """Push/pull with one address; `then(error, now)` is called after merging, in any case; no error is None."""

        def answered(answer: wire.StreamMessage | None, now: float) -> None:
            error: str | None = "no answer (not running, another encryption key, or not reachable)"
            try:
                if isinstance(answer, wire.PushPull):
                    error = self.merge(answer, now)
                elif isinstance(answer, wire.Error):
                    error = f"it could not read our request: {answer.text}"
            except RemoteProtocolError as broken:
                error = str(broken)
                raise
            finally:
                then(error, now)

        self._open(to, wire.encode_push_pull(self.local_state(join=join)), answered, self.config.stream_timeout_s)

    def set_meta(self, meta: bytes, now: float) -> None:
        """Tell everybody new metadata."""
        if len(meta) > _MAX_META:
            raise ValueError(f"metadata of {len(meta)} bytes is longer than {_MAX_META}")
        own = self.local
        own.meta = meta
        self._incarnation += 1
        own.incarnation = self._incarnation
        self._queue_alive(own)
        self._delegate.node_updated(own, now)

    def leave(self, now: float) -> None:
        """Say goodbye: dead, by own hand."""
        self.leaving = True
        self._dead(wire.Dead(self.local.incarnation, self.name, self.name), now)

    def leave_is_out(self) -> bool:
        """Whether the goodbye has been sent often enough, or nobody is there to hear it."""
        return not self._queue.waits(self.name) or not any(
            n.state is State.ALIVE for n in self.nodes.values() if n.name != self.name
        )

    def tell(self, node: Node, payload: bytes) -> None:
        """Send a message of the layer above straight to a node."""
        self._out.append(SendPacket(node.at, (wire.encode(wire.User(payload)),), node.versions[1] >= 5))

    def tell_address(self, to: Address, payload: bytes) -> None:
        """The same, to an address."""
        self._out.append(SendPacket(to, (wire.encode(wire.User(payload)),)))

    def forget(self, name: str) -> None:
        """Drop a dead node."""
        node = self.nodes.get(name)
        if node is not None and node.gone:
            del self.nodes[name]

    def local_state(self, *, join: bool) -> wire.PushPull:
        """Everything we know."""
        entries = tuple(
            wire.StateEntry(n.name, n.address, n.port, n.meta, n.incarnation, int(n.state), n.versions)
            for n in self.nodes.values()
        )
        return wire.PushPull(entries, self._delegate.local_state(join=join), join)

    def merge(self, remote: wire.PushPull, now: float) -> str | None:
        """Take over another node's state, all of it or (when a version or a member is not acceptable: the reason is returned) nothing."""
        reason = self._unacceptable(remote)
        if reason is not None:
            self._out.append(Noticed(f"push/pull refused: {reason}"))
            return reason
        for entry in remote.entries:
            if entry.state == State.ALIVE:
                alive = wire.Alive(entry.incarnation, entry.node, entry.address, entry.port, entry.meta, entry.versions)
                self._alive(alive, now)
            elif entry.state == State.LEFT:
                self._dead(wire.Dead(entry.incarnation, entry.node, entry.node), now)
            else:  # a death learnt at second hand is a suspicion: the node may refute it
                self._suspect(wire.Suspect(entry.incarnation, entry.node, self.name), now)
        if remote.user_state:
            self._delegate.merge_state(remote.user_state, now)
        return None

    def _unacceptable(self, remote: wire.PushPull) -> str | None:
        sets = [node.versions for node in self.nodes.values() if node.state is State.ALIVE]
        for entry in remote.entries:
            if entry.state != State.ALIVE:
                continue
            if len(entry.versions) != 6:
                return f"node {entry.node!r} has {len(entry.versions)} version bytes, not 6"
            alive = wire.Alive(entry.incarnation, entry.node, entry.address, entry.port, entry.meta, entry.versions)
            reason = None if entry.node == self.name or self._is_known(alive) else self._delegate.refuse(alive)
            if reason is not None:
                return f"node {entry.node!r}: {reason}"
            sets.append(entry.versions)
        for first, what in ((0, "protocol"), (3, "delegate")):
            low, high = max(v[first] for v in sets), min(v[first + 1] for v in sets)
            if any(not low <= v[first + 2] <= high for v in sets):
                return f"{what} versions are incompatible"
        return None

    def _is_known(self, alive: wire.Alive) -> bool:
        node = self.nodes.get(alive.node)
        return node is not None and not node.gone and (*node.at, node.meta) == (alive.address, alive.port, alive.meta)

    # sending

    def _send(self, to: Address, message: bytes, *, crc: bool = False) -> None:
        """One message, with as much gossip as fits beside it."""
        parts = [message, *self._gossip(self._budget - len(message) - _COMPOUND_PART)]
        self._out.append(SendPacket(to, tuple(parts), crc))

    def _gossip(self, budget: int) -> list[bytes]:
        """Broadcasts that fit: memberlist's own first, then those of the layer above."""
        parts = self._queue.take(_COMPOUND_PART, budget, self.count)
        budget -= sum(len(part) + _COMPOUND_PART for part in parts)
        if budget > _COMPOUND_PART + 1:
            parts += [
                wire.encode(wire.User(payload)) for payload in self._delegate.broadcasts(_COMPOUND_PART + 1, budget)
            ]
        return parts[:200]

    def _open(
        self, to: Address, request: bytes, then: Callable[[wire.StreamMessage | None, float], None], timeout_s: float
    ) -> None:
        self._token += 1
        self._exchanges[self._token] = then
        self._out.append(Exchange(to, request, self._token, timeout_s))

    def _next_seq(self) -> int:
        self._seq = (self._seq + 1) & 0xFFFFFFFF
        return self._seq

    def _ping(self, node: str, seq: int) -> bytes:
        own = self.local
        return wire.encode(wire.Ping(seq, node, own.address, own.port, self.name))

    # probing

    def _probe_tick(self, now: float) -> None:
        target = self._next_target() if self._probing is None else None
        if target is not None:
            self._probe(target, now)
        # After the probe's own timers: a probe that ends with this interval makes room for the next one.
        self.after(now, self.config.probe_interval_s, self._probe_tick)

    def _next_target(self) -> Node | None:
        for _ in range(len(self._order) + 1):
            if self._turn >= len(self._order):
                self._order = [name for name in self.nodes if not self.nodes[name].gone or name == self.name]
                self._rng.shuffle(self._order)
                self._turn = 0
                if not self._order:
                    return None
            name = self._order[self._turn]
            self._turn += 1
            node = self.nodes.get(name)
            if node is not None and name != self.name and not node.gone:
                return node
        return None

    def _probe(self, node: Node, now: float) -> None:
        seq = self._next_seq()
        self._probes[seq] = _Probe(node.name, now)
        self._probing = seq
        ping = self._ping(node.name, seq)
        if node.state is State.SUSPECT:
            suspect = wire.encode(wire.Suspect(node.incarnation, node.name, self.name))
            self._out.append(SendPacket(node.at, (ping, suspect), node.versions[1] >= 5))
        else:
            self._send(node.at, ping)
        interval = self.awareness.scale(self.config.probe_interval_s)
        self.after(now, self.config.probe_timeout_s, lambda at: self._probe_indirectly(seq, at))
        self.after(now, interval, lambda at: self._probe_ends(seq, at))

    def _probe_indirectly(self, seq: int, now: float) -> None:
        probe = self._probes.get(seq)
        node = None if probe is None else self.nodes.get(probe.node)
        if probe is None or node is None:
            return
        probe.timed = False
        peers = [n for n in self.nodes.values() if n.state is State.ALIVE and n.name not in (self.name, node.name)]
        own = self.local
        for peer in self._rng.sample(peers, min(self.config.indirect_checks, len(peers))):
            nack = peer.versions[1] >= 4
            probe.nacks_wanted += nack
            ask = wire.IndirectPing(seq, node.name, node.address, node.port, nack, own.address, own.port, self.name)
            self._send(peer.at, wire.encode(ask))
        if node.versions[1] >= 3:
            left_s = probe.sent_at + self.awareness.scale(self.config.probe_interval_s) - now
            self._open(
                node.at,
                self._ping(node.name, seq),
                lambda answer, at: self._on_stream_ack(seq, answer),
                max(0.1, left_s),
            )

    def _on_stream_ack(self, seq: int, answer: wire.StreamMessage | None) -> None:
        probe = self._probes.get(seq)
        if probe is not None and isinstance(answer, wire.Ack) and answer.seq == seq:
            probe.answered_by_stream = True

    def _probe_ends(self, seq: int, now: float) -> None:
        probe = self._probes.pop(seq, None)
        if self._probing == seq:
            self._probing = None
        if probe is None:
            return
        if probe.answered_by_stream:
            self._out.append(
                Noticed(f"node {probe.node!r} answers over TCP but not over UDP: packets are lost, or UDP is blocked")
            )
            self.awareness.apply(-1)
            return
        self.awareness.apply(max(0, probe.nacks_wanted - probe.nacks) if probe.nacks_wanted else 1)
        node = self.nodes.get(probe.node)
        if node is not None:
            self._suspect(wire.Suspect(node.incarnation, node.name, self.name), now)

    def _on_ping(self, ping: wire.Ping, sender: Address) -> None:
        if ping.node and ping.node != self.name:
            return
        to = (ping.source_address, ping.source_port) if ping.source_address and ping.source_port else sender
        self._send(to, wire.encode(wire.Ack(ping.seq, self._delegate.ack_payload())))

    def _on_ack(self, ack: wire.Ack, now: float) -> None:
        relay = self._relays.pop(ack.seq, None)
        if relay is not None:
            self._send(relay.origin, wire.encode(wire.Ack(relay.seq)))
            return
        probe = self._probes.pop(ack.seq, None)
        if probe is None:
            return
        if self._probing == ack.seq:
            self._probing = None
        self.awareness.apply(-1)
        node = self.nodes.get(probe.node)
        # The direct way is timed until others are asked; after that the ack may have come through one of them.
        if node is not None and probe.timed:
            self._delegate.ping_completed(node, now - probe.sent_at, ack.payload)

    def _on_nack(self, nack: wire.Nack) -> None:
        probe = self._probes.get(nack.seq)
        if probe is not None:
            probe.nacks += 1

    def _on_indirect_ping(self, ask: wire.IndirectPing, sender: Address, now: float) -> None:
        if not ask.address or not ask.port:
            raise RemoteProtocolError(f"an indirect ping of {ask.node!r} without an address")
        seq = self._next_seq()
        origin = (ask.source_address, ask.source_port) if ask.source_address and ask.source_port else sender
        self._relays[seq] = _Relay(origin, ask.seq, ask.nack)
        self._send((ask.address, ask.port), self._ping(ask.node, seq))
        self.after(now, self.config.probe_timeout_s, lambda at: self._relay_ends(seq))

    def _relay_ends(self, seq: int) -> None:
        relay = self._relays.pop(seq, None)
        if relay is not None and relay.nack:
            self._send(relay.origin, wire.encode(wire.Nack(relay.seq)))

    # gossip and push/pull

    def _gossip_tick(self, now: float) -> None:
        self.after(now, self.config.gossip_interval_s, self._gossip_tick)
        if not self._queue and not self._delegate.has_broadcasts():
            return
        fresh = now - self.config.gossip_to_dead_s
        peers = [n for n in self.nodes.values() if n.name != self.name and (not n.gone or n.changed_at > fresh)]
        for peer in self._rng.sample(peers, min(self.config.gossip_nodes, len(peers))):
            parts = self._gossip(self._budget)
            if not parts:
                return
            self._out.append(SendPacket(peer.at, tuple(parts), peer.versions[1] >= 5))

    def _push_pull_tick(self, now: float) -> None:
        scale = 1 if self.count <= 32 else math.ceil(math.log2(self.count) - 5) + 1
        self.after(now, self.config.push_pull_interval_s * scale, self._push_pull_tick)
        peers = [n for n in self.nodes.values() if n.name != self.name and n.state is State.ALIVE]
        if peers:
            self.exchange(self._rng.choice(peers).at, join=False)

    # states

    def _queue_alive(self, node: Node) -> None:
        alive = wire.Alive(node.incarnation, node.name, node.address, node.port, node.meta, node.versions)
        self._queue.queue(node.name, wire.encode(alive))

    def _refute(self, own: Node, accused: int) -> None:
        """Somebody says otherwise of us: outbid it."""
        self._incarnation = min(max(self._incarnation, accused) + 1, _MAX_INCARNATION)
        own.incarnation = self._incarnation
        self.awareness.apply(1)
        self._queue_alive(own)

    def _alive(self, alive: wire.Alive, now: float, *, bootstrap: bool = False) -> None:
        own = alive.node == self.name
        node = self.nodes.get(alive.node)
        if (own and self.leaving) or (node is not None and not own and self._is_old(node, alive, now)):
            return
        if not self._is_acceptable(alive, own):
            return
        if node is None:
            node = self._learn(alive, now)
        elif node.at != (alive.address, alive.port) and not self._may_move(node, now):
            if alive.incarnation >= node.incarnation:
                claims = f"{node.address}:{node.port} and {alive.address}:{alive.port}"
                self._out.append(Noticed(f"two nodes call themselves {node.name!r}: {claims}"))
                if own:
                    self._refute(node, alive.incarnation)
            return
        if not own or bootstrap:
            self._become_alive(node, alive, now)
        elif alive.incarnation > node.incarnation or (
            alive.incarnation == node.incarnation and (alive.meta, alive.versions) != (node.meta, node.versions)
        ):
            self._refute(node, alive.incarnation)

    def _is_old(self, node: Node, alive: wire.Alive, now: float) -> bool:
        """Whether it is no news. A gone node that comes back and does not know what we think of it is told, so that it can refute."""
        if alive.incarnation > node.incarnation or node.at != (alive.address, alive.port):
            return False
        if node.gone and now - node.told_at > self.config.probe_interval_s:
            node.told_at = now
            suspect = wire.Suspect(node.incarnation, node.name, self.name)
            self._out.append(SendPacket(node.at, (wire.encode(suspect),)))
        return True

    def _is_acceptable(self, alive: wire.Alive, own: bool) -> bool:
        v = alive.versions
        if len(v) != 6 or not v[0] or not v[1] or v[0] > v[1] or not alive.address or not alive.port:
            return False
        if len(alive.meta) > _MAX_META or not 0 < len(alive.node.encode()) <= _MAX_NAME:
            return False
        reason = None if own else self._delegate.refuse(alive)
        if reason is not None:
            self._out.append(Noticed(f"node {alive.node!r} is refused: {reason}"))
        return reason is None

    def _learn(self, alive: wire.Alive, now: float) -> Node:
        node = Node(alive.node, alive.address, alive.port, alive.meta, alive.versions, -1, State.DEAD, now)
        self.nodes[alive.node] = node
        # At a random place of the round, so that a crowd that joins at once is not probed in the same order by all.
        self._order.insert(self._rng.randint(0, len(self._order)), alive.node)
        return node

    def _may_move(self, node: Node, now: float) -> bool:
        reclaim_s = self.config.dead_node_reclaim_s
        return node.state is State.LEFT or (
            node.state is State.DEAD and reclaim_s > 0 and now - node.changed_at > reclaim_s
        )

    def _become_alive(self, node: Node, alive: wire.Alive, now: float) -> None:
        before, meta, at = node.state, node.meta, node.at
        self._suspicions.pop(node.name, None)
        node.incarnation, node.meta, node.versions = alive.incarnation, alive.meta, alive.versions
        node.address, node.port = alive.address, alive.port
        if node.state is not State.ALIVE:
            node.state, node.changed_at = State.ALIVE, now
        self._queue_alive(node)
        if before in (State.DEAD, State.LEFT):
            self._delegate.node_joined(node, now)
        elif meta != node.meta or at != node.at:
            self._delegate.node_updated(node, now)

    def _suspect(self, suspect: wire.Suspect, now: float) -> None:
        node = self.nodes.get(suspect.node)
        if node is None or suspect.incarnation < node.incarnation:
            return
        suspicion = self._suspicions.get(node.name)
        # A suspicion of a later life of the node (which it has refuted the earlier one with) is a new one, wherever that refutation is.
        if suspicion is not None and suspect.incarnation == node.incarnation:
            if suspicion.confirm(suspect.accuser):
                self._queue.queue(node.name, wire.encode(suspect))
                self._await_refutation(node, suspicion, now)
            return
        if node.gone:
            return
        if node.name == self.name:
            self._refute(node, suspect.incarnation)
            return
        self._queue.queue(node.name, wire.encode(suspect))
        node.incarnation, node.state, node.changed_at = suspect.incarnation, State.SUSPECT, now
        suspicion = Suspicion(suspect.accuser, self.count, self.config, now)
        self._suspicions[node.name] = suspicion
        self._await_refutation(node, suspicion, now)

    def _await_refutation(self, node: Node, suspicion: Suspicion, now: float) -> None:
        # At the very instant: a timer that fires a rounding error before it would find the suspicion still open.
        ends_at = max(now, suspicion.ends_at)
        self._call_at(ends_at, lambda at: self._suspicion_ends(node.name, suspicion, at))

    def _suspicion_ends(self, name: str, suspicion: Suspicion, now: float) -> None:
        node = self.nodes.get(name)
        if node is not None and self._suspicions.get(name) is suspicion and suspicion.ends_at <= now:
            self._dead(wire.Dead(node.incarnation, name, self.name), now)

    def _dead(self, dead: wire.Dead, now: float) -> None:
        node = self.nodes.get(dead.node)
        if node is None or dead.incarnation < node.incarnation:
            return
        self._suspicions.pop(node.name, None)
        if node.gone:
            return
        if node.name == self.name and not self.leaving:
            self._refute(node, dead.incarnation)
            return
        self._queue.queue(node.name, wire.encode(dead))
        node.incarnation, node.changed_at = dead.incarnation, now
        node.state = State.LEFT if dead.accuser == dead.node else State.DEAD
        self._delegate.node_gone(node, now)
