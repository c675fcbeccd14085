"""The embedded store: one SQLite database in WAL mode, for a datacenter with one server.

All statements run in one thread of their own. Commits that wait at the same time share one transaction of the database (one fsync), each with a
savepoint, so that a conflict of one does not undo the others. `log` keeps the last revisions for watches; older ones are compacted, and a watch that
asks for them gets StoreConflict and must scan again. Durable across a crash of the process at once, across a power loss with synchronous=FULL.
"""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from mesh_agent.errors import StoreConflict, StoreUnavailable
from mesh_agent.model import Record
from mesh_agent.store import Commit, Snapshot
from mesh_agent.store.memory import below

T = TypeVar("T")
_KEEP_REVISIONS = 10_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, value BLOB NOT NULL, created INTEGER NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS log (revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB, created INTEGER, PRIMARY KEY (revision, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO meta VALUES ('revision', 0), ('compacted', 0), ('schema', 1);
"""


class _Write(NamedTuple):
    puts: dict[str, bytes]
    deletes: tuple[str, ...]
    expect: dict[str, int]
    done: "asyncio.Future[int]"


class SqliteStore:
    """See the module's text; build with `await SqliteStore.open(path)`."""

    def __init__(self, path: Path, *, keep_revisions: int = _KEEP_REVISIONS) -> None:
        self._path = path
        self._keep = keep_revisions
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._db: sqlite3.Connection | None = None
        self._revision = 0
        self._changed = asyncio.Event()
        self._waiting: list[_Write] = []
        self._writer: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    async def open(cls, path: Path, *, keep_revisions: int = _KEEP_REVISIONS) -> "SqliteStore":
        """Open or create the database; StoreUnavailable with the reason if that cannot be."""
        store = cls(path, keep_revisions=keep_revisions)
        await store._run(store._connect)
        return store

    def _connect(self) -> None:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        db = sqlite3.connect(self._path, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.executescript(_SCHEMA)
        self._revision = db.execute("SELECT value FROM meta WHERE name='revision'").fetchone()[0]
        self._db = db

    async def _run(self, call: Callable[..., T], *arguments: object) -> T:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)
        except (sqlite3.Error, OSError) as error:
            raise StoreUnavailable(f"{self._path}: {error}") from error

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise StoreUnavailable("the store is not open")
        return self._db

    async def get(self, key: str) -> Record | None:
        """The record at `key`."""
        return await self._run(self._get, key)

    def _get(self, key: str) -> Record | None:
        row = self._connection.execute(
            "SELECT key, value, created, revision FROM records WHERE key=?", (key,)
        ).fetchone()
        return None if row is None else Record(*row)

    async def scan(self, prefix: str) -> Snapshot:
        """Records below `prefix`."""
        return await self._run(self._scan, prefix)

    def _scan(self, prefix: str) -> Snapshot:
        rows = self._connection.execute(
            "SELECT key, value, created, revision FROM records WHERE key >= ? AND substr(key, 1, ?) = ? ORDER BY key",
            (prefix, len(prefix), prefix),
        )
        return Snapshot(self._revision, [Record(*row) for row in rows])

    async def commit(
        self,
        *,
        puts: Mapping[str, bytes] | None = None,
        deletes: Collection[str] = (),
        expect: Mapping[str, int] | None = None,
    ) -> int:
        """Apply all or nothing; concurrent commits share a transaction."""
        if self._closed:
            raise StoreUnavailable("the store is closed")
        loop = asyncio.get_running_loop()
        write = _Write(dict(puts or {}), tuple(deletes), dict(expect or {}), loop.create_future())
        self._waiting.append(write)
        if self._writer is None:
            self._writer = loop.create_task(self._write_all())
        return await write.done

    async def _write_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                results = await self._run(self._apply, batch)
            except StoreUnavailable as error:
                results = [error] * len(batch)
            for write, result in zip(batch, results, strict=True):
                if write.done.done():
                    continue
                if isinstance(result, int):
                    write.done.set_result(result)
                else:
                    write.done.set_exception(result)
            self._changed.set()
            self._changed = asyncio.Event()
        self._writer = None

    def _apply(self, batch: list[_Write]) -> list[int | StoreConflict | StoreUnavailable]:
        db = self._connection
        before = self._revision
        results: list[int | StoreConflict | StoreUnavailable] = []
        db.execute("BEGIN IMMEDIATE")
        try:
            for write in batch:
                results.append(self._apply_one(db, write))
            db.execute("UPDATE meta SET value=? WHERE name='revision'", (self._revision,))
            self._compact(db)
            db.execute("COMMIT")
        except BaseException:
            self._revision = before
            if db.in_transaction:  # a full disk has ended it already
                db.execute("ROLLBACK")
            raise
        return results

    def _apply_one(self, db: sqlite3.Connection, write: _Write) -> int | StoreConflict:
        wanted = {*write.puts, *write.deletes, *write.expect}
        held = {
            key: db.execute("SELECT created, revision FROM records WHERE key=?", (key,)).fetchone() for key in wanted
        }
        for key, revision in write.expect.items():
            row = held[key]
            if (0 if row is None else row[1]) != revision:
                return StoreConflict(f"{key} is not at revision {revision} any more")
        gone = [key for key in write.deletes if held[key] is not None and key not in write.puts]
        if not write.puts and not gone:
            return self._revision
        self._revision += 1
        for key, value in write.puts.items():
            row = held[key]
            created = self._revision if row is None else row[0]
            db.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", (key, value, created, self._revision))
            db.execute("INSERT INTO log VALUES (?, ?, ?, ?)", (self._revision, key, value, created))
        for key in gone:
            db.execute("DELETE FROM records WHERE key=?", (key,))
            db.execute("INSERT INTO log VALUES (?, ?, NULL, NULL)", (self._revision, key))
        return self._revision

    def _compact(self, db: sqlite3.Connection) -> None:
        """Forget old revisions, in steps of a tenth so that it is rare."""
        (compacted,) = db.execute("SELECT value FROM meta WHERE name='compacted'").fetchone()
        oldest = self._revision - self._keep
        if oldest - compacted >= max(1, self._keep // 10):
            db.execute("DELETE FROM log WHERE revision <= ?", (oldest,))
            db.execute("UPDATE meta SET value=? WHERE name='compacted'", (oldest,))

    async def watch(self, prefix: str, after: int) -> AsyncIterator[Commit]:
        """Commits after `after`."""
        while not self._closed:
            changed = self._changed
            try:
                commits = await self._run(self._read_log, after)
            except StoreUnavailable:
                if self._closed:
                    return
                raise
            for commit in commits:
                after = commit.revision
                found = below(commit, prefix)
                if found is not None:
                    yield found
            if not self._closed and self._revision <= after:
                await changed.wait()

    def _read_log(self, after: int) -> list[Commit]:
        db = self._connection
        (compacted,) = db.execute("SELECT value FROM meta WHERE name='compacted'").fetchone()
        if after < compacted:
            raise StoreConflict(f"revision {after} is no longer in the log")
        commits: dict[int, tuple[list[Record], list[str]]] = {}
        for revision, key, value, created in db.execute(
            "SELECT * FROM log WHERE revision > ? ORDER BY revision, key", (after,)
        ):
            puts, deletes = commits.setdefault(revision, ([], []))
            if value is None:
                deletes.append(key)
            else:
                puts.append(Record(key, value, created, revision))
        return [Commit(revision, tuple(puts), tuple(deletes)) for revision, (puts, deletes) in commits.items()]

    async def close(self) -> None:
        """Finish what is being written, end watches, close the database."""
        if self._closed:
            return
        if self._writer is not None:
            await self._writer
        self._closed = True
        self._changed.set()
        db, self._db = self._db, None
        if db is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, db.close)
        self._thread.shutdown(wait=True)
