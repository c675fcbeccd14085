"""The store in memory: for tests and `--dev`. Nothing survives the process."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping

from mesh_agent.errors import StoreConflict, StoreUnavailable
from mesh_agent.model import Record
from mesh_agent.store import Commit, Snapshot

_LOG_LENGTH = 10_000


class MemoryStore:
    """A dict with a log of commits."""

    def __init__(self, *, log_length: int = _LOG_LENGTH) -> None:
        self._records: dict[str, Record] = {}
        self._revision = 0
        self._log: deque[Commit] = deque(maxlen=log_length)
        self._changed = asyncio.Event()
        self._closed = False

    async def get(self, key: str) -> Record | None:
        """The record at `key`."""
        self._open()
        return self._records.get(key)

    async def scan(self, prefix: str) -> Snapshot:
        """Records below `prefix`."""
        self._open()
        return Snapshot(self._revision, [self._records[key] for key in sorted(self._records) if key.startswith(prefix)])

    async def commit(
        self,
        *,
        puts: Mapping[str, bytes] | None = None,
        deletes: Collection[str] = (),
        expect: Mapping[str, int] | None = None,
    ) -> int:
        """Apply all or nothing."""
        self._open()
        for key, revision in (expect or {}).items():
            held = self._records.get(key)
            if (0 if held is None else held.revision) != revision:
                raise StoreConflict(f"{key} is not at revision {revision} any more")
        gone = tuple(key for key in deletes if key in self._records and key not in (puts or {}))
        if not puts and not gone:
            return self._revision
        self._revision += 1
        written = []
        for key, value in (puts or {}).items():
            held = self._records.get(key)
            record = Record(key, bytes(value), self._revision if held is None else held.created, self._revision)
            self._records[key] = record
            written.append(record)
        for key in gone:
            del self._records[key]
        self._log.append(Commit(self._revision, tuple(written), gone))
        self._changed.set()
        self._changed = asyncio.Event()
        return self._revision

    async def watch(self, prefix: str, after: int) -> AsyncIterator[Commit]:
        """Commits after `after`."""
        while not self._closed:
            changed = self._changed
            if self._log and self._log[0].revision > after + 1:
                raise StoreConflict(f"revision {after} is no longer in the log")
            for commit in [commit for commit in self._log if commit.revision > after]:
                after = commit.revision
                found = below(commit, prefix)
                if found is not None:
                    yield found
            if not self._closed and self._revision <= after:
                await changed.wait()

    async def close(self) -> None:
        """End every watch."""
        self._closed = True
        self._changed.set()

    def _open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")


def below(commit: Commit, prefix: str) -> Commit | None:
    """The part of a commit that touches `prefix`, or None."""
    if not prefix:
        return commit
    puts = tuple(record for record in commit.puts if record.key.startswith(prefix))
    deletes = tuple(key for key in commit.deletes if key.startswith(prefix))
    return Commit(commit.revision, puts, deletes) if puts or deletes else None
