"""Serf machines on a simulated network, in virtual time: one heap, no asyncio, no threads; everything follows from a seed.

The heap holds (time, sequence, node, what happens there). Packets are handed over as the encoded messages that the machine wants sent, without the
outer layers (compression, encryption); their size is checked as if they were encrypted. Streams are one request and one answer, as the shell does it.
Every node has its own clock, with an offset and a rate. A paused node (SIGSTOP) gets what was sent to it when it comes back, after its timers.
"""

import hashlib
import heapq
import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from mesh_agent.gossip import GossipConfig, Member, MemberStatus, UserEvent
from mesh_agent.gossip.effects import Address, Effect, Exchange, Noticed, SendPacket
from mesh_agent.gossip.keyring import OVERHEAD
from mesh_agent.gossip.layers import Codec
from mesh_agent.gossip.node import State
from mesh_agent.gossip.serf import Serf, Stage
from mesh_agent.gossip.wire import Message, StreamMessage

PORT = 7946
_CRC = 5
_CODEC = Codec(None, os.urandom, compression=False)


@lru_cache(maxsize=1 << 16)
def _decoded(part: bytes) -> tuple[Message, ...]:
    """The same few messages travel through the whole pool: each is decoded once."""
    return tuple(_CODEC.decode_packet(part))


