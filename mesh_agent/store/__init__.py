"""The store: an ordered, transactional, watchable map of keys to bytes. Rules live in `catalog`, never in a backend.

Keys are built by `mesh_agent.catalog.keys`. Revisions are positive,
grow with every commit and never go back, also across restarts of a durable backend.
"""

from collections.abc import AsyncIterator, Collection, Mapping
from typing import NamedTuple, Protocol

from mesh_agent.model import Record


class Snapshot(NamedTuple):
    """Every record below a prefix, as of one revision."""

    revision: int
    records: list[Record]


class Commit(NamedTuple):
    """What one commit did, as a watcher sees it."""

    revision: int
    puts: tuple[Record, ...]
    deletes: tuple[str, ...]


class Store(Protocol):
    """Five methods; memory, SQLite and (later) etcd pass one contract suite (tests/contract/test_store.py)."""

    async def get(self, key: str) -> Record | None:
        """The record at `key`, or None."""
        ...

    async def scan(self, prefix: str) -> Snapshot:
        """All records whose key starts with `prefix`, sorted by key, consistent at one revision (0 for a store never written to)."""
        ...

    async def commit(
        self,
        *,
        puts: Mapping[str, bytes] | None = None,
        deletes: Collection[str] = (),
        expect: Mapping[str, int] | None = None,
    ) -> int:
        """Apply all or nothing and return the new revision (the current one if nothing was to be done).

        `expect` maps a key to the revision it must have now (0: must not exist); otherwise StoreConflict and nothing is written.
        Deleting a missing key is no error. A put of the same bytes still makes a new revision.
        """
        ...

    def watch(self, prefix: str, after: int) -> AsyncIterator[Commit]:
        """Commits with revision > `after` that touch `prefix`, in order, without gaps; endless. StoreConflict if `after` was compacted."""
        ...

    async def close(self) -> None:
        """Release everything; watches end."""
        ...
