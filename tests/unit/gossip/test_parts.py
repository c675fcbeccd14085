"""The small parts: broadcasts, suspicion, awareness, Lamport clocks, keyring, compression, coordinates."""

import base64
import math
import random

import pytest

from mesh_agent.errors import InvalidRequest, RemoteProtocolError
from mesh_agent.gossip import GossipConfig, Keyring, decode_key, lzw
from mesh_agent.gossip.awareness import Awareness
from mesh_agent.gossip.broadcasts import Broadcasts
from mesh_agent.gossip.coordinate import Coordinate, Vivaldi, decode_payload, encode_payload
from mesh_agent.gossip.lamport import LamportClock, SeenRing
from mesh_agent.gossip.suspicion import Suspicion

# broadcasts


@pytest.mark.parametrize(("members", "times"), [(1, 4), (9, 4), (10, 8), (99, 8), (100, 12), (999, 12)])
def test_an_update_is_sent_as_often_as_the_size_of_the_pool_asks_for(members: int, times: int) -> None:
    queue = Broadcasts(4)
    queue.queue("n", b"update")
    sent = 0
    while queue.take(2, 1000, members):
        sent += 1
    assert sent == times
    assert len(queue) == 0
    assert not queue.waits("n")


def test_the_least_sent_goes_first_then_the_larger_then_the_newer() -> None:
    queue = Broadcasts(4)
    for message in (b"old--", b"large-message", b"new--"):
        queue.queue("", message)
    assert queue.take(0, 1000, 1) == [b"large-message", b"new--", b"old--"]
    queue.queue("", b"x")
    assert queue.take(0, 6, 1) == [b"x", b"new--"]


def test_what_does_not_fit_is_passed_over_and_keeps_its_turn() -> None:
    queue = Broadcasts(2)
    for message in (b"a" * 50, b"b" * 10, b"c" * 30, b"d" * 5):
        queue.queue("", message)
    assert queue.take(2, 50, 1) == [b"c" * 30, b"b" * 10]
    assert queue.take(2, 58, 1) == [b"a" * 50]
    assert queue.take(2, 20, 1) == [b"d" * 5, b"b" * 10]


def test_newer_news_of_the_same_node_replaces_the_older() -> None:
    queue = Broadcasts(4)
    queue.queue("n", b"suspect")
    queue.take(0, 100, 1)
    queue.queue("n", b"alive")
    queue.queue("m", b"alive too")
    assert queue.take(0, 100, 1) == [b"alive too", b"alive"]


def test_too_large_an_update_is_not_taken_and_its_predecessor_is_gone() -> None:
    queue = Broadcasts(4, largest_bytes=10)
    assert queue.queue("n", b"old")
    assert not queue.queue("n", b"x" * 11)
    assert len(queue) == 0


def test_a_full_queue_drops_what_was_sent_most_often() -> None:
    queue = Broadcasts(4, limit=3)
    queue.queue("", b"sent")
    queue.take(0, 100, 1)
    for number in range(3):
        queue.queue("", b"new%d" % number)
    assert len(queue) == 3
    assert b"sent" not in queue.take(0, 100, 1)


def test_the_queue_is_what_a_plain_sort_would_give() -> None:
    rng = random.Random(3)
    queue, model = Broadcasts(3), []
    for turn in range(400):
        message = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 60)))
        queue.queue("", message)
        model.append([0, -len(message), -turn, message])
        budget, wanted = rng.randrange(0, 200), []
        left = budget
        for each in sorted(model, key=lambda e: e[:3]):
            if len(each[3]) + 2 <= left:
                left -= len(each[3]) + 2
                wanted.append(each[3])
                each[0] += 1
        model = [each for each in model if each[0] < 3 * 1]
        assert queue.take(2, budget, 8) == wanted


# suspicion and awareness


