"""The shell of anti-entropy: compares what this node wants with what the catalog holds, and writes the difference.

It looks at once after a change on either side, again and again while it fails, and now and then in any case: that costs a comparison in memory, as the
catalog's records of this node are pushed to it.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping

from mesh_agent.agent.reconcile import Part, Written, diff, halves, parts
from mesh_agent.catalog.reader import CatalogReader
from mesh_agent.catalog.view import View
from mesh_agent.clock import Clock
from mesh_agent.errors import InvalidRequest, MeshError
from mesh_agent.model import Topic
from mesh_agent.telemetry import Metrics

log = logging.getLogger(__name__)

Sync = Callable[[dict[str, bytes], list[str]], Awaitable[None]]
"""Writes (puts, deletes) of this node's records to the catalog; raises MeshError if it could not."""

_EVERY_S = 60.0
_RETRY_S = (0.25, 10.0)
_ENSURE_S = 5.0
_ENSURE_WITHOUT_SERVERS_S = 0.5
_WORTH_A_WARNING = 4


class AntiEntropy:
    """Makes the catalog follow `records()`, the records that this node wants."""

    def __init__(
        self,
        node: str,
        catalog: CatalogReader,
        write: Sync,
        records: Callable[[], dict[str, bytes]],
        clock: Clock,
        rng: random.Random,
        metrics: Metrics,
    ) -> None:
        self._node, self._catalog, self._write, self._records = node, catalog, write, records
        self._clock, self._rng, self._metrics = clock, rng, metrics
        self._topic = Topic(catalog.datacenter, "node", node)
        self._changed = asyncio.Event()
        self._wanted, self._attempted = 1, 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._written = Written()
        self._silent = False
        self._listened: View | None = None
        self._stop_listening: Callable[[], None] = lambda: None

    def mark(self) -> None:
        """What this node wants has changed."""
        self._wanted += 1
        self._changed.set()

    def fall_silent(self) -> None:
        """Write nothing any more: this node leaves, and what the servers delete then must stay deleted."""
        self._silent = True
        self._changed.set()

    async def settled(self, timeout_s: float) -> None:
        """Wait until a sync of everything marked so far was tried, at most `timeout_s`."""
        if self._attempted >= self._wanted:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((self._wanted, waiter))
        await asyncio.wait([waiter], timeout=timeout_s)
        self._waiters = [(wanted, each) for wanted, each in self._waiters if each is not waiter]

    async def run(self) -> None:
        """Keep the catalog in step, for ever."""
        failures = 0
        try:
            while not self._silent:
                self._changed.clear()
                seen = self._wanted
                failures = await self._try(failures)
                self._release(seen)
                first_s, last_s = _RETRY_S
                wait_s = min(last_s, first_s * 2 ** min(failures - 1, 10)) if failures else _EVERY_S
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s * self._rng.uniform(0.75, 1.25)):
                        await self._changed.wait()
        finally:
            self._stop_listening()

    async def _try(self, failures: int) -> int:
        """How many attempts in a row have failed now."""
        try:
            await self._sync()
        except MeshError as error:
            failures += 1
            level = logging.WARNING if failures == _WORTH_A_WARNING else logging.DEBUG
            log.log(level, "registrations are not in the catalog yet, trying again: %s", error)
            self._metrics.count("mesh_agent_syncs_total", result="failed")
            return failures
        if failures >= _WORTH_A_WARNING:
            log.info("registrations are in the catalog again")
        self._metrics.count("mesh_agent_syncs_total", result="done")
        return 0

    def _release(self, seen: int) -> None:
        self._attempted = seen
        for wanted, waiter in self._waiters:
            if wanted <= seen and not waiter.done():
                waiter.set_result(None)

    async def _sync(self) -> None:
        view = await self._catalog.ensure(
            self._topic, _ENSURE_S if self._catalog.known_leader() else _ENSURE_WITHOUT_SERVERS_S
        )
        if view is not self._listened:  # somebody else may change what the catalog says of this node
            self._stop_listening()
            self._listened = view
            self._stop_listening = view.listen(self._topic, lambda _: self._changed.set())
        held = view.records(self._topic)
        puts, deletes = diff(self._records(), self._written.over(held, self._clock.now()), self._node)
        before = {key: record.revision for key, record in held.items()}
        for part in parts(puts, deletes):
            await self._send(part, before)

    async def _send(self, part: Part, before: Mapping[str, int]) -> None:
        """Write; what the servers refuse does not keep the rest from them."""
        if self._silent:
            return
        try:
            await self._write(*part)
        except InvalidRequest as error:
            smaller = halves(part)
            if not smaller:
                puts, deletes = part
                log.error("the servers refuse %s: %s", ", ".join([*puts, *deletes]), error)
            for each in smaller:
                await self._send(each, before)
        else:
            self._written.add(part, before, self._clock.now())