@dataclass(frozen=True, slots=True)
class Weather:
    """What the network does to every packet; packets overtake each other as far as the delays differ."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay_s: tuple[float, float] = (0.0002, 0.01)


CLEAR = Weather()
ROUGH = Weather(loss=0.02, duplicate=0.02, delay_s=(0.0002, 0.15))


class SimNetwork:
    """Who reaches whom, and when."""

    def __init__(self, rng: random.Random, weather: Weather) -> None:
        self.weather = weather
        self._rng = rng
        self._cut: set[tuple[int, int]] = set()
        self._deaf: set[int] = set()

    def cut(self, sources: list[int], targets: list[int]) -> None:
        """Nothing of the sources reaches the targets any more (one way)."""
        self._cut.update((a, b) for a in sources for b in targets if a != b)

    def block_datagrams(self, target: int) -> None:
        """A firewall that lets only streams in."""
        self._deaf.add(target)

    def heal(self) -> None:
        """Everybody reaches everybody."""
        self._cut.clear()
        self._deaf.clear()

    def reaches(self, source: int, target: int) -> bool:
        """Whether there is a way."""
        return (source, target) not in self._cut

    def datagram(self, source: int, target: int) -> list[float]:
        """The delays of the copies that arrive: none, one or two."""
        if not self.reaches(source, target) or target in self._deaf or self._rng.random() < self.weather.loss:
            return []
        copies = 2 if self._rng.random() < self.weather.duplicate else 1
        return [self.delay_s() for _ in range(copies)]

    def stream_delay_s(self) -> float:
        """One way of a stream: what is lost is sent again, later and later."""
        delay_s, again_s = self.delay_s(), 0.2
        while self._rng.random() < self.weather.loss:
            delay_s, again_s = delay_s + again_s, again_s * 2
        return delay_s

    def delay_s(self) -> float:
        """One way of a packet."""
        return self._rng.uniform(*self.weather.delay_s)


@dataclass(slots=True)
class SimNode:
    """One machine, its clock, and what it has said."""

    index: int
    name: str
    address: str
    serf: Serf
    offset_s: float
    rate: float
    up: bool = True
    started: bool = False
    paused_until: float = 0.0
    life: int = 0
    wake_at: float = float("inf")
    events: list[tuple[float, Effect]] = field(default_factory=list)
    notices: set[str] = field(default_factory=set)
    incarnations: dict[str, tuple[str, int]] = field(default_factory=dict)

    def clock(self, time: float) -> float:
        """Its own monotonic clock."""
        return self.offset_s + time * self.rate

    def true_time(self, local: float) -> float:
        """The other way round."""
        return (local - self.offset_s) / self.rate

    def saw(self, kind: type[Effect], name: str) -> list[float]:
        """When it said so of a member."""
        return [time for time, event in self.events if isinstance(event, kind) and _subject(event) == name]


def _subject(event: Effect) -> str:
    member = getattr(event, "member", None)
    return member.name if isinstance(member, Member) else ""


class SimCluster:
    """A pool. Scenarios call its verbs, then `run`, then look."""

    def __init__(
        self,
        nodes: int,
        seed: int,
        weather: Weather = CLEAR,
        *,
        config: GossipConfig | None = None,
        drift: float = 0.01,
        joined_within_s: float = 3.0,
    ) -> None:
        """Nodes come up and join an earlier one, spread over `joined_within_s`; clocks run up to `drift` too fast or too slow."""
        self.config = config or GossipConfig.lan()
        self.time = 0.0
        self.packets = 0
        self.largest_packet = 0
        self._rng = random.Random(seed)
        self.network = SimNetwork(random.Random(self._rng.getrandbits(64)), weather)
        self._drift = drift
        self._heap: list[tuple[float, int, int, Callable[[SimNode], None]]] = []
        self._sequence = 0
        self._trace = hashlib.blake2b(digest_size=16)
        self.nodes = [
            self._make(index, f"n{index}", f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}")
            for index in range(nodes)
        ]
        self._by_name = {node.name: node for node in self.nodes}
        self._by_address = {(node.address, PORT): node for node in self.nodes}
        starts = sorted(self._rng.uniform(0.01, joined_within_s) for _ in self.nodes)
        for node, at in zip(self.nodes, starts, strict=True):
            contact = self.nodes[self._rng.randrange(node.index)] if node.index else None
            self._at(at, node.index, lambda each, contact=contact: self._boot(each, contact))  # type: ignore[misc]
        self._next_check = 1.0

    # verbs

    def run(self, for_s: float) -> None:
        """Let time pass; the invariants are checked every virtual second."""
        self.run_until(lambda: False, within_s=for_s)

    def run_until(self, condition: Callable[[], bool], *, within_s: float, every_s: float = 0.1) -> bool:
        """Let time pass until a condition, looked at every so often, holds; whether it does."""
        end = self.time + within_s
        next_look = self.time
        while True:
            due = self._heap[0][0] if self._heap else end
            limit = min(end, next_look, self._next_check)
            if due <= limit:
                self._step()
                continue
            self.time = limit
            if limit == self._next_check:
                self._next_check += 1.0
                self.check()
            if limit == next_look:
                next_look += every_s
                if condition():
                    return True
            if limit == end:
                return False

    def crash(self, name: str) -> None:
        """The machine is gone, without a word."""
        node = self._by_name[name]
        node.up = False
        node.life += 1
        node.wake_at = float("inf")

    def restart(self, name: str, *, contact: str | None = None, address: str = "") -> None:
        """A new process with the old name, which knows nothing; it joins `contact`. It may come back at another address."""
        old = self._by_name[name]
        if old.up:
            self.crash(name)
        del self._by_address[old.address, PORT]
        fresh = self._make(old.index, name, address or old.address)
        fresh.life, fresh.events = old.life + 1, old.events
        self.nodes[old.index] = self._by_name[name] = self._by_address[fresh.address, PORT] = fresh
        self._boot(fresh, self._by_name[contact] if contact else None)

    def pause(self, name: str, *, for_s: float) -> None:
        """The process stands still for a while."""
        self._by_name[name].paused_until = self.time + for_s

    def add(self, name: str, address: str, *, contact: str) -> SimNode:
        """One more process; it may call itself like another one, which `cluster[name]` goes on to mean."""
        node = self._make(len(self.nodes), name, address)
        self.nodes.append(node)
        self._by_name.setdefault(name, node)
        self._by_address[address, PORT] = node
        self._boot(node, self._by_name[contact])
        return node

    def jump(self, name: str, by_s: float) -> None:
        """A node's clock leaps ahead: a machine that was suspended, seen from inside."""
        self._by_name[name].offset_s += by_s

    def block_datagrams(self, name: str) -> None:
        """Datagrams do not get in any more, streams do."""
        self.network.block_datagrams(self._by_name[name].index)

    def cut(self, sources: list[str], targets: list[str]) -> None:
        """Nothing of the sources reaches the targets any more (one way)."""
        self.network.cut(
            [self._by_name[name].index for name in sources], [self._by_name[name].index for name in targets]
        )

    def partition(self, group: list[str]) -> None:
        """The group and the rest do not hear each other."""
        rest = [node.name for node in self.nodes if node.name not in group]
        self.cut(group, rest)
        self.cut(rest, group)

    def heal(self) -> None:
        """Everybody reaches everybody."""
        self.network.heal()

    def weather(self, weather: Weather) -> None:
        """Change what the network does to packets."""
        self.network.weather = weather

    def call(self, name: str, verb: Callable[[Serf, float], object]) -> None:
        """`verb(serf, now)` at a node, as its shell would."""
        node = self._by_name[name]
        verb(node.serf, node.clock(self.time))
        self._perform(node)

    # looking

    def __getitem__(self, name: str) -> SimNode:
        return self._by_name[name]

    @property
    def live(self) -> list[SimNode]:
        """Nodes whose process runs and has not left."""
        return [node for node in self.nodes if node.up and node.serf.stage is Stage.ALIVE]

    def views(self, name: str, *, of: list[str] | None = None) -> set[MemberStatus | None]:
        """What the live nodes (or some of them) think of a member."""
        observers = self.live if of is None else [self._by_name[each] for each in of]
        found = (node.serf.member(name) for node in observers if node.name != name)
        return {None if member is None else member.status for member in found}

    def everyone_sees(self, name: str, status: MemberStatus | None) -> bool:
        """Whether all live nodes agree on it."""
        return self.views(name) == {status}

    def all_alive(self) -> bool:
        """Whether all nodes have come up once, and all live nodes see all live nodes alive, in both layers."""
        names = [node.name for node in self.live]
        return all(node.started for node in self.nodes) and all(self._sees_alive(node, names) for node in self.live)

    def troubles(self) -> list[str]:
        """Who does not see whom alive, for the message of an assertion."""
        names = [node.name for node in self.live]
        return [
            f"{node.name} sees {name} {_status(node.serf, name)}"
            for node in self.live
            for name in names
            if not self._sees_alive(node, [name])
        ][:10]

    def heard(self, event: str) -> dict[str, int]:
        """How often each live node was told of a user event."""
        return {
            node.name: sum(isinstance(each, UserEvent) and each.name == event for _, each in node.events)
            for node in self.live
        }

    def trace(self) -> str:
        """A digest of everything that happened, in order."""
        return self._trace.hexdigest()

    def check(self) -> None:
        """Incarnations never fall (but for a name that has moved to another address)."""
        for node in self.live:
            for name, known in node.serf.swim.nodes.items():
                before = node.incarnations.get(name)
                if before is None or before[1] != known.incarnation or before[0] != known.address:
                    fell = before is not None and before[0] == known.address and known.incarnation < before[1]
                    assert not fell, f"{node.name}: the incarnation of {name} fell"
                    node.incarnations[name] = (known.address, known.incarnation)

    @staticmethod
    def _sees_alive(node: SimNode, names: list[str]) -> bool:
        swim, serf = node.serf.swim.nodes, node.serf
        for name in names:
            known, member = swim.get(name), serf.member(name)
            if known is None or member is None:
                return False
            if known.state not in (State.ALIVE, State.SUSPECT) or member.status is not MemberStatus.ALIVE:
                return False
        return True

    # machinery

    def _make(self, index: int, name: str, address: str) -> SimNode:
        rng = random.Random(self._rng.getrandbits(64))
        serf = Serf(self.config, name, address, PORT, {"role": "node", "dc": "dc1"}, rng, overhead=OVERHEAD)
        rate = 1 + self._rng.uniform(-self._drift, self._drift)
        return SimNode(index, name, address, serf, self._rng.uniform(0, 1e6), rate, up=False)

    def _boot(self, node: SimNode, contact: SimNode | None) -> None:
        node.up = node.started = True
        node.serf.start(node.clock(self.time))
        if contact is not None:
            node.serf.join((contact.address, PORT))
        self._perform(node)

    def _at(self, time: float, index: int, happens: Callable[[SimNode], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (time, self._sequence, index, happens))

    def _step(self) -> None:
        time, sequence, index, happens = heapq.heappop(self._heap)
        self.time = time
        node = self.nodes[index]
        if node.paused_until > time:
            self._at(node.paused_until, index, happens)
            return
        self._trace.update(struct.pack("<dqi", time, sequence, index))
        happens(node)

    def _perform(self, node: SimNode) -> None:
        """What the shell does: effects, then the alarm."""
        while effects := node.serf.take():
            for effect in effects:
                if isinstance(effect, SendPacket):
                    self._send(node, effect)
                elif isinstance(effect, Exchange):
                    self._exchange(node, effect)
                elif isinstance(effect, Noticed):
                    node.notices.add(effect.text)
                else:
                    node.events.append((self.time, effect))
        deadline = node.serf.swim.deadline()
        if deadline is not None:
            at = max(self.time, node.true_time(deadline))
            if at < node.wake_at:
                node.wake_at = at
                life = node.life
                self._at(at, node.index, lambda each: self._wake(each, life, deadline))

    def _wake(self, node: SimNode, life: int, deadline: float) -> None:
        if not node.up or node.life != life:
            return
        node.wake_at = float("inf")
        node.serf.swim.wake(max(deadline, node.clock(self.time)))
        self._perform(node)

    def _send(self, node: SimNode, packet: SendPacket) -> None:
        size = 2 + sum(len(part) + 2 for part in packet.parts) + (_CRC if packet.crc else 0) + OVERHEAD
        self.packets += 1
        self.largest_packet = max(self.largest_packet, size)
        assert size <= self.config.packet_bytes, f"{node.name} sends a packet of {size} bytes"
        for part in packet.parts:
            self._trace.update(part)
        target = self._by_address.get(packet.to)
        if target is None:
            return
        sender = (node.address, PORT)
        for delay_s in self.network.datagram(node.index, target.index):
            self._at(self.time + delay_s, target.index, lambda each: self._receive(each, packet, sender))

    def _receive(self, node: SimNode, packet: SendPacket, sender: Address) -> None:
        if not node.up:
            return
        now = node.clock(self.time)
        for part in packet.parts:
            for message in _decoded(part):
                node.serf.swim.receive(message, sender, now)
        self._perform(node)

    def _exchange(self, node: SimNode, exchange: Exchange) -> None:
        life, token = node.life, exchange.token
        target = self._by_address.get(exchange.to)
        timeout = self.time + exchange.timeout_s / node.rate
        self._at(timeout, node.index, lambda each: self._reply(each, life, token, None))
        if target is None or not self._both_ways(node, target):
            return
        # The handshake, then the request: one and a half round trips.
        delay_s = sum(self.network.stream_delay_s() for _ in range(3))
        self._at(self.time + delay_s, target.index, lambda each: self._serve(each, node, life, exchange))

    def _serve(self, node: SimNode, caller: SimNode, life: int, exchange: Exchange) -> None:
        if not node.up or not self._both_ways(node, caller):
            return
        request = _CODEC.decode_stream(exchange.request)
        assert request is not None
        answer = node.serf.swim.answer(request)
        node.serf.swim.accept(request, node.clock(self.time))
        self._perform(node)
        if answer is None:
            return
        message, token = _CODEC.decode_stream(answer), exchange.token
        delay_s = self.network.stream_delay_s()
        self._at(self.time + delay_s, caller.index, lambda each: self._reply(each, life, token, message))

    def _reply(self, node: SimNode, life: int, token: int, message: StreamMessage | None) -> None:
        if node.up and node.life == life:
            node.serf.swim.reply(token, message, node.clock(self.time))
            self._perform(node)

    def _both_ways(self, a: SimNode, b: SimNode) -> bool:
        return self.network.reaches(a.index, b.index) and self.network.reaches(b.index, a.index)


def _status(serf: Serf, name: str) -> str:
    known, member = serf.swim.nodes.get(name), serf.member(name)
    return f"{known.state.name if known else None}/{member.status if member else None}"
