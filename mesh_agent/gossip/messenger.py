"""User events, queries and their answers: serf's messages to the whole pool. Pure.

Events and queries are stamped with Lamport times of clocks of their own; a ring of the last 512 tells new from seen. Answers to a query go straight to
the asker (and, with a relay factor, through others as well). Queries whose names begin with `_serf_` are answered here.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from mesh_agent.errors import InvalidRequest, RemoteProtocolError
from mesh_agent.gossip import key_queries, query_filters
from mesh_agent.gossip import serf_wire as wire
from mesh_agent.gossip.broadcasts import Broadcasts
from mesh_agent.gossip.config import GossipConfig
from mesh_agent.gossip.effects import KeyringChanged, Noticed, Query, QueryResponse, UserEvent
from mesh_agent.gossip.keyring import Keyring
from mesh_agent.gossip.lamport import LamportClock, SeenRing
from mesh_agent.gossip.swim import Swim

INTERNAL = "_serf_"
_RELAY_DELEGATE = 5
_RESPONSE_BYTES = 64


@dataclass(slots=True)
class _Asked:
    """A query of ours that still takes answers."""

    ends_at: float
    answered: set[tuple[str, bool]]


class Messenger:
    """One node's events and queries."""

    def __init__(
        self,
        config: GossipConfig,
        swim: Swim,
        tags: Callable[[], dict[str, str]],
        keyring: Keyring | None,
        rng: random.Random,
        conflict: Callable[[str], bytes],
    ) -> None:
        self.events = LamportClock()
        self.queries = LamportClock()
        self.event_queue = Broadcasts(config.retransmit_mult, largest_bytes=swim.largest_payload_bytes)
        self.query_queue = Broadcasts(config.retransmit_mult, largest_bytes=swim.largest_payload_bytes)
        self._config = config
        self._swim = swim
        self._tags = tags
        self._keyring = keyring
        self._rng = rng
        self._conflict = conflict
        self._seen_events: SeenRing[tuple[str, bytes]] = SeenRing(config.event_buffer)
        self._seen_queries: SeenRing[int] = SeenRing(config.event_buffer)
        self._asked: dict[tuple[int, int], _Asked] = {}

    # events

    def fire(self, name: str, payload: bytes, *, coalesce: bool) -> None:
        """Send an event to everybody, ourselves included."""
        limit = self._config.user_event_bytes
        if len(name.encode()) + len(payload) > limit:
            raise InvalidRequest(f"user event exceeds the limit of {limit} bytes for name and payload")
        self.on_event(wire.EventMessage(self.events.stamp(), name, payload, coalesce))

    def on_event(self, message: wire.EventMessage) -> None:
        """An event, heard or our own."""
        self.events.witness(message.lamport)
        if self._seen_events.add(message.lamport, (message.name, message.payload), self.events.time):
            if not self.event_queue.queue("", wire.encode(message)):
                self._swim.emit(Noticed(f"event {message.name!r} is too large to be passed on"))
            self._swim.emit(UserEvent(message.lamport, message.name, message.payload, message.coalesce))

    def seen_events(self) -> tuple[tuple[int, tuple[tuple[str, bytes], ...]], ...]:
        """For push/pull."""
        return tuple(self._seen_events.items())

    def ignore_events_before(self, lamport: int) -> None:
        """A node that has just joined has no business with what happened before."""
        self._seen_events.oldest = max(self._seen_events.oldest, lamport)

    # queries

    def ask(
        self,
        name: str,
        payload: bytes,
        now: float,
        *,
        timeout_s: float,
        filters: tuple[bytes, ...] = (),
        ack: bool = False,
    ) -> tuple[int, int]:
        """Ask everybody who matches the filters; answers come as `QueryResponse` effects with this (Lamport time, id)."""
        local = self._swim.local
        query_id = self._rng.getrandbits(32)
        flags = wire.FLAG_ACK if ack else 0
        message = wire.QueryMessage(
            self.queries.stamp(),
            query_id,
            local.address,
            local.port,
            local.name,
            name,
            payload,
            timeout_s,
            flags,
            0,
            filters,
        )
        encoded = wire.encode(message)
        if len(encoded) > self._config.query_bytes:
            raise InvalidRequest(f"query exceeds the limit of {self._config.query_bytes} bytes")
        key = (message.lamport, query_id)
        self._asked[key] = _Asked(now + timeout_s, set())
        self._swim.after(now, timeout_s, lambda at: self._ends(key))
        self.on_query(message, now)
        return key

    def _ends(self, key: tuple[int, int]) -> None:
        self._asked.pop(key, None)

    def on_query(self, message: wire.QueryMessage, now: float) -> None:
        """A query, heard or our own."""
        self.queries.witness(message.lamport)
        if not self._seen_queries.add(message.lamport, message.id, self.queries.time):
            return
        if not message.flags & wire.FLAG_NO_BROADCAST:
            self.query_queue.queue("", wire.encode(message))
        if not query_filters.matches(message.filters, self._swim.name, self._tags()):
            return
        query = Query(
            message.lamport,
            message.id,
            message.name,
            message.payload,
            message.source,
            (message.address, message.port),
            now + message.timeout_s,
            message.relay,
        )
        try:
            if message.flags & wire.FLAG_ACK:
                self._answer(query, b"", wire.FLAG_ACK, now)
            if message.name.startswith(INTERNAL):
                self._answer_internal(query, now)
            else:
                self._swim.emit(query)
        except InvalidRequest as error:
            self._swim.emit(Noticed(f"query {query.name!r} of {query.source!r} is not answered: {error}"))

    def respond(self, query: Query, payload: bytes, now: float) -> None:
        """Answer a query; after its end it is ignored."""
        if now > query.deadline:
            raise InvalidRequest(f"query {query.name!r} has ended")
        self._answer(query, payload, 0, now)

    def _answer(self, query: Query, payload: bytes, flags: int, now: float) -> None:
        message = wire.ResponseMessage(query.lamport, query.id, self._swim.name, payload, flags)
        encoded = wire.encode(message)
        if len(encoded) > self._config.query_bytes:
            raise InvalidRequest(f"answer exceeds the limit of {self._config.query_bytes} bytes")
        if query.source == self._swim.name:
            self.on_response(message, now)
            return
        if not all(query.reply_to):
            raise InvalidRequest("it has no address to answer to")
        self._swim.tell_address(query.reply_to, encoded)
        if query.relay:
            self._relay(query, encoded)

    def _relay(self, query: Query, encoded: bytes) -> None:
        peers = self._swim.membership.alive_peers()
        via = [peer for peer in peers if peer.name != query.source and peer.versions[4] >= _RELAY_DELEGATE]
        relay = wire.encode(wire.Relay(*query.reply_to, query.source, encoded))
        for node in self._rng.sample(via, min(query.relay, len(via))):
            self._swim.tell(node, relay)

    def on_response(self, message: wire.ResponseMessage, now: float) -> None:
        """An answer to a query of ours; duplicates (relays) and latecomers are dropped."""
        asked = self._asked.get((message.lamport, message.id))
        ack = bool(message.flags & wire.FLAG_ACK)
        if asked is None or now > asked.ends_at or (message.node, ack) in asked.answered:
            return
        asked.answered.add((message.node, ack))
        self._swim.emit(QueryResponse(message.id, message.lamport, message.node, message.payload, ack))

    # what the pool itself asks

    def _answer_internal(self, query: Query, now: float) -> None:
        kind = query.name.removeprefix(INTERNAL)
        if kind == "conflict":
            name = query.payload.decode("utf-8", "replace")
            if name != self._swim.name:
                self._answer(query, self._conflict(name), 0, now)
        elif kind in ("install-key", "use-key", "remove-key", "list-keys"):
            self._operate_keys(kind, query, now)

    def _operate_keys(self, operation: str, query: Query, now: float) -> None:
        """A change is answered once it is on disk: whoever rotates keys must not believe in one that a restart undoes."""
        ring = self._keyring
        if ring is None:
            self._refuse_keys(operation, query, "this pool is not encrypted: it has no keyring", now)
        elif operation == "list-keys":
            room = self._config.query_bytes - _RESPONSE_BYTES - len(self._swim.name.encode())
            self._answer(query, key_queries.encode_keys(ring.keys(), ring.primary, room), 0, now)
        else:
            try:
                key = key_queries.decode_key_request(query.payload)
                {"install-key": ring.install, "use-key": ring.use, "remove-key": ring.remove}[operation](key)
            except (InvalidRequest, RemoteProtocolError) as error:
                self._refuse_keys(operation, query, str(error), now)
            else:
                self._swim.emit(KeyringChanged(query))

    def keyring_kept(self, order: Query, error: str | None, now: float) -> None:
        """The changed keyring is on disk, or could not be written: `error` says why. In memory it is changed in any case."""
        if error is not None:
            self._refuse_keys(order.name, order, f"the keyring is changed until the next restart only: {error}", now)
            return
        self._answer(order, key_queries.encode_key_response(result=True), 0, now)

    def _refuse_keys(self, operation: str, query: Query, reason: str, now: float) -> None:
        self._swim.emit(Noticed(f"key operation {operation} of {query.source!r} failed: {reason}"))
        self._answer(query, key_queries.encode_key_response(result=False, message=reason[:200]), 0, now)
