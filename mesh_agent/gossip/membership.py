"""Who is alive: what this node believes of every node, and how a claim (alive, suspect, dead) changes it. Pure.

Theory of operation. Each node has a state and an incarnation that only it raises. States: alive -> suspect (a probe failed) -> dead (nobody refuted it
in time) or left (it said so itself); a suspect refutes by a larger incarnation. A larger incarnation wins; at equal ones dead beats suspect beats alive.
A claim that changes something is passed on; one about ourselves that is not true is outbid.
Deliberately absent: name conflict resolution by vote (a conflict is noticed and the first claim stands).
"""

from mesh_agent.gossip import wire
from mesh_agent.gossip.core import Core
from mesh_agent.gossip.effects import Noticed, SendPacket
from mesh_agent.gossip.node import Node, State
from mesh_agent.gossip.outbox import Outbox
from mesh_agent.gossip.probe_round import ProbeRound
from mesh_agent.gossip.suspicion import Suspicion

MAX_META = 512
_MAX_NAME = 255
_MAX_INCARNATION = 0xFFFFFFFF


class Membership:
    """The nodes of a pool as one of them sees it."""

    def __init__(self, core: Core, outbox: Outbox, probe_round: ProbeRound) -> None:
        """Whoever is learnt is added to `probe_round`."""
        self._core = core
        self._outbox = outbox
        self._round = probe_round
        self._leaving = False
        self._incarnation = 1
        self._suspicions: dict[str, Suspicion] = {}

    @property
    def local(self) -> Node:
        """This node."""
        return self._core.nodes[self._core.name]

    def alive_peers(self) -> list[Node]:
        """The others that are alive and not suspected."""
        return [
            node for node in self._core.nodes.values() if node.state is State.ALIVE and node.name != self._core.name
        ]

    def postpone(self, by_s: float) -> None:
        """Time in which we could not have heard a suspect does not count."""
        for suspicion in self._suspicions.values():
            suspicion.postpone(by_s)

    # this node

    def set_meta(self, meta: bytes, now: float) -> None:
        """Tell everybody new metadata."""
        if len(meta) > MAX_META:
            raise ValueError(f"metadata of {len(meta)} bytes is longer than {MAX_META}")
        own = self.local
        own.meta = meta
        self._outbid(own, self._incarnation)
        self._core.delegate.node_updated(own, now)

    def leave(self, now: float) -> None:
        """Say goodbye: dead, by own hand."""
        self._leaving = True
        self.dead(wire.Dead(self.local.incarnation, self._core.name, self._core.name), now)

    def leave_is_out(self) -> bool:
        """Whether the goodbye has been sent often enough, or nobody is there to hear it."""
        return not self._outbox.queue.waits(self._core.name) or not self.alive_peers()

    def forget(self, name: str) -> None:
        """Drop a dead node."""
        node = self._core.nodes.get(name)
        if node is not None and node.gone:
            del self._core.nodes[name]

    def _refute(self, own: Node, accused: int) -> None:
        """Somebody says otherwise of us."""
        self._core.awareness.apply(1)
        self._outbid(own, accused)

    def _outbid(self, own: Node, incarnation: int) -> None:
        self._incarnation = min(max(self._incarnation, incarnation) + 1, _MAX_INCARNATION)
        own.incarnation = self._incarnation
        self._spread(own.name, own.as_alive())

    def _spread(self, name: str, claim: wire.Alive | wire.Suspect | wire.Dead) -> None:
        self._outbox.queue.queue(name, wire.encode(claim))

    # alive

    def alive(self, alive: wire.Alive, now: float, *, bootstrap: bool = False) -> None:
        """Somebody says that a node is alive; with `bootstrap` we say it of ourselves for the first time."""
        own = alive.node == self._core.name
        node = self._core.nodes.get(alive.node)
        if (own and self._leaving) or (node is not None and not own and self._is_old(node, alive, now)):
            return
        if not self._is_acceptable(alive, own):
            return
        if node is None:
            node = self._learn(alive, now)
        elif node.at != (alive.address, alive.port) and not self._may_move(node, now):
            self._conflict(node, alive)
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
        if node.gone and now - node.told_at > self._core.config.probe_interval_s:
            node.told_at = now
            suspect = wire.Suspect(node.incarnation, node.name, self._core.name)
            self._outbox.emit(SendPacket(node.at, (wire.encode(suspect),)))
        return True

    def _is_acceptable(self, alive: wire.Alive, own: bool) -> bool:
        v = alive.versions
        if len(v) != 6 or not v[0] or not v[1] or v[0] > v[1] or not alive.address or not alive.port:
            return False
        if len(alive.meta) > MAX_META or not 0 < len(alive.node.encode()) <= _MAX_NAME:
            return False
        reason = None if own else self._core.delegate.refuse(alive)
        if reason is not None:
            self._outbox.emit(Noticed(f"node {alive.node!r} is refused: {reason}"))
        return reason is None

    def _learn(self, alive: wire.Alive, now: float) -> Node:
        node = Node(alive.node, alive.address, alive.port, alive.meta, alive.versions, -1, State.DEAD, now)
        self._core.nodes[alive.node] = node
        self._round.add(alive.node)
        return node

    def _may_move(self, node: Node, now: float) -> bool:
        reclaim_s = self._core.config.dead_node_reclaim_s
        return node.state is State.LEFT or (
            node.state is State.DEAD and reclaim_s > 0 and now - node.changed_at > reclaim_s
        )

    def _conflict(self, node: Node, alive: wire.Alive) -> None:
        if alive.incarnation < node.incarnation:
            return
        claims = f"{node.address}:{node.port} and {alive.address}:{alive.port}"
        self._outbox.emit(Noticed(f"two nodes call themselves {node.name!r}: {claims}"))
        if node.name == self._core.name:
            self._refute(node, alive.incarnation)

    def _become_alive(self, node: Node, alive: wire.Alive, now: float) -> None:
        before, meta, at = node.state, node.meta, node.at
        self._suspicions.pop(node.name, None)
        node.incarnation, node.meta, node.versions = alive.incarnation, alive.meta, alive.versions
        node.address, node.port = alive.address, alive.port
        if node.state is not State.ALIVE:
            node.state, node.changed_at = State.ALIVE, now
        self._spread(node.name, alive)
        if before in (State.DEAD, State.LEFT):
            self._core.delegate.node_joined(node, now)
        elif meta != node.meta or at != node.at:
            self._core.delegate.node_updated(node, now)

    # suspect

    def suspect(self, suspect: wire.Suspect, now: float) -> None:
        """Somebody could not reach a node."""
        node = self._core.nodes.get(suspect.node)
        if node is None or suspect.incarnation < node.incarnation:
            return
        suspicion = self._suspicions.get(node.name)
        # A suspicion of a later life of the node (which it has refuted the earlier one with) is a new one, wherever that refutation is.
        if suspicion is not None and suspect.incarnation == node.incarnation:
            if suspicion.confirm(suspect.accuser):
                self._spread(node.name, suspect)
                self._await_refutation(node, suspicion, now)
            return
        if node.gone:
            return
        if node.name == self._core.name:
            self._refute(node, suspect.incarnation)
            return
        self._spread(node.name, suspect)
        node.incarnation, node.state, node.changed_at = suspect.incarnation, State.SUSPECT, now
        suspicion = Suspicion(suspect.accuser, len(self._core.nodes), self._core.config, now)
        self._suspicions[node.name] = suspicion
        self._await_refutation(node, suspicion, now)

    def _await_refutation(self, node: Node, suspicion: Suspicion, now: float) -> None:
        # At the very instant: a timer that fires a rounding error before it would find the suspicion still open.
        ends_at = max(now, suspicion.ends_at)
        self._core.timers.at(ends_at, lambda at: self._suspicion_ends(node.name, suspicion, at))

    def _suspicion_ends(self, name: str, suspicion: Suspicion, now: float) -> None:
        node = self._core.nodes.get(name)
        if node is not None and self._suspicions.get(name) is suspicion and suspicion.ends_at <= now:
            self.dead(wire.Dead(node.incarnation, name, self._core.name), now)

    # dead or left

    def dead(self, dead: wire.Dead, now: float) -> None:
        """Somebody says that a node is dead, or it says itself that it leaves."""
        node = self._core.nodes.get(dead.node)
        if node is None or dead.incarnation < node.incarnation:
            return
        self._suspicions.pop(node.name, None)
        if node.gone:
            return
        if node.name == self._core.name and not self._leaving:
            self._refute(node, dead.incarnation)
            return
        self._spread(node.name, dead)
        node.incarnation, node.changed_at = dead.incarnation, now
        node.state = State.LEFT if dead.accuser == dead.node else State.DEAD
        self._core.delegate.node_gone(node, now)
