"""Sizes, truncation, the answer limit, and fairness of the order."""

import random
from collections import Counter

import dns.flags
import dns.message
import pytest

from mesh_agent.dns.cache import Bounded
from mesh_agent.model import Service
from tests.unit.dns.conftest import World, node, values


@pytest.fixture
def crowd(world: World) -> World:
    """`many`: 50 instances, each on a node of its own."""
    for at in range(50):
        host = node(f"crowd-{at:02}", f"10.1.0.{at}", zone=f"zone-{at}")
        world.dc1.instance(Service(id="many", name="many", node=host.name, port=80), host)
    return world


def size(world: World, name: str, qtype: str, *, tcp: bool = False, **options: object) -> int:
    data = world.responder.answer(dns.message.make_query(name, qtype, **options).to_wire(), tcp=tcp)  # type: ignore[arg-type]
    assert isinstance(data, bytes)
    return len(data)


@pytest.mark.parametrize("qtype", ["A", "SRV"])
@pytest.mark.parametrize("options", [{}, {"use_edns": 0, "payload": 512}, {"use_edns": 0, "payload": 0}])
def test_small_udp_answers_carry_three_and_say_so(crowd: World, qtype: str, options: dict[str, object]) -> None:
    answer = crowd.ask("many.service.mesh", qtype, **options)
    assert len(values(answer)) == 3
    assert answer.flags & dns.flags.TC
    assert size(crowd, "many.service.mesh", qtype, **options) <= 512


def test_truncation_is_silent_when_told_so_and_the_limit_is_a_setting(crowd: World) -> None:
    crowd.responder = crowd.make(enable_truncate=False, udp_answer_limit=5)
    answer = crowd.ask("many.service.mesh")
    assert len(values(answer)) == 5
    assert not answer.flags & dns.flags.TC


@pytest.mark.parametrize("payload", [513, 700, 1232, 4096, 65535])
@pytest.mark.parametrize("qtype", ["A", "SRV"])
def test_edns_answers_fill_what_the_client_takes(crowd: World, qtype: str, payload: int) -> None:
    for name in ("many.service.mesh", "Many.service.mesh"):
        answer = crowd.ask(name, qtype, use_edns=0, payload=payload)
        assert size(crowd, name, qtype, use_edns=0, payload=payload) <= min(payload, 4096)
        count = len(values(answer))
        assert bool(answer.flags & dns.flags.TC) == (count < 50)
        assert count > 3
        if qtype == "SRV":  # every answer that is there can be used
            targets = {item.target for rrset in answer.answer for item in rrset}
            addressed = {rrset.name for rrset in answer.additional if rrset.rdtype == dns.rdatatype.A}
            assert targets == addressed or count == 50


@pytest.mark.parametrize("qtype", ["A", "SRV"])
def test_tcp_answers_are_whole(crowd: World, qtype: str) -> None:
    for options in ({}, {"use_edns": 0, "payload": 512}):
        answer = crowd.ask("many.service.mesh", qtype, tcp=True, **options)
        assert len(values(answer)) == 50
        assert not answer.flags & dns.flags.TC
    if qtype == "SRV":
        assert len(values(answer, "additional")) == 100


def test_even_tcp_has_an_end(world: World) -> None:
    for at in range(4100):
        world.dc1.put(
            node(f"x{at}", f"10.{at // 65536}.{at // 256 % 256}.{at % 256}"),
            Service(id="huge", name="huge", node=f"x{at}"),
        )
    answer = world.ask("huge.service.mesh", tcp=True)
    assert answer.flags & dns.flags.TC
    assert size(world, "huge.service.mesh", "A", tcp=True) <= 65535
    assert len(values(answer)) > 4000


def test_additional_records_are_cut_without_tc_when_all_answers_fit(world: World) -> None:
    for at in range(9):
        host = node(f"long-{at}", f"10.3.0.{at}", note="x" * 120)
        world.dc1.instance(Service(id="wordy", name="wordy", node=host.name, port=80), host)
    answer = world.ask("wordy.service.mesh", "SRV", use_edns=0, payload=800)
    assert len(values(answer)) == 9
    assert not answer.flags & dns.flags.TC
    assert 0 < len(values(answer, "additional")) < 18


@pytest.mark.parametrize("name", ["many.service.mesh", "Many.service.mesh"])
def test_every_instance_gets_its_share(crowd: World, name: str) -> None:
    """Both on the hot road and on the warm one: nobody is left out, and nobody leads much more often than others."""
    firsts: Counter[str] = Counter()
    carried: Counter[str] = Counter()
    for _ in range(5000):
        found = values(crowd.ask(name))
        firsts[found[0]] += 1
        carried.update(found)
    assert len(carried) == 50
    assert len(firsts) == 50
    assert max(firsts.values()) <= 3 * 5000 / 50
    assert min(carried.values()) >= 5000 * 3 / 50 / 3


def test_with_few_instances_each_leads_equally_often(world: World) -> None:
    firsts = Counter(values(world.ask("api.service.mesh"))[0] for _ in range(300))
    assert dict(firsts) == {"10.0.0.1": 100, "10.0.0.2": 100, "10.0.0.3": 100}


def test_the_order_follows_the_seed(world: World) -> None:
    def orders(seed: int) -> list[list[str]]:
        world.responder = world.make(seed=seed)
        return [values(world.ask("api.service.mesh")) for _ in range(30)]

    assert orders(1) == orders(1)
    assert orders(1) != orders(2)


def test_the_cache_is_bounded_and_forgets_the_oldest() -> None:
    cache: Bounded[int, str] = Bounded(10)
    for at in range(100):
        cache.put(at, str(at), 2)
    assert len(cache) == 5
    assert cache.get(94) is None
    assert cache.get(99) == "99"
    cache.put(99, "again", 10)
    assert (len(cache), cache.get(99)) == (1, "again")
    cache.put(99, "too heavy", 11)
    assert len(cache) == 0


def test_random_names_do_not_grow_the_caches_for_ever(world: World) -> None:
    rng = random.Random(3)
    for _ in range(30_000):
        query = b"\0\0\1\0\0\1\0\0\0\0\0\0\x08" + rng.randbytes(4).hex().encode() + b"\x07service\x04mesh\0\0\1\0\1"
        world.responder.answer(query)
    assert 1000 < world.responder.cached < 10_000
