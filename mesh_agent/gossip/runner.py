"""The pool's shell: it performs what the pure machine wants, wakes it by one alarm, and is what the rest of the agent calls."""

import asyncio
import logging
import math
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mesh_agent.clock import Clock
from mesh_agent.errors import InvalidRequest, JoinFailed
from mesh_agent.gossip import key_queries
from mesh_agent.gossip.client import resolve
from mesh_agent.gossip.config import GossipConfig
from mesh_agent.gossip.coordinate import Coordinate
from mesh_agent.gossip.effects import (
    Address,
    Departed,
    Effect,
    Event,
    Exchange,
    KeyringChanged,
    Noticed,
    Query,
    QueryResponse,
    SendPacket,
)
from mesh_agent.gossip.keyring import OVERHEAD, Keyring, decode_key
from mesh_agent.gossip.layers import Codec
from mesh_agent.gossip.member import Member, MemberStatus
from mesh_agent.gossip.serf import Serf, Stage
from mesh_agent.gossip.server import Sockets
from mesh_agent.telemetry import Metrics

log = logging.getLogger(__name__)

_REMEMBERED_WARNINGS = 1000


@dataclass(slots=True)
class _Asked:
    """A query of ours that collects answers until everybody has answered."""

    wanted: int
    answers: list[QueryResponse]
    complete: asyncio.Event


