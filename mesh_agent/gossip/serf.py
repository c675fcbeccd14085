"""Serf over SWIM: members with tags, who means to stay or to go, events and queries. Pure.

Each member has a status: alive -> leaving -> left when it says goodbye, alive -> failed when SWIM finds it dead, failed -> left when an operator
tells it off. Join and leave intents carry Lamport times, so that the newer one wins wherever it arrives; an intent about an unknown member is kept
for a while. A leave intent about ourselves, while we mean to stay, is answered by a newer join intent. Failed members are looked for now and then,
and forgotten in the end. Source: serf's documentation and wire captures.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto

from mesh_agent.errors import InvalidRequest, NotFound, RemoteProtocolError
from mesh_agent.gossip import serf_wire as wire
from mesh_agent.gossip.broadcasts import Broadcasts
from mesh_agent.gossip.config import GossipConfig
from mesh_agent.gossip.coordinate import Vivaldi, decode_payload, encode_payload
from mesh_agent.gossip.early_intents import EarlyIntents, Intent
from mesh_agent.gossip.effects import (
    Address,
    Departed,
    Effect,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberReaped,
    MemberUpdated,
    Noticed,
)
from mesh_agent.gossip.keyring import Keyring
from mesh_agent.gossip.lamport import LamportClock
from mesh_agent.gossip.member import Member, MemberStatus
from mesh_agent.gossip.membership import MAX_META
from mesh_agent.gossip.messenger import Messenger
from mesh_agent.gossip.node import Node, State
from mesh_agent.gossip.swim import Swim
from mesh_agent.gossip.wire import Alive


class Stage(Enum):
    """What this node is up to."""

    ALIVE = auto()
    LEAVING = auto()
    LEFT = auto()


@dataclass(slots=True)
class _Known:
    """A member with the Lamport time of its last intent, the time at which it went away, and whether it is to be forgotten then."""

    member: Member
    status_lamport: int = 0
    gone_at: float = 0.0
    prune: bool = False

    @property
    def gone(self) -> bool:
        """Whether SWIM has it dead or left."""
        return self.member.status in (MemberStatus.FAILED, MemberStatus.LEFT)


class Serf:
    """One node of a pool. Shell: call the inputs, perform `take()`, call `wake` at `deadline()`."""

    def __init__(
        self,
        config: GossipConfig,
        name: str,
        address: str,
        port: int,
        tags: dict[str, str],
        rng: random.Random,
        *,
        keyring: Keyring | None = None,
        accept: Callable[[Member], str | None] | None = None,
        overhead: int = 0,
    ) -> None:
        """`accept` gives a reason to refuse a member; `overhead` bytes of each datagram go to encryption and label."""
        self.config = config
        self.stage = Stage.ALIVE
        self.clock = LamportClock()
        self.vivaldi = Vivaldi(rng)
        self._tags = dict(tags)
        self._accept = accept
        self._rng = rng
        self._known: dict[str, _Known] = {}
        self._early = EarlyIntents()
        self._joining = 0
        self.swim = Swim(config, name, address, port, self, rng, meta=_meta(tags), overhead=overhead)
        self._queue = Broadcasts(config.retransmit_mult, largest_bytes=self.swim.largest_payload_bytes)
        self.messenger = Messenger(config, self.swim, lambda: self._tags, keyring, rng, self._conflict)

    # shell interface

    def start(self, now: float) -> None:
        """Become alive."""
        self.swim.start(now)
        self._broadcast_intent(wire.Join(self.clock.stamp(), self.swim.name))
        self.swim.after(now, self.config.reap_interval_s, self._reap_tick)
        self.swim.after(now, self.config.reconnect_interval_s, self._reconnect_tick)

    def take(self) -> list[Effect]:
        """The effects since the last call."""
        return self.swim.take()

    @property
    def members(self) -> list[Member]:
        """Everybody known, by name."""
        return [known.member for _, known in sorted(self._known.items())]

    def member(self, name: str) -> Member | None:
        """One member."""
        known = self._known.get(name)
        return None if known is None else known.member

    @property
    def local(self) -> Member:
        """This node."""
        return self._known[self.swim.name].member

    def join(self, to: Address, then: Callable[[str | None, float], None] = lambda error, now: None) -> None:
        """Push/pull with a contact; `then(error, now)`. Events that were fired before are no news to a node that joins."""
        self._joining += 1

        def answered(error: str | None, now: float) -> None:
            self._joining -= 1
            if error is None and self.stage is Stage.ALIVE:
                # Only now the clock is that of the pool, and outbids what was said of us in an earlier life.
                self._broadcast_intent(wire.Join(self.clock.stamp(), self.swim.name))
            then(error, now)

        self.swim.exchange(to, join=True, then=answered)

    def set_tags(self, tags: dict[str, str], now: float) -> None:
        """Tell everybody new tags; InvalidRequest if they are too long."""
        meta = _meta(tags)
        self._tags = dict(tags)
        self.swim.membership.set_meta(meta, now)

    def leave(self, now: float) -> None:
        """Say goodbye; the effect `Departed` tells when the pool has heard it."""
        if self.stage is not Stage.ALIVE:
            return
        self.stage = Stage.LEAVING
        intent = wire.Leave(self.clock.stamp(), self.swim.name)
        self._on_leave(intent, now)
        self._queue.queue("leave", wire.encode(intent))
        self._await_intent(now, now + self.config.broadcast_timeout_s)

    def force_leave(self, name: str, now: float, *, prune: bool = False) -> None:
        """Declare a failed member left (`prune`: and forget it, also if it has left). NotFound for an unknown one."""
        known = self._known.get(name)
        if known is None:
            raise NotFound(f"agent: No node found with name '{name}'")
        intent = wire.Leave(self.clock.stamp(), name, prune)
        self._on_leave(intent, now)
        self._broadcast_intent(intent)

    # delegate of SWIM

    def refuse(self, alive: Alive) -> str | None:
        """A reason not to have this node in the pool."""
        if self._accept is None:
            return None
        return self._accept(
            Member(alive.node, alive.address, alive.port, wire.decode_tags(alive.meta), versions=alive.versions)
        )

    def node_joined(self, node: Node, now: float) -> None:
        """SWIM has it alive."""
        known = self._known.setdefault(node.name, _Known(_member(node, MemberStatus.ALIVE)))
        status = MemberStatus.ALIVE
        intent = self._early.take(node.name)
        if intent is not None and intent.lamport > known.status_lamport:
            known.status_lamport = intent.lamport
            status = MemberStatus.LEAVING if intent.leaves else MemberStatus.ALIVE
        known.member, known.gone_at, known.prune = _member(node, status), 0.0, False
        self.swim.emit(MemberJoined(known.member))

    def node_updated(self, node: Node, now: float) -> None:
        """Its tags or address changed."""
        known = self._known.get(node.name)
        if known is not None:
            known.member = _member(node, known.member.status)
            self.swim.emit(MemberUpdated(known.member))

    def node_gone(self, node: Node, now: float) -> None:
        """SWIM has it dead or left."""
        known = self._known.get(node.name)
        if known is None:
            return
        left = node.state is State.LEFT or known.member.status is MemberStatus.LEAVING
        known.gone_at = now
        known.member = _member(node, MemberStatus.LEFT if left else MemberStatus.FAILED)
        self.swim.emit(MemberLeft(known.member) if left else MemberFailed(known.member))
        if known.prune and node.name != self.swim.name:
            self._prune(known)

    def has_broadcasts(self) -> bool:
        """Whether there is anything to spread."""
        return bool(self._queue or self.messenger.query_queue or self.messenger.event_queue)

    def broadcasts(self, overhead: int, budget: int) -> list[bytes]:
        """Intents, then queries, then events."""
        taken: list[bytes] = []
        for queue in (self._queue, self.messenger.query_queue, self.messenger.event_queue):
            part = queue.take(overhead, budget, self.swim.count)
            budget -= sum(len(message) + overhead for message in part)
            taken += part
        return taken

    def user_message(self, payload: bytes, now: float) -> None:
        """A message of this layer."""
        message = wire.decode(payload)
        if isinstance(message, wire.Leave):
            if self._on_leave(message, now):
                self._broadcast_intent(message)
        elif isinstance(message, wire.Join):
            if self._on_join(message, now):
                self._broadcast_intent(message)
        elif isinstance(message, wire.EventMessage):
            self.messenger.on_event(message)
        elif isinstance(message, wire.QueryMessage):
            self.messenger.on_query(message, now)
        elif isinstance(message, wire.ResponseMessage):
            self.messenger.on_response(message, now)
        elif isinstance(message, wire.Relay) and len(message.message) <= self.swim.largest_payload_bytes:
            self.swim.tell_address((message.address, message.port), message.message)

    def local_state(self, *, join: bool) -> bytes:
        """For push/pull."""
        state = wire.SerfState(
            self.clock.time,
            {name: known.status_lamport for name, known in self._known.items()},
            tuple(name for name, known in self._known.items() if known.member.status is MemberStatus.LEFT),
            self.messenger.events.time,
            self.messenger.seen_events(),
            self.messenger.queries.time,
        )
        return wire.encode(state)

    def merge_state(self, state: bytes, now: float) -> None:
        """Of a push/pull: those who left first, so that their intents are not outbid by the times of the rest."""
        remote = wire.decode(state)
        if not isinstance(remote, wire.SerfState):
            raise RemoteProtocolError("push/pull without serf state")
        for clock, time in (
            (self.clock, remote.lamport),
            (self.messenger.events, remote.event_lamport),
            (self.messenger.queries, remote.query_lamport),
        ):
            if time > 0:
                clock.witness(time - 1)
        if self._joining:
            self.messenger.ignore_events_before(remote.event_lamport)
        own = self._known[self.swim.name]
        if self.stage is Stage.ALIVE and remote.status_lamports.get(self.swim.name, 0) > own.status_lamport:
            # Somebody has had news of us that we have not: told us off, perhaps, without a word to us.
            self._broadcast_intent(wire.Join(self.clock.stamp(), self.swim.name))
        for name in remote.left:
            self._on_leave(wire.Leave(remote.status_lamports.get(name, 0), name), now)
        for name in sorted(remote.status_lamports.keys() - set(remote.left)):
            self._on_join(wire.Join(remote.status_lamports[name], name), now)
        for lamport, events in remote.events:
            for name, payload in events:
                self.messenger.on_event(wire.EventMessage(lamport, name, payload))

    def ack_payload(self) -> bytes:
        """Our coordinate."""
        return encode_payload(self.vivaldi.coordinate)

    def ping_completed(self, node: Node, rtt_s: float, payload: bytes) -> None:
        """Learn from its coordinate."""
        other = decode_payload(payload)
        if other is not None:
            self.vivaldi.observe(node.name, other, rtt_s)

    # intents

    def _on_leave(self, intent: wire.Leave, now: float) -> bool:
        """Whether it is news to pass on."""
        self.clock.witness(intent.lamport)
        known = self._known.get(intent.node)
        if known is None:
            return self._early.add(intent.node, Intent(True, intent.lamport, now))
        if intent.lamport <= known.status_lamport:
            return False
        if intent.node == self.swim.name and self.stage is Stage.ALIVE:
            self._broadcast_intent(wire.Join(self.clock.stamp(), self.swim.name))
            return False
        known.status_lamport = intent.lamport
        status = known.member.status
        if status is MemberStatus.ALIVE:
            self._become(known, MemberStatus.LEAVING)
        elif status is MemberStatus.FAILED:
            self._become(known, MemberStatus.LEFT)
            self.swim.emit(MemberLeft(known.member))
        if intent.prune:
            # A member that still lives may object; it is forgotten once it is gone.
            known.prune = True
            if known.gone:
                self._prune(known)
        return True

    def _on_join(self, intent: wire.Join, now: float) -> bool:
        self.clock.witness(intent.lamport)
        known = self._known.get(intent.node)
        if known is None:
            return self._early.add(intent.node, Intent(False, intent.lamport, now))
        if intent.lamport <= known.status_lamport:
            return False
        known.status_lamport, known.prune = intent.lamport, False
        if known.member.status is MemberStatus.LEAVING and intent.node != self.swim.name:
            self._become(known, MemberStatus.ALIVE)
        return True

    def _broadcast_intent(self, intent: wire.Leave | wire.Join) -> None:
        if intent.node == self.swim.name and isinstance(intent, wire.Join) and self.swim.name in self._known:
            self._known[self.swim.name].status_lamport = intent.lamport
        self._queue.queue("", wire.encode(intent))

    def _become(self, known: _Known, status: MemberStatus) -> None:
        known.member = replace(known.member, status=status)

    # leaving: the intent goes out, then SWIM's goodbye, then a moment for it to spread

    def _await_intent(self, now: float, until: float) -> None:
        if now < until and self._queue.waits("leave") and self._has_company():
            self.swim.after(now, self.config.gossip_interval_s / 2, lambda at: self._await_intent(at, until))
            return
        self.swim.membership.leave(now)
        self._await_goodbye(now, now + self.config.broadcast_timeout_s)

    def _await_goodbye(self, now: float, until: float) -> None:
        if now < until and not self.swim.membership.leave_is_out():
            self.swim.after(now, self.config.gossip_interval_s / 2, lambda at: self._await_goodbye(at, until))
            return
        delay_s = self.config.leave_propagate_s if self._has_company() else 0.0
        self.swim.after(now, delay_s, self._departed)

    def _departed(self, now: float) -> None:
        self.stage = Stage.LEFT
        self.swim.emit(Departed())

    def _has_company(self) -> bool:
        return any(
            known.member.status is MemberStatus.ALIVE for name, known in self._known.items() if name != self.swim.name
        )

    # housekeeping

    def _reap_tick(self, now: float) -> None:
        self.swim.after(now, self.config.reap_interval_s, self._reap_tick)
        keep_s = {
            MemberStatus.FAILED: self.config.failed_timeout_s,
            MemberStatus.LEFT: self.config.tombstone_timeout_s,
        }
        for known in list(self._known.values()):
            limit_s = keep_s.get(known.member.status)
            if limit_s is not None and now - known.gone_at > limit_s and known.member.name != self.swim.name:
                self._prune(known)
        self._early.forget_before(now - self.config.recent_intent_s)

    def _prune(self, known: _Known) -> None:
        name = known.member.name
        self._known.pop(name, None)
        self.swim.membership.forget(name)
        self.vivaldi.forget(name)
        self.swim.emit(MemberReaped(known.member))

    def _reconnect_tick(self, now: float) -> None:
        self.swim.after(now, self.config.reconnect_interval_s, self._reconnect_tick)
        members = [known.member for known in self._known.values()]
        failed = [member for member in members if member.status is MemberStatus.FAILED]
        alive = sum(member.status is MemberStatus.ALIVE for member in members)
        if failed and self._rng.random() < len(failed) / max(1, alive):
            target = self._rng.choice(failed)
            self.swim.emit(Noticed(f"looking for failed member {target.name!r}", warning=False))
            self.swim.exchange((target.address, target.port), join=True)

    def _conflict(self, name: str) -> bytes:
        """What we say to somebody who asks whose name that is."""
        known = self._known.get(name)
        if known is None:
            return bytes([wire.CONFLICT_RESPONSE, 0xC0])
        m = known.member
        return wire.encode_conflict_response(m.name, m.address, m.port, m.tags, m.versions)


def _member(node: Node, status: MemberStatus) -> Member:
    return Member(node.name, node.address, node.port, wire.decode_tags(node.meta), status, node.versions)


def _meta(tags: dict[str, str]) -> bytes:
    meta = wire.encode_tags(tags)
    if len(meta) > MAX_META:
        raise InvalidRequest(
            f"encoded tags are {len(meta)} bytes long; {MAX_META} is the limit: shorten or remove some"
        )
    return meta