@pytest.mark.parametrize(
    ("members", "confirmations", "lasts_s"),
    [
        (1, 0, 4.0),  # nobody could confirm: the shortest at once
        (3, 0, 4.0),
        (4, 0, 24.0),
        (4, 1, 24.0 - 20.0 * math.log(2) / math.log(3)),
        (4, 2, 4.0),
        (4, 9, 4.0),
        (100, 0, 48.0),
        (100, 1, 48.0 - 40.0 * math.log(2) / math.log(3)),
        (100, 2, 8.0),
    ],
)
def test_a_suspicion_lasts_as_the_formula_says(members: int, confirmations: int, lasts_s: float) -> None:
    suspicion = Suspicion("first", members, GossipConfig.lan(), 100.0)
    assert not suspicion.confirm("first"), "the first accuser does not confirm itself"
    counted = [suspicion.confirm(f"other-{number}") for number in range(confirmations)]
    wanted = 2 if members >= 4 else 0
    assert counted == [number < wanted for number in range(confirmations)]
    assert suspicion.ends_at - 100.0 == pytest.approx(math.floor(lasts_s * 1000) / 1000, abs=0.0011)


def test_an_accuser_counts_once() -> None:
    suspicion = Suspicion("a", 100, GossipConfig.lan(), 0.0)
    assert [suspicion.confirm(name) for name in ("b", "b", "a", "c", "d")] == [True, False, False, True, False]


def test_awareness_stays_within_its_bounds_and_scales_timeouts() -> None:
    awareness = Awareness(8)
    awareness.apply(-3)
    assert (awareness.score, awareness.scale(0.5)) == (0, 0.5)
    awareness.apply(100)
    assert (awareness.score, awareness.scale(0.5)) == (7, 4.0)
    awareness.apply(-2)
    assert awareness.score == 5


# Lamport


def test_a_lamport_clock_starts_at_one_and_never_falls_behind() -> None:
    clock = LamportClock()
    assert clock.time == 1
    assert clock.stamp() == 1
    clock.witness(1)
    assert clock.time == 2
    clock.witness(2)
    assert clock.time == 3
    clock.witness(40)
    assert clock.time == 41


def test_the_ring_tells_new_from_seen_and_from_too_old() -> None:
    ring: SeenRing[str] = SeenRing(8)
    assert ring.add(3, "a", 4)
    assert not ring.add(3, "a", 4)
    assert ring.add(3, "b", 4)
    assert ring.add(11, "a", 12)
    assert not ring.add(3, "c", 12), "older than the ring"
    assert ring.add(5, "late", 12)
    ring.oldest = 20
    assert not ring.add(19, "before we came", 21)
    assert ring.items() == [(11, ("a",)), (5, ("late",))]


# keyring

KEYS = [bytes([number]) * size for number, size in ((1, 16), (2, 24), (3, 32))]


def test_a_ring_installs_uses_and_removes_keys() -> None:
    ring = Keyring(KEYS[:1])
    ring.install(KEYS[1])
    ring.install(KEYS[1])
    assert ring.keys() == [base64.b64encode(key).decode() for key in KEYS[:2]]
    with pytest.raises(InvalidRequest):
        ring.use(KEYS[2])
    ring.use(KEYS[1])
    assert ring.primary == base64.b64encode(KEYS[1]).decode()
    with pytest.raises(InvalidRequest):
        ring.remove(KEYS[1])
    ring.remove(KEYS[0])
    ring.remove(KEYS[2])
    assert Keyring.from_json(ring.to_json()).keys() == ring.keys()


@pytest.mark.parametrize("key", KEYS, ids=len)
def test_every_key_of_the_ring_opens_and_the_primary_one_closes(key: bytes) -> None:
    sealed = Keyring([key]).encrypt(b"text", b"label", lambda size: b"n" * size)
    assert len(sealed) == len(b"text") + 29
    assert Keyring([KEYS[0], KEYS[1], KEYS[2]]).decrypt(sealed, b"label") == b"text"
    with pytest.raises(RemoteProtocolError):
        Keyring([key]).decrypt(sealed, b"another label")
    with pytest.raises(RemoteProtocolError):
        Keyring([b"o" * 16]).decrypt(sealed, b"label")


