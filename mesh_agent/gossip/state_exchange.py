"""Push/pull: now and then two nodes tell each other everything that they know, over a stream. Pure.

Theory of operation. Gossip may be lost, and a node that joins has heard none of it; a full exchange repairs both. What comes is taken over all or not
at all: one version that some member cannot speak, or one member that the layer above refuses, and the two stay strangers. A claim of an exchange
counts like one of gossip, except that a death learnt at second hand is only a suspicion: the node may refute it.
The larger the pool, the rarer the exchanges: memberlist's scaling, once more for each doubling above 32.
"""

import math
from collections.abc import Callable

from mesh_agent.errors import RemoteProtocolError
from mesh_agent.gossip import wire
from mesh_agent.gossip.core import Core
from mesh_agent.gossip.effects import Address, Noticed
from mesh_agent.gossip.membership import Membership
from mesh_agent.gossip.node import State
from mesh_agent.gossip.outbox import Outbox

_UNSCALED_NODES = 32


class StateExchange:
    """One node's push/pull."""

    def __init__(self, core: Core, membership: Membership, outbox: Outbox) -> None:
        self._core = core
        self._membership = membership
        self._outbox = outbox

    def tick(self, now: float) -> None:
        """Exchange with somebody."""
        count = len(self._core.nodes)
        scale = 1 if count <= _UNSCALED_NODES else math.ceil(math.log2(count) - math.log2(_UNSCALED_NODES)) + 1
        self._core.timers.after(now, self._core.config.push_pull_interval_s * scale, self.tick)
        peers = self._membership.alive_peers()
        if peers:
            self.exchange(self._core.rng.choice(peers).at, join=False)

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

        self._outbox.open(to, self.state(join=join), answered, self._core.config.stream_timeout_s)

    def state(self, *, join: bool) -> bytes:
        """Everything we know."""
        entries = tuple(
            wire.StateEntry(n.name, n.address, n.port, n.meta, n.incarnation, int(n.state), n.versions)
            for n in self._core.nodes.values()
        )
        return wire.encode_push_pull(wire.PushPull(entries, self._core.delegate.local_state(join=join), join))

    def merge(self, remote: wire.PushPull, now: float) -> str | None:
        """Take over another node's state, all of it or (when a version or a member is not acceptable: the reason is returned) nothing."""
        reason = self._unacceptable(remote)
        if reason is not None:
            self._outbox.emit(Noticed(f"push/pull refused: {reason}"))
            return reason
        for entry in remote.entries:
            if entry.state == State.ALIVE:
                self._membership.alive(_alive(entry), now)
            elif entry.state == State.LEFT:
                self._membership.dead(wire.Dead(entry.incarnation, entry.node, entry.node), now)
            else:
                self._membership.suspect(wire.Suspect(entry.incarnation, entry.node, self._core.name), now)
        if remote.user_state:
            self._core.delegate.merge_state(remote.user_state, now)
        return None

    def _unacceptable(self, remote: wire.PushPull) -> str | None:
        versions = [node.versions for node in self._core.nodes.values() if node.state is State.ALIVE]
        for entry in remote.entries:
            if entry.state != State.ALIVE:
                continue
            if len(entry.versions) != 6:
                return f"node {entry.node!r} has {len(entry.versions)} version bytes, not 6"
            reason = None if self._is_known(entry) else self._core.delegate.refuse(_alive(entry))
            if reason is not None:
                return f"node {entry.node!r}: {reason}"
            versions.append(entry.versions)
        for first, what in ((0, "protocol"), (3, "delegate")):
            low, high = max(v[first] for v in versions), min(v[first + 1] for v in versions)
            if any(not low <= v[first + 2] <= high for v in versions):
                return f"{what} versions are incompatible"
        return None

    def _is_known(self, entry: wire.StateEntry) -> bool:
        """Whether the layer above has accepted it as it is, or it is ourselves."""
        node = self._core.nodes.get(entry.node)
        return entry.node == self._core.name or (
            node is not None and not node.gone and (*node.at, node.meta) == (entry.address, entry.port, entry.meta)
        )


def _alive(entry: wire.StateEntry) -> wire.Alive:
    return wire.Alive(entry.incarnation, entry.node, entry.address, entry.port, entry.meta, entry.versions)
