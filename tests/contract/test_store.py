"""One suite for every store."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh_agent.errors import StoreConflict, StoreUnavailable
from mesh_agent.store import Commit, Store
from mesh_agent.store.memory import MemoryStore
from mesh_agent.store.sqlite import SqliteStore


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opened: Store = (
        MemoryStore(log_length=20)
        if request.param == "memory"
        else await SqliteStore.open(tmp_path / "db", keep_revisions=20)
    )
    yield opened
    await opened.close()


async def test_an_empty_store_is_at_revision_zero(store: Store) -> None:
    assert await store.scan("") == (0, [])
    assert await store.get("a") is None


async def test_what_is_put_can_be_read_with_its_revisions(store: Store) -> None:
    assert await store.commit(puts={"a/1": b"x", "b": b"y"}) == 1
    assert await store.commit(puts={"a/1": b"z"}) == 2
    record = await store.get("a/1")
    assert record == ("a/1", b"z", 1, 2)
    assert [found.key for found in (await store.scan("a/")).records] == ["a/1"]


async def test_prefixes_are_taken_literally(store: Store) -> None:
    await store.commit(puts={"a%b": b"", "a_b": b"", "axb": b"", "A": b""})
    assert [found.key for found in (await store.scan("a%")).records] == ["a%b"]
    assert [found.key for found in (await store.scan("a")).records] == ["a%b", "a_b", "axb"]


async def test_a_failed_expectation_changes_nothing(store: Store) -> None:
    await store.commit(puts={"a": b"1"})
    with pytest.raises(StoreConflict):
        await store.commit(puts={"a": b"2", "b": b"2"}, expect={"a": 7})
    with pytest.raises(StoreConflict):
        await store.commit(deletes=["a"], expect={"a": 0})
    assert (await store.get("a")) == ("a", b"1", 1, 1)
    assert await store.get("b") is None
    assert await store.commit(puts={"b": b"2"}, expect={"a": 1, "b": 0}) == 2


async def test_deleting_what_is_not_there_makes_no_revision(store: Store) -> None:
    await store.commit(puts={"a": b"1"})
    assert await store.commit(deletes=["none"]) == 1
    assert await store.commit(deletes=["a", "none"]) == 2
    assert await store.get("a") is None


async def test_concurrent_commits_each_get_their_own_revision_and_verdict(store: Store) -> None:
    results = await asyncio.gather(
        *(store.commit(puts={"a": b"%d" % n}, expect={"a": 0}) for n in range(10)), return_exceptions=True
    )
    assert sum(isinstance(result, int) for result in results) == 1
    assert sum(isinstance(result, StoreConflict) for result in results) == 9
    revisions = await asyncio.gather(*(store.commit(puts={f"k{n}": b""}) for n in range(10)))
    assert sorted(revisions) == list(range(2, 12))


async def collect(store: Store, prefix: str, after: int, count: int) -> list[Commit]:
    found: list[Commit] = []
    async with asyncio.timeout(10):
        async for commit in store.watch(prefix, after):
            found.append(commit)
            if len(found) == count:
                break
    return found


async def test_a_watch_sees_every_later_commit_in_order(store: Store) -> None:
    await store.commit(puts={"a": b"0"})
    watching = asyncio.create_task(collect(store, "", 1, 3))
    await asyncio.sleep(0)
    await store.commit(puts={"a": b"1"})
    await store.commit(puts={"b": b"1"}, deletes=["a"])
    await store.commit(deletes=["b"])
    commits = await watching
    assert [commit.revision for commit in commits] == [2, 3, 4]
    assert commits[0].puts == (("a", b"1", 1, 2),)
    assert commits[1].deletes == ("a",)
    assert commits[2].deletes == ("b",)


async def test_a_watch_of_a_prefix_sees_only_that(store: Store) -> None:
    await store.commit(puts={"x/1": b"", "y/1": b""})
    await store.commit(puts={"y/2": b""})
    await store.commit(puts={"x/2": b""})
    commits = await collect(store, "x/", 0, 2)
    assert [[record.key for record in commit.puts] for commit in commits] == [["x/1"], ["x/2"]]


async def test_a_watch_of_what_was_compacted_is_refused(store: Store) -> None:
    for n in range(60):
        await store.commit(puts={"a": b"%d" % n})
    with pytest.raises(StoreConflict):
        await collect(store, "", 1, 1)
    assert len(await collect(store, "", 55, 5)) == 5


async def test_a_closed_store_says_so_and_ends_its_watches(store: Store) -> None:
    watching = asyncio.create_task(collect(store, "", 0, 1))
    await asyncio.sleep(0)
    await store.close()
    assert await watching == []
    with pytest.raises(StoreUnavailable):
        await store.commit(puts={"a": b""})


async def test_sqlite_keeps_everything_across_a_restart(tmp_path: Path) -> None:
    first = await SqliteStore.open(tmp_path / "db")
    await first.commit(puts={"a": b"1"})
    await first.commit(puts={"a": b"2"})
    await first.close()
    again = await SqliteStore.open(tmp_path / "db")
    assert await again.get("a") == ("a", b"2", 1, 2)
    assert [commit.revision for commit in await collect(again, "", 0, 2)] == [1, 2]
    assert await again.commit(puts={"b": b""}) == 3
    assert ((tmp_path / "db").stat().st_mode & 0o777) == 0o600
    await again.close()