class Pool:
    """One node's membership of one pool. Call `start` first and `stop` last; events go to `on_event`, in order."""

    def __init__(
        self,
        config: GossipConfig,
        name: str,
        *,
        bind: str,
        port: int,
        advertise: str,
        tags: dict[str, str],
        keyring: Keyring | None,
        clock: Clock,
        rng: random.Random,
        on_event: Callable[[Event], None],
        accept: Callable[[Member], str | None] | None = None,
        on_keyring: Callable[[Keyring], None] = lambda ring: None,
        metrics: Metrics | None = None,
        label: str = "",
    ) -> None:
        """`port` 0 takes any free port, the same for UDP and TCP; `on_keyring` writes a changed keyring to disk."""
        self.config = config
        self.keyring = keyring
        self._name, self._bind, self._port, self._advertise = name, bind, port, advertise
        self._tags = tags
        self._clock, self._rng, self._label = clock, rng, label
        self._accept = accept
        self._on_event, self._on_keyring = on_event, on_keyring
        self._sockets = Sockets(
            Codec(keyring, os.urandom, label=label, compression=config.compression),
            clock,
            metrics or Metrics(),
            stream_timeout_s=config.stream_timeout_s,
            settle=self._perform,
            warn=lambda text: self._notice(Noticed(text)),
        )
        self._serf: Serf | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at: float | None = None
        self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._departed = asyncio.Event()
        self._asked: dict[tuple[int, int], _Asked] = {}
        self._warned: set[str] = set()

    # life

    async def start(self) -> int:
        """Bind and become alive; the port. MeshError if it is taken."""
        port = await self._sockets.bind(self._bind, self._port)
        overhead = (OVERHEAD if self.keyring else 0) + (2 + len(self._label) if self._label else 0)
        self._serf = Serf(
            self.config,
            self._name,
            self._advertise,
            port,
            self._tags,
            self._rng,
            keyring=self.keyring,
            accept=self._accept,
            overhead=overhead,
        )
        self._serf.start(self._clock.now())
        self._sockets.serve(self._serf.swim)
        self._perform()
        return port

    async def stop(self) -> None:
        """Fall silent at once; the others find out by themselves unless `leave` was called."""
        self._stopped = True
        if self._alarm is not None:
            self._alarm.cancel()
        self._sockets.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def leave(self) -> None:
        """Say goodbye and wait until the pool has heard it (bounded by the config's timeouts)."""
        self._machine.leave(self._clock.now())
        self._perform()
        if self._machine.stage is not Stage.LEFT:
            await self._departed.wait()

    # members

    @property
    def members(self) -> list[Member]:
        """Everybody known, by name."""
        return self._machine.members

    @property
    def local(self) -> Member:
        """This node."""
        return self._machine.local

    @property
    def started(self) -> bool:
        """Whether `start` has been called."""
        return self._serf is not None

    @property
    def left(self) -> bool:
        """Whether this node has said goodbye."""
        return self._machine.stage is not Stage.ALIVE

    @property
    def health_score(self) -> int:
        """Lifeguard's local health: 0 is healthy."""
        return self._machine.swim.awareness.score

    @property
    def coordinate(self) -> Coordinate:
        """Where this node is in the network."""
        return self._machine.vivaldi.coordinate

    def set_tags(self, tags: dict[str, str]) -> None:
        """Tell everybody new tags."""
        if tags != self._machine.local.tags:
            self._machine.set_tags(tags, self._clock.now())
            self._perform()

    def force_leave(self, name: str, *, prune: bool = False) -> None:
        """Declare a failed member left."""
        self._machine.force_leave(name, self._clock.now(), prune=prune)
        self._perform()

    async def join(self, addresses: Iterable[str]) -> int:
        """Exchange state with each `host[:port]`; how many answered. JoinFailed if none did."""
        targets, errors = await resolve(addresses, self._port or self.local.port)
        joined = 0
        for outcome in await asyncio.gather(*(self._join(target) for target in targets)):
            if outcome is None:
                joined += 1
            else:
                errors.append(outcome)
        if not joined:
            raise JoinFailed("; ".join(errors) or "no address given")
        return joined

    async def _join(self, target: Address) -> str | None:
        done: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

        def answered(error: str | None, now: float) -> None:
            if not done.done():
                done.set_result(error)

        self._machine.join(target, answered)
        self._perform()
        error = await done
        return None if error is None else f"{target[0]}:{target[1]}: {error}"

    # events and queries

    def user_event(self, name: str, payload: bytes, *, coalesce: bool = False) -> None:
        """Fire an event."""
        self._machine.messenger.fire(name, payload, coalesce=coalesce)
        self._perform()

    async def query(
        self, name: str, payload: bytes = b"", *, filters: tuple[bytes, ...] = (), timeout_s: float | None = None
    ) -> list[QueryResponse]:
        """Ask the pool; every answer that came in time. Ends early once each living member has answered."""
        alive = self._alive_count
        if timeout_s is None:
            scale = max(1, math.ceil(math.log10(alive + 1)))
            timeout_s = self.config.gossip_interval_s * self.config.query_timeout_mult * scale
        key = self._machine.messenger.ask(name, payload, self._clock.now(), timeout_s=timeout_s, filters=filters)
        asked = self._asked[key] = _Asked(alive, [], asyncio.Event())
        try:
            self._perform()
            async with asyncio.timeout(timeout_s):
                await asked.complete.wait()
        except TimeoutError:
            pass
        finally:
            del self._asked[key]
        return asked.answers

    def respond(self, query: Query, payload: bytes) -> None:
        """Answer a query."""
        self._machine.messenger.respond(query, payload, self._clock.now())
        self._perform()

    async def operate_keys(self, operation: str, key: str = "") -> key_queries.KeyringAnswer:
        """`install-key`, `use-key`, `remove-key` or `list-keys`, on every member."""
        if self.keyring is None:
            raise InvalidRequest("gossip is not encrypted, so there is no keyring; set `encrypt` on every agent first")
        payload = key_queries.encode_key_request(decode_key(key)) if operation != "list-keys" else b""
        responses = await self.query("_serf_" + operation, payload)
        return key_queries.tally(self._alive_count, responses)

    # around the machine

    @property
    def _alive_count(self) -> int:
        return sum(member.status is MemberStatus.ALIVE for member in self.members)

    @property
    def _machine(self) -> Serf:
        if self._serf is None:
            raise RuntimeError("the pool has not been started")
        return self._serf

    def _perform(self) -> None:
        """Do what the machine wants, then set the alarm. A stream may still end after `stop`: nobody is interested then."""
        machine = self._machine
        if self._stopped:
            return
        while effects := machine.take():
            for effect in effects:
                self._do(effect)
        deadline = machine.swim.deadline()
        if deadline is None or deadline == self._alarm_at:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = asyncio.get_running_loop().call_later(max(0.0, deadline - self._clock.now()), self._wake)

    def _wake(self) -> None:
        self._alarm_at = None
        self._machine.swim.wake(self._clock.now())
        self._perform()

    def _do(self, effect: Effect) -> None:
        if isinstance(effect, SendPacket):
            self._sockets.send(effect)
        elif isinstance(effect, Exchange):
            self._spawn(self._sockets.exchange(effect))
        elif isinstance(effect, QueryResponse):
            self._answered(effect)
        elif isinstance(effect, Noticed):
            self._notice(effect)
        elif isinstance(effect, KeyringChanged):
            self._keep_keyring(effect.order)
        elif isinstance(effect, Departed):
            self._departed.set()
        else:
            self._on_event(effect)

    def _keep_keyring(self, order: Query) -> None:
        error: str | None = None
        try:
            if self.keyring is not None:
                self._on_keyring(self.keyring)
        except OSError as broken:
            error = str(broken)
            log.error("the %s keyring cannot be written: %s", self._name, broken)
        self._machine.messenger.keyring_kept(order, error, self._clock.now())

    def _answered(self, response: QueryResponse) -> None:
        asked = self._asked.get((response.lamport, response.id))
        if asked is None or response.ack:
            return
        asked.answers.append(response)
        if len(asked.answers) >= asked.wanted:
            asked.complete.set()

    def _notice(self, effect: Noticed) -> None:
        """A warning that repeats with each gossip round is one warning."""
        fresh = effect.text not in self._warned
        if len(self._warned) > _REMEMBERED_WARNINGS:
            self._warned.clear()
        self._warned.add(effect.text)
        log.log(logging.WARNING if effect.warning and fresh else logging.DEBUG, "%s", effect.text)

    def _spawn(self, work: Any) -> None:  # a coroutine
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
