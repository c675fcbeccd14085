"""Whatever comes in, the answer is None, an effect, or a DNS message that dnspython can read and that answers it."""

import random

import dns.exception
import dns.message
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_agent.dns import alias, wire
from mesh_agent.dns.recursion import is_answer_to
from tests.unit.dns.conftest import World, fill

WORLD = World()
fill(WORLD)
CLIENT = WORLD.make(server=False, recursors=("192.0.2.1",))

LABELS = [
    b"api",
    b"service",
    b"mesh",
    b"consul",
    b"node",
    b"n1",
    b"dc2",
    b"dc",
    b"addr",
    b"0a000001",
    b"_tcp",
    b"_api",
    b"arpa",
    b"\xff\0",
]
names = st.lists(st.one_of(st.sampled_from(LABELS), st.binary(min_size=1, max_size=63)), max_size=8)


def check(data: bytes) -> None:
    for responder in (WORLD.responder, CLIENT):
        for tcp in (False, True):
            outcome = responder.answer(data, tcp=tcp)
            if isinstance(outcome, bytes):
                assert outcome[:2] == data[:2]
                assert outcome[2] & 0x80
                assert len(outcome) <= (wire.TCP_BYTES if tcp else wire.UDP_SEND_BYTES)
                dns.message.from_wire(outcome)
                assert responder.answer(outcome, tcp=tcp) is None


@given(st.binary(max_size=300), st.sampled_from([wire.A, wire.AAAA]))
def test_broken_answers_of_recursors(data: bytes, qtype: int) -> None:
    for _, rdata in alias.addresses(data, qtype):
        assert len(rdata) in (4, 16)
    is_answer_to(data, dns.message.make_query("a.mesh", "A", id=int.from_bytes(data[:2], "big")).to_wire())


@given(st.binary(max_size=600))
def test_random_bytes(data: bytes) -> None:
    check(data)


@given(
    st.binary(min_size=2, max_size=2),
    names,
    st.integers(0, 300),
    st.sampled_from([1, 3, 4, 255]),
    st.binary(max_size=40),
)
def test_random_questions(ident: bytes, labels: list[bytes], qtype: int, qclass: int, tail: bytes) -> None:
    name = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
    question = name + qtype.to_bytes(2, "big") + qclass.to_bytes(2, "big")
    check(ident + bytes.fromhex("01000001000000000000") + question)
    check(ident + bytes.fromhex("01000001000000000001") + question + bytes.fromhex("0000290400000000") + tail)


@settings(max_examples=300)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from(["api.service.mesh", "n1.node.mesh", "1.0.0.10.in-addr.arpa", "mesh"]),
)
def test_flipped_bytes(rng: random.Random, name: str) -> None:
    data = bytearray(dns.message.make_query(name, "ANY", use_edns=0).to_wire())
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    check(bytes(data))
    check(bytes(data[: rng.randrange(len(data))]))