@pytest.mark.parametrize("text", ["", "%", "YQ==", base64.b64encode(b"x" * 17).decode(), "not base64 at all!"])
def test_a_bad_key_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(InvalidRequest):
        decode_key(text)


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", "[]", '["YQ=="]'])
def test_a_bad_keyring_file_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Keyring.from_json(text)


@pytest.mark.parametrize("block", [b"", b"\x01", b"\x02" + b"0" * 40, b"\x01" + b"0" * 28, b"\x00" + b"0" * 40])
def test_what_is_no_block_is_junk(block: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Keyring(KEYS).decrypt(block, b"")


# compression


def test_compression_restarts_its_dictionary_and_comes_back() -> None:
    rng = random.Random(1)
    for size in (0, 1, 2, 3, 255, 4000, 60_000):
        plain = bytes(rng.choice(b"abcdefgh") for _ in range(size))
        assert lzw.decompress(lzw.compress(plain), 1 << 20) == plain
        noise = rng.randbytes(size)
        assert lzw.decompress(lzw.compress(noise), 1 << 20) == noise


def test_a_bomb_is_given_up_at_the_limit() -> None:
    bomb = lzw.compress(b"\0" * 2_000_000)
    assert len(bomb) < 4000
    with pytest.raises(RemoteProtocolError):
        lzw.decompress(bomb, 100_000)


@pytest.mark.parametrize("packed", [b"\x02\x03", b"\xff\xff\xff", b"\x00\xff\xff\xff"])
def test_junk_is_not_decompressed(packed: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        lzw.decompress(packed, 1000)


# coordinates


def test_coordinates_come_to_predict_round_trips() -> None:
    rng = random.Random(9)
    places = [(rng.uniform(0, 0.05), rng.uniform(0, 0.05)) for _ in range(10)]
    nodes = [Vivaldi(random.Random(number)) for number in range(10)]
    for _ in range(600):
        for a in range(10):
            b = rng.choice([n for n in range(10) if n != a])
            nodes[a].observe(str(b), nodes[b].coordinate, 0.002 + math.dist(places[a], places[b]))
    errors = []
    for a in range(10):
        for b in range(a):
            real = 0.002 + math.dist(places[a], places[b])
            errors.append(abs(nodes[a].coordinate.distance_s(nodes[b].coordinate) - real) / real)
    assert sum(errors) / len(errors) < 0.25


@pytest.mark.parametrize("rtt_s", [0.0, -1.0, 10.1, math.inf, math.nan])
def test_an_impossible_round_trip_teaches_nothing(rtt_s: float) -> None:
    vivaldi = Vivaldi(random.Random(1))
    vivaldi.observe("p", Coordinate(), rtt_s)
    assert vivaldi.coordinate == Coordinate()


def test_one_outlier_is_filtered() -> None:
    vivaldi = Vivaldi(random.Random(1))
    other = Coordinate((0.01,) + (0.0,) * 7, 0.1)
    for _ in range(100):
        vivaldi.observe("p", other, 0.01)
    before = vivaldi.coordinate
    vivaldi.observe("p", other, 9.0)
    assert abs(vivaldi.coordinate.distance_s(other) - before.distance_s(other)) < 0.005


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x02", b"\x01", b"\x01\x80", b"\x01\xc0", b"\x01junk", encode_payload(Coordinate((math.nan,) * 8)),
     encode_payload(Coordinate((0.0,) * 7)), encode_payload(Coordinate(height=math.inf))],
)  # fmt: skip
def test_a_payload_without_a_usable_coordinate_is_none(payload: bytes) -> None:
    assert decode_payload(payload) is None


def test_a_payload_comes_back() -> None:
    coordinate = Coordinate((0.5, -1.0, 0, 0, 0, 0, 0, 3.0), 0.2, -0.001, 0.003)
    assert decode_payload(encode_payload(coordinate)) == coordinate
