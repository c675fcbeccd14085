"""Whatever is encoded comes back; whatever arrives is a message or a RemoteProtocolError, and costs little."""

import base64
import json
import random
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh_agent.errors import RemoteProtocolError
from mesh_agent.gossip import GossipConfig, Keyring, layers, lzw, wire
from mesh_agent.gossip import serf_wire as serf
from mesh_agent.gossip.serf import Serf

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "contract" / "gossip_vectors.json").read_text())
KEY = base64.b64decode("AAECAwQFBgcICQoLDA0ODw==")

u32 = st.integers(0, 0xFFFFFFFF)
port = st.integers(1, 0xFFFF)
lamport = st.integers(0, 1 << 62)
name = st.text(min_size=1, max_size=40).filter(lambda text: text.encode("utf-8", "ignore") == _utf8(text))
address = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str).filter(lambda a: not a.startswith("::ffff:"))
payload = st.binary(max_size=300)
versions = st.tuples(*[st.integers(0, 255)] * 6)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return b"\xff"


messages: st.SearchStrategy[wire.Message] = st.one_of(
    st.builds(wire.Ping, u32, name),
    st.builds(wire.Ping, u32, name, address, port, name),
    st.builds(wire.IndirectPing, u32, name, address, port, st.booleans(), address, port, name),
    st.builds(wire.Ack, u32, payload),
    st.builds(wire.Nack, u32),
    st.builds(wire.Suspect, u32, name, name),
    st.builds(wire.Dead, u32, name, name),
    st.builds(wire.Alive, u32, name, address, port, payload, versions),
    st.builds(wire.User, payload),
)
entries = st.builds(wire.StateEntry, name, address, port, payload, u32, st.integers(0, 3), versions)
streams: st.SearchStrategy[Any] = st.builds(
    wire.PushPull, st.lists(entries, max_size=5).map(tuple), payload, st.booleans()
)
serf_messages: st.SearchStrategy[Any] = st.one_of(
    st.builds(serf.Leave, lamport, name, st.booleans()),
    st.builds(serf.Join, lamport, name),
    st.builds(serf.EventMessage, lamport, name, payload, st.booleans()),
    st.builds(
        serf.QueryMessage, lamport, u32, address, port, name, name, payload,
        st.integers(0, 3_000_000).map(lambda ms: ms / 1000), st.integers(0, 3), st.integers(0, 255),
        st.lists(st.binary(min_size=1, max_size=20), max_size=3).map(tuple),
    ),
    st.builds(serf.ResponseMessage, lamport, u32, name, payload, st.integers(0, 3)),
    st.builds(serf.Relay, address, port, name, st.binary(min_size=1, max_size=100)),
    st.builds(serf.SerfState, lamport, st.dictionaries(name, lamport, max_size=5), st.lists(name, max_size=3).map(tuple)),
)  # fmt: skip
codecs = st.builds(
    lambda keyed, label, compression: layers.Codec(
        Keyring([KEY]) if keyed else None,
        random.Random(1).randbytes,
        label=label,
        compression=compression,
        compress_datagrams=compression,
    ),
    st.booleans(),
    st.sampled_from(["", "partition-1"]),
    st.booleans(),
)


@given(codecs, st.lists(messages, min_size=1, max_size=12), st.booleans())
def test_a_datagram_comes_back(codec: layers.Codec, sent: list[wire.Message], crc: bool) -> None:
    assert codec.decode_packet(codec.encode_packet([wire.encode(m) for m in sent], crc=crc)) == sent


