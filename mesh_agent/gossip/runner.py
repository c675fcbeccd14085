"""The pool's shell: UDP, TCP and one alarm around the pure machine."""

import asyncio
import contextlib
import logging
import math
import os
import random
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mesh_agent.clock import Clock
from mesh_agent.errors import InvalidRequest, JoinFailed, RemoteProtocolError
from mesh_agent.gossip import serf_wire
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
from mesh_agent.gossip.wire import StreamMessage, encode_error
from mesh_agent.telemetry import Metrics

log = logging.getLogger(__name__)

_SOCKET_BUFFER = 2 * 1024 * 1024
_MAX_STREAM_BYTES = 40 * 1024 * 1024
_STREAMS = 128
_LONG_BYTES = 256 * 1024
_LULL_S = 0.02


@dataclass(frozen=True, slots=True)
class KeyringAnswer:
    """What the pool said to a key operation: members asked and heard, and per key how many have it, or have it as primary."""

    members: int
    heard: int
    errors: dict[str, str]
    keys: dict[str, int]
    primary_keys: dict[str, int]


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
        self._metrics = metrics or Metrics()
        self._codec = Codec(keyring, os.urandom, label=label, compression=config.compression)
        self._serf: Serf | None = None
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at: float | None = None
        self._stopped = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams = 0
        self._departed = asyncio.Event()
        self._asked: dict[tuple[int, int], _Asked] = {}
        self._warned: set[str] = set()

    # life

    async def start(self) -> int:
        """Bind and become alive; the port. OSError if it is taken."""
        loop = asyncio.get_running_loop()
        for _ in range(20):
            self._tcp = await asyncio.start_server(self._on_connection, self._bind, self._port, backlog=_STREAMS)
            port = int(self._tcp.sockets[0].getsockname()[1])
            try:
                self._udp, _ = await loop.create_datagram_endpoint(
                    lambda: _Datagrams(self._on_datagram), local_addr=(self._bind, port)
                )
                break
            except OSError:
                self._tcp.close()
                if self._port:
                    raise
        else:
            raise OSError(f"no port of {self._bind} is free for both UDP and TCP")
        self._udp.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)
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
        self._perform()
        return port

    async def stop(self) -> None:
        """Fall silent at once; the others find out by themselves unless `leave` was called."""
        self._stopped = True
        if self._alarm is not None:
            self._alarm.cancel()
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
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
        targets, errors = await self._resolve(addresses)
        joined = 0
        for outcome in await asyncio.gather(*(self._join(target) for target in targets)):
            if outcome is None:
                joined += 1
            else:
                errors.append(outcome)
        if not joined:
            raise JoinFailed("; ".join(errors) or "no address given")
        return joined

    async def _resolve(self, addresses: Iterable[str]) -> tuple[list[Address], list[str]]:
        targets: list[Address] = []
        errors: list[str] = []
        for address in addresses:
            try:
                host, port = split_address(address, self._port or self.local.port)
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
                targets += [(str(each[4][0]), int(each[4][1])) for each in found]
            except (
                OSError,
                UnicodeError,
                InvalidRequest,
            ) as error:  # UnicodeError: a name with an empty or an endless label
                errors.append(f"{address}: {error}")
        return list(dict.fromkeys(targets)), errors

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
        alive = sum(member.status is MemberStatus.ALIVE for member in self.members)
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

    async def operate_keys(self, operation: str, key: str = "") -> KeyringAnswer:
        """`install-key`, `use-key`, `remove-key` or `list-keys`, on every member."""
        if self.keyring is None:
            raise InvalidRequest("gossip is not encrypted, so there is no keyring; set `encrypt` on every agent first")
        payload = serf_wire.encode_key_request(decode_key(key)) if operation != "list-keys" else b""
        responses = await self.query("_serf_" + operation, payload)
        alive = sum(member.status is MemberStatus.ALIVE for member in self.members)
        answer = KeyringAnswer(alive, len(responses), {}, {}, {})
        for response in responses:
            try:
                said = serf_wire.decode_key_response(response.node, response.payload)
            except RemoteProtocolError as error:
                answer.errors[response.node] = str(error)
                continue
            if not said.result:
                answer.errors[response.node] = said.message
            for each in said.keys:
                answer.keys[each] = answer.keys.get(each, 0) + 1
            if said.primary:
                answer.primary_keys[said.primary] = answer.primary_keys.get(said.primary, 0) + 1
        return answer

    # around the machine

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
            self._send(effect)
        elif isinstance(effect, Exchange):
            self._spawn(self._exchange(effect))
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
        if len(self._warned) > 1000:
            self._warned.clear()
        self._warned.add(effect.text)
        log.log(logging.WARNING if effect.warning and fresh else logging.DEBUG, "%s", effect.text)

    def _send(self, effect: SendPacket) -> None:
        if self._udp is None or self._udp.is_closing():
            return
        datagram = self._codec.encode_packet(list(effect.parts), crc=effect.crc)
        self._metrics.count("mesh_gossip_sent_bytes_total", len(datagram))
        # An unreachable network is what gossip is there to find out: the loss of a packet is no error.
        with contextlib.suppress(OSError):
            self._udp.sendto(datagram, effect.to)

    def _on_datagram(self, datagram: bytes, sender: Address) -> None:
        now = self._clock.now()
        self._metrics.count("mesh_gossip_received_bytes_total", len(datagram))
        try:
            messages = self._codec.decode_packet(datagram)
        except RemoteProtocolError as error:
            self._drop(sender, error)
            return
        for message in messages:
            try:
                self._machine.swim.receive(message, sender, now)
            except RemoteProtocolError as error:  # the other messages of the packet may be good
                self._drop(sender, error)
        self._perform()

    def _drop(self, sender: Address, error: RemoteProtocolError) -> None:
        self._metrics.count("mesh_gossip_junk_total", 1)
        self._notice(Noticed(f"a packet of {sender[0]}:{sender[1]} is dropped: {error}"))

    def _spawn(self, work: Any) -> None:  # a coroutine
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _exchange(self, effect: Exchange) -> None:
        answer: StreamMessage | None = None
        try:
            async with asyncio.timeout(effect.timeout_s):
                reader, writer = await asyncio.open_connection(*effect.to)
                try:
                    writer.write(self._codec.encode_stream(effect.request))
                    await writer.drain()
                    answer = await self._read(reader)
                finally:
                    # All has been said, or the peer is stuck: what it has not taken it does not get.
                    writer.transport.abort()
        except (OSError, TimeoutError) as error:
            log.debug("no exchange with %s:%s: %s", *effect.to, error or "timeout")
        except RemoteProtocolError as error:
            self._notice(Noticed(f"exchange with {effect.to[0]}:{effect.to[1]} failed: {error}"))
        if effect.token is not None:
            with self._junk_from(effect.to):
                self._machine.swim.reply(effect.token, answer, self._clock.now())
            self._perform()

    async def _read(self, reader: asyncio.StreamReader) -> StreamMessage | None:
        """One message. It is decoded when all of it can be there: of an encrypted one the length is known, of a long plain one when nothing more comes."""
        received, wanted = bytearray(), 1
        while True:
            part, lull = b"", False
            try:
                async with asyncio.timeout(_LULL_S if len(received) > _LONG_BYTES else None):
                    part = await reader.read(65536)
            except TimeoutError:
                lull = True
            received += part
            if len(received) > _MAX_STREAM_BYTES:
                raise RemoteProtocolError(f"a stream of more than {_MAX_STREAM_BYTES} bytes")
            if part and (len(received) < wanted or (self.keyring is None and len(received) > _LONG_BYTES)):
                continue
            message = self._codec.decode_stream(bytes(received)) if len(received) >= wanted else None
            if message is not None or not (part or lull):
                return message
            wanted = self._codec.least_stream_bytes(received)

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._streams >= _STREAMS or self._serf is None or self._stopped:
            writer.transport.abort()
            return
        self._streams += 1
        peer = writer.get_extra_info("peername") or ("?", 0)
        try:
            with self._junk_from((str(peer[0]), int(peer[1]))):
                async with asyncio.timeout(self.config.stream_timeout_s):
                    await self._serve(reader, writer)
        except (OSError, TimeoutError) as error:
            log.debug("a stream of %s broke off: %s", peer[0], error or "timeout")
            writer.transport.abort()
        finally:
            self._streams -= 1
            writer.close()
            self._perform()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await self._read(reader)
        except RemoteProtocolError as error:
            writer.write(self._codec.encode_stream(encode_error(str(error))))
            await writer.drain()
            raise
        if request is None:
            return
        answer = self._machine.swim.answer(request)
        if answer is not None:
            writer.write(self._codec.encode_stream(answer))
            await writer.drain()
        self._machine.swim.accept(request, self._clock.now())

    @contextlib.contextmanager
    def _junk_from(self, peer: Address) -> Any:  # a generator, typed by the decorator
        try:
            yield
        except RemoteProtocolError as error:
            self._metrics.count("mesh_gossip_junk_total", 1)
            self._notice(Noticed(f"a stream of {peer[0]} is dropped: {error}"))


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, on_datagram: Callable[[bytes, Address], None]) -> None:
        self._on_datagram = on_datagram

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:  # asyncio's own type
        self._on_datagram(data, (str(addr[0]), int(addr[1])))


def split_address(address: str, default_port: int) -> tuple[str, int]:
    """`host`, `host:port`, `[v6]:port` or a bare v6 address; InvalidRequest otherwise."""
    host, port = address.strip(), ""
    if host.startswith("["):
        host, _, rest = host[1:].partition("]")
        port = rest.removeprefix(":")
    elif host.count(":") == 1:
        host, port = host.split(":")
    if not host or (port and not port.isdigit()) or int(port or 0) > 65535:
        raise InvalidRequest(f"{address!r} is not host or host:port")
    return host, int(port or default_port)
