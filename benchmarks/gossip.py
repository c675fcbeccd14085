"""What a gossip packet costs: the whole way in (decrypt, decode, machine) and out, beside AES-GCM and msgpack alone, which no Python agent can do without.

    python -m benchmarks.gossip [--seconds 1]

CPU time of one process counts, so that other work on the machine does not matter. "Ping" is a probe that is answered: one packet in, one out. "Gossip"
is a full packet of ten alive messages that are known already, as most are. "News" is the same with ten changes, which have to be passed on.
"""

import argparse
import itertools
import os
import random
import time
from collections.abc import Callable

import msgpack
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mesh_agent.gossip import GossipConfig, Keyring, layers, wire
from mesh_agent.gossip.effects import SendPacket
from mesh_agent.gossip.serf import Serf

KEY = bytes(range(16))
PEER = ("10.0.0.2", 7946)
MEMBERS = 200
BATCH = 10


def per_second(work: Callable[[], object], seconds: float) -> float:
    """How often a second of CPU does it."""
    for _ in range(20):
        work()
    began, count = time.process_time(), 0
    while (spent := time.process_time() - began) < seconds:
        for _ in range(20):
            work()
        count += 20
    return count / spent


def alive(number: int, incarnation: int) -> bytes:
    """One member, as others gossip it."""
    meta = b"\xff" + msgpack.packb({"role": "node", "dc": "dc1"}, use_bin_type=False)
    address = f"10.0.{number >> 8}.{number & 255}"
    return wire.encode(wire.Alive(incarnation, f"node-{number}", address, 7946, meta, wire.OWN_VERSIONS))


class Node:
    """A member of a pool of some size, with its codec."""

    def __init__(self, *, compression: bool) -> None:
        self.codec = layers.Codec(Keyring([KEY]), os.urandom, compress_datagrams=compression)
        self.serf = Serf(GossipConfig.lan(), "self", "10.9.0.1", 7946, {"role": "node"}, random.Random(1), overhead=29)
        self.serf.start(0.0)
        self.receive(self.codec.encode_packet([alive(number, 1) for number in range(MEMBERS)]))
        while self.serf.swim.take() or self.serf.broadcasts(3, 1300) or self._drain():
            pass

    def _drain(self) -> bool:
        """Let the news of the beginning out, so that packets are as empty as on a quiet day."""
        self.receive(self.codec.encode_packet([wire.encode(wire.Ping(1, "self", *PEER, "p"))]))
        sent = [effect for effect in self.serf.take() if isinstance(effect, SendPacket)]
        return any(len(packet.parts) > 1 for packet in sent)

    def receive(self, datagram: bytes) -> None:
        """In."""
        for message in self.codec.decode_packet(datagram):
            self.serf.swim.receive(message, PEER, 1.0)

    def answer(self, datagram: bytes) -> None:
        """In, and out what it wants to send."""
        self.receive(datagram)
        for effect in self.serf.take():
            if isinstance(effect, SendPacket):
                self.codec.encode_packet(list(effect.parts), crc=effect.crc)


def limit_in(datagram: bytes, bodies: list[bytes]) -> Callable[[], object]:
    """Opening one packet and unpacking its messages."""
    cipher = AESGCM(KEY)

    def work() -> None:
        cipher.decrypt(datagram[1:13], datagram[13:], b"")
        for body in bodies:
            msgpack.unpackb(body, raw=True)

    return work


def limit_out(plain: bytes, fields: list[dict[str, object]]) -> Callable[[], object]:
    """Packing messages and sealing one packet."""
    cipher = AESGCM(KEY)

    def work() -> None:
        for each in fields:
            msgpack.packb(each, use_bin_type=False)
        cipher.encrypt(os.urandom(12), plain, b"")

    return work


def report(what: str, rate: float, limit: float) -> None:
    """One line."""
    print(f"{what:<44} {rate:>9,.0f}/s  {limit:>9,.0f}/s  {rate / limit:>5.2f}  {1e6 / rate:>7.1f} us")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU time for each figure")
    seconds = parser.parse_args().seconds
    print(f"{'packets per second of CPU':<44} {'agent':>11}  {'AES+msgpack':>11}  ratio   a packet")
    plain = layers.Codec(Keyring([KEY]), os.urandom)
    ping = wire.encode(wire.Ping(7, "self", *PEER, "peer"))
    known = [alive(number, 1) for number in range(BATCH)]
    unpacked = [msgpack.unpackb(body[1:], raw=True) for body in known]
    node = Node(compression=False)

    packet = plain.encode_packet([ping])
    ack = {"SeqNo": 7, "Payload": node.serf.ack_payload()}
    in_limit = per_second(limit_in(packet, [ping[1:]]), seconds)
    out_limit = per_second(limit_out(packet[13:-16], [ack]), seconds)
    both = 1 / (1 / in_limit + 1 / out_limit)
    report("ping, answered", per_second(lambda: node.answer(packet), seconds), both)

    packet = plain.encode_packet(known)
    in_limit = per_second(limit_in(packet, [body[1:] for body in known]), seconds)
    report("gossip of ten known members, in", per_second(lambda: node.receive(packet), seconds), in_limit)
    squeezed = layers.Codec(Keyring([KEY]), os.urandom, compress_datagrams=True).encode_packet(known)
    report("  the same, compressed by the sender", per_second(lambda: node.receive(squeezed), seconds), in_limit)

    incarnation = itertools.count(2)
    news = [plain.encode_packet([alive(n, next(incarnation)) for n in range(BATCH)]) for _ in range(3000)]
    turn = itertools.cycle(range(3000))

    def renewed() -> None:
        number = next(turn)
        if not number:
            node.serf.swim.nodes.clear()
            node.serf.start(0.0)
        node.receive(news[number])
        node.serf.take()

    report("news of ten members, in and queued", per_second(renewed, seconds), in_limit)

    out_limit = per_second(limit_out(layers.compound(known), unpacked), seconds)
    for compression in (False, True):
        codec = layers.Codec(Keyring([KEY]), os.urandom, compress_datagrams=compression)
        rate = per_second(lambda codec=codec: codec.encode_packet(known), seconds)  # type: ignore[misc]
        report(f"ten members, out, {'' if compression else 'not '}compressed", rate, out_limit)


if __name__ == "__main__":
    main()