@given(codecs, streams)
def test_a_stream_comes_back_and_only_when_it_is_whole(codec: layers.Codec, sent: wire.PushPull) -> None:
    encoded = codec.encode_stream(wire.encode_push_pull(sent))
    assert codec.decode_stream(encoded) == sent
    for cut in {0, 1, len(encoded) // 3, len(encoded) - 1}:
        assert codec.decode_stream(encoded[:cut]) is None
    if cut := encoded[: len(encoded) // 2]:
        assert codec.least_stream_bytes(cut) <= len(encoded)


@given(serf_messages)
@example(serf.QueryMessage(1, 2, "10.0.0.1", 1, "a", "q", b"", 262.143))  # in binary a little less than that
def test_a_serf_message_comes_back(sent: Any) -> None:
    assert serf.decode(serf.encode(sent)) == sent


@given(st.binary(max_size=6000))
def test_compression_comes_back(plain: bytes) -> None:
    assert lzw.decompress(lzw.compress(plain), len(plain) + 1) == plain


@given(st.dictionaries(name, name, max_size=6))
def test_tags_come_back(tags: dict[str, str]) -> None:
    assert serf.decode_tags(serf.encode_tags(tags)) == tags


# junk

PLAIN = [bytes.fromhex(v["hex"]) for v in VECTORS if not v.get("key")]
ENCRYPTED = [bytes.fromhex(v["hex"]) for v in VECTORS if v.get("key")]


def feed(blob: bytes, codec: layers.Codec) -> None:
    """All the way: through both decoders and into a machine. Anything but RemoteProtocolError escapes."""
    machine = Serf(GossipConfig.lan(), "self", "10.0.0.1", 7946, {"role": "node"}, random.Random(1))
    machine.start(0.0)
    try:
        found = codec.decode_packet(blob)
    except RemoteProtocolError:
        found = []
    for message in found:
        try:
            machine.swim.receive(message, ("10.0.0.2", 7946), 1.0)
        except RemoteProtocolError:
            continue
    try:
        request = codec.decode_stream(blob)
        if request is not None:
            machine.swim.answer(request)
            machine.swim.accept(request, 1.0)
    except RemoteProtocolError:
        pass
    machine.swim.wake(3.0)
    for effect in machine.take():
        if hasattr(effect, "parts"):
            codec.encode_packet(list(effect.parts))


@given(st.binary(max_size=200))
def test_random_bytes_are_junk_or_a_message(blob: bytes) -> None:
    feed(blob, layers.Codec(None, random.Random(1).randbytes))
    feed(blob, layers.Codec(Keyring([KEY]), random.Random(1).randbytes))


@settings(max_examples=400)
@given(st.sampled_from(PLAIN), st.randoms(use_true_random=False))
def test_mutated_packets_of_real_agents_are_junk_or_a_message(blob: bytes, rng: random.Random) -> None:
    mutated = bytearray(blob)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(mutated))
        kind = rng.randrange(4)
        if kind == 0:
            mutated[at] = rng.randrange(256)
        elif kind == 1:
            mutated[at] ^= 1 << rng.randrange(8)
        elif kind == 2 and len(mutated) > 2:
            del mutated[at]
        else:
            mutated[at:at] = rng.randbytes(rng.randint(1, 4))
    feed(bytes(mutated), layers.Codec(None, random.Random(1).randbytes))


@given(st.sampled_from(ENCRYPTED), st.data())
def test_no_bit_of_an_encrypted_packet_can_be_changed(blob: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(blob) - 1))
    bit = data.draw(st.integers(0, 7))
    mutated = bytearray(blob)
    mutated[at] ^= 1 << bit
    codec = layers.Codec(Keyring([KEY]), random.Random(1).randbytes)
    with pytest.raises(RemoteProtocolError):
        codec.decode_packet(bytes(mutated))


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats(), st.binary(max_size=8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.binary(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted(
    {"SeqNo", "Node", "Target", "Port", "Nack", "SourceAddr", "SourcePort", "Payload", "Incarnation", "From", "Addr",
     "Meta", "Vsn", "LTime", "Prune", "StatusLTimes", "LeftMembers", "EventLTime", "Events", "QueryLTime", "Name", "CC",
     "ID", "SourceNode", "Filters", "Flags", "RelayFactor", "Timeout", "DestAddr", "DestName", "Nodes", "UserStateLen",
     "UserMsgLen", "Key", "Algo", "Buf", "Error", "Join"}
)  # fmt: skip


@settings(max_examples=600)
@given(st.integers(0, 13), st.dictionaries(st.sampled_from(FIELDS), values, max_size=8))
def test_fields_of_the_wrong_kind_are_junk_or_ignored(kind: int, fields: dict[str, Any]) -> None:
    body = bytes([kind]) + msgpack.packb(fields, use_bin_type=False)
    codec = layers.Codec(None, random.Random(1).randbytes)
    feed(body, codec)
    feed(bytes([wire.USER]) + body, codec)


# cost


def cost(blob: bytes) -> tuple[float, int]:
    """Seconds and bytes that one packet or stream of a stranger takes."""
    tracemalloc.start()
    began = time.process_time()
    for decode in (layers.Codec(None, bytes).decode_packet, layers.Codec(None, bytes).decode_stream):
        try:
            decode(blob)
        except RemoteProtocolError:
            continue
    spent = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return spent, peak


def bomb(levels: int) -> bytes:
    """Compound messages of compressed compound messages, as far as 64 KiB go."""
    block = b"\x08" + b"\0" * 60_000
    for _ in range(levels):
        packed = layers.compressed(block)
        block = layers.compound([packed] * min(255, max(1, 60_000 // (len(packed) + 2))))
    return block[:65_000]


def huge_lists() -> bytes:
    """Lists in lists, each of which claims more members than there are bytes."""
    return bytes([wire.ALIVE]) + b"\x81\xa4Addr" + b"\xdd\x7f\xff\xff\xff" * 500


@pytest.mark.parametrize(
    ("name", "blob"),
    [
        ("bomb", layers.compressed(b"\0" * 30_000_000)),
        ("nested bombs", bomb(1)),
        ("deeper bombs", bomb(2)),
        ("deepest bombs", bomb(4)),
        ("many entries", layers.compressed(b"\x06\x81\xa5Nodes\xce\x00\x01\xff\xff" + b"\x80" * 131_071)),
        ("many nodes", b"\x06\x81\xa5Nodes\xce\xff\xff\xff\xff"),
        ("large state", b"\x06\x82\xa5Nodes\x00\xacUserStateLen\xcf" + b"\xff" * 8),
        ("list", bytes([wire.PING]) + b"\xdd\xff\xff\xff\xff"),
        ("map", bytes([wire.PING]) + b"\xdf\xff\xff\xff\xff"),
        ("lists in lists", huge_lists()),
        ("deep lists", bytes([wire.PING]) + b"\x91" * 60_000),
        ("255 compounds", layers.compound([layers.compound([b"\x0b\x80"] * 100)] * 100)),
        ("large stream", struct.pack(">BI", wire.ENCRYPT, 0xFFFFFFFF) + b"x" * 100),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_packet_cannot_cost_much(name: str, blob: bytes) -> None:
    seconds, peak = cost(blob)
    assert seconds < 2.0, f"{name}: {seconds:.2f} s"
    assert peak < 48 * 1024 * 1024, f"{name}: {peak >> 20} MiB"
