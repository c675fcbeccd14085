"""A server's exchange of federated objects with every other datacenter: follow theirs, keep the newest of both.

Each datacenter stores all intentions and roots. A server subscribes to the `federated` topic of each other datacenter and merges what it sees into its
own store; its own changes reach the others the same way. Merging is idempotent and commutative, so any order and any repetition converges.
"""

import asyncio
import logging
from collections.abc import Callable

from mesh_agent.catalog import keys
from mesh_agent.catalog.federation import merge, stamp_of
from mesh_agent.catalog.runner import Subscriber
from mesh_agent.catalog.view import View
from mesh_agent.clock import Clock
from mesh_agent.errors import MeshError, StoreConflict
from mesh_agent.hlc import HybridClock
from mesh_agent.model import Record, Root, Topic
from mesh_agent.store import Store

log = logging.getLogger(__name__)
_RETRY_S = 1.0


class Federation:
    """Merges the federated objects of other datacenters into the own store."""

    def __init__(
        self, own: View, store: Store, hybrid: HybridClock, clock: Clock, vouched: Callable[[Root], bool]
    ) -> None:
        """`vouched(root)` tells whether encrypted gossip names that root's fingerprint for its datacenter."""
        self._own = own
        self._store = store
        self._hybrid = hybrid
        self._clock = clock
        self._vouched = vouched
        self._dirty = asyncio.Event()
        self._remotes: dict[str, View] = {}

    def follow(self, subscriber: Subscriber, datacenter: str) -> None:
        """Merge what `datacenter` holds, now and after each change."""
        replica = subscriber.want(Topic(datacenter, "federated"))
        self._remotes[datacenter] = replica.view
        replica.watch(self._dirty.set)

    def recheck(self) -> None:
        """Gossip changed: a root that nobody vouched for may be vouched for now."""
        self._dirty.set()

    async def run(self) -> None:
        """Merge whenever something changed, for ever."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                for datacenter, view in tuple(self._remotes.items()):
                    await self._merge(datacenter, view)
            except StoreConflict:
                self._dirty.set()
            except MeshError as error:
                log.warning("federated objects could not be merged, trying again: %s", error)
                await asyncio.sleep(_RETRY_S)
                self._dirty.set()

    async def _merge(self, datacenter: str, view: View) -> None:
        puts: dict[str, bytes] = {}
        expect: dict[str, int] = {}
        for key, remote in view.records(Topic(datacenter, "federated")).items():
            local = self._own.record(key)
            winner = None if not self._acceptable(key, remote, view) else merge(local, remote)
            if winner is not None:
                self._hybrid.observe(stamp_of(remote), self._clock.wall())
                puts[key] = winner
                expect[key] = 0 if local is None else local.revision
        if puts:
            await self._store.commit(puts=puts, expect=expect)
            log.info("merged %d federated objects of datacenter %s", len(puts), datacenter)

    def _acceptable(self, key: str, remote: Record, view: View) -> bool:
        """A root is taken over only if gossip vouches for it, wherever it was heard of."""
        if not key.startswith(keys.ROOTS):
            return True
        local = self._own.record(key)
        if local is not None and local.value == remote.value:
            return False
        root = view.root(key)
        return root is None or self._vouched(root)
