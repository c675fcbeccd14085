"""How a node finds out whether another one lives."""

import pytest

from mesh_agent.errors import RemoteProtocolError
from mesh_agent.gossip import GossipConfig, layers, wire
from mesh_agent.gossip.effects import Exchange, Noticed, SendPacket
from mesh_agent.gossip.node import State
from tests.unit.gossip.machines import PEER, SELF, Bench, alive, unpacked


def first_ping(bench: Bench) -> tuple[tuple[str, int], wire.Ping]:
    bench.pass_time(1.0)
    ((to, ping),) = bench.sent(wire.Ping)
    bench.take()
    return to, ping


def test_a_probe_names_its_target_and_where_to_answer() -> None:
    bench = Bench(peers=1)
    to, ping = first_ping(bench)
    assert to == ("10.0.1.1", 7946)
    assert (ping.node, ping.source_address, ping.source_port, ping.source_node) == ("p0", *SELF, "self")


def test_an_ack_ends_the_probe_improves_our_health_and_tells_the_round_trip() -> None:
    bench = Bench(peers=1)
    bench.swim.awareness.apply(3)
    _, ping = first_ping(bench)
    began = bench.swim.deadline()
    assert began is not None
    bench.hear(wire.Ack(ping.seq, b"where"))
    assert bench.swim.awareness.score == 2
    ((name, rtt_s),) = bench.ear.pings
    assert name == "p0"
    assert 0 < rtt_s < 1
    bench.pass_time(0.6)
    assert not [e for e in bench.take() if isinstance(e, Exchange)], "nothing is left to be asked"


def test_without_an_ack_others_are_asked_and_tcp_is_tried() -> None:
    bench = Bench(peers=6)
    to, ping = first_ping(bench)
    bench.pass_time(0.5)
    asked = bench.sent(wire.IndirectPing)
    assert len(asked) == 3
    assert len({where for where, _ in asked} | {to}) == 4, "three others, not the target"
    for _, ask in asked:
        assert (ask.seq, ask.node, ask.address, ask.nack) == (ping.seq, ping.node, to[0], True)
    (exchange,) = [e for e in bench.take() if isinstance(e, Exchange)]
    assert exchange.to == to
    assert layers.Codec(None, lambda n: b"", compression=False).decode_stream(exchange.request) == ping


def test_old_peers_are_not_asked_for_nacks_and_not_pinged_over_tcp() -> None:
    bench = Bench()
    for number in range(4):
        bench.hear(alive(f"p{number}", address=f"10.0.1.{number + 1}", versions=(1, 2, 2, 2, 5, 4)))
    bench.take()
    first_ping(bench)
    bench.pass_time(0.5)
    assert {ask.nack for _, ask in bench.sent(wire.IndirectPing)} == {False}
    assert not [e for e in bench.take() if isinstance(e, Exchange)]


@pytest.mark.parametrize(("nacks", "score"), [(0, 3), (1, 2), (3, 0), (5, 0)])
def test_a_failed_probe_costs_health_by_the_nacks_that_are_missing(nacks: int, score: int) -> None:
    bench = Bench(peers=6)
    to, ping = first_ping(bench)
    bench.pass_time(0.5)
    for _ in range(nacks):
        bench.hear(wire.Nack(ping.seq))
    bench.pass_time(0.5)
    assert bench.swim.awareness.score == score
    suspect = next(node for node in bench.swim.nodes.values() if node.at == to)
    assert suspect.state is State.SUSPECT


def test_a_failed_probe_without_helpers_costs_one() -> None:
    bench = Bench(peers=1)
    first_ping(bench)
    bench.pass_time(1.0)
    assert bench.swim.awareness.score == 1
    assert bench.state("p0") == (State.SUSPECT, 1)


def test_an_ack_through_a_helper_saves_the_target_but_tells_no_round_trip() -> None:
    bench = Bench(peers=6)
    to, ping = first_ping(bench)
    bench.pass_time(0.6)
    bench.hear(wire.Ack(ping.seq))
    bench.pass_time(1.0)
    assert next(node for node in bench.swim.nodes.values() if node.at == to).state is State.ALIVE
    assert bench.ear.pings == []


def test_an_answer_over_tcp_saves_the_target_and_is_noticed() -> None:
    bench = Bench(peers=1)
    _, ping = first_ping(bench)
    bench.pass_time(0.5)
    (exchange,) = [e for e in bench.take() if isinstance(e, Exchange)]
    bench.swim.reply(exchange.token, wire.Ack(ping.seq), bench.now)
    bench.pass_time(1.0)
    assert bench.state("p0")[0] is State.ALIVE
    assert bench.swim.awareness.score == 0
    assert any("over TCP but not over UDP" in e.text for e in bench.take() if isinstance(e, Noticed))


@pytest.mark.parametrize("answer", [None, wire.Ack(999), wire.Error("no"), wire.User(b"?")])
def test_any_other_answer_over_tcp_does_not_save_it(answer: wire.StreamMessage | None) -> None:
    bench = Bench(peers=1)
    first_ping(bench)
    bench.pass_time(0.5)
    (exchange,) = [e for e in bench.take() if isinstance(e, Exchange)]
    bench.swim.reply(exchange.token, answer, bench.now)
    bench.pass_time(1.0)
    assert bench.state("p0")[0] is State.SUSPECT


def test_a_node_in_bad_health_waits_longer_before_it_accuses() -> None:
    bench = Bench(peers=1)
    bench.swim.awareness.apply(2)
    first_ping(bench)
    bench.pass_time(1.9)
    assert bench.state("p0")[0] is State.ALIVE
    bench.pass_time(1.1)
    assert bench.state("p0")[0] is State.SUSPECT


def test_a_suspect_is_told_of_its_suspicion_with_the_ping() -> None:
    bench = Bench(peers=1)
    bench.hear(wire.Suspect(1, "p0", "x"))
    bench.pass_time(1.0)
    packets = [e for e in bench.take() if isinstance(e, SendPacket) and isinstance(unpacked(e)[0], wire.Ping)]
    assert [type(m) for m in unpacked(packets[0])] == [wire.Ping, wire.Suspect]
    assert packets[0].crc


def test_failing_probes_follow_each_other_without_a_pause() -> None:
    bench = Bench(GossipConfig(awareness_max=1), peers=8)
    bench.pass_time(6.0)
    assert 5 <= len(bench.sent(wire.Ping)) <= 7, "one per interval, answered or not"


def test_every_node_is_probed_once_a_round() -> None:
    bench = Bench(peers=7)
    probed: list[str] = []
    for _ in range(21):
        bench.pass_time(1.0)
        for _, ping in bench.sent(wire.Ping):
            probed.append(ping.node)
            bench.hear(wire.Ack(ping.seq))
        bench.take()
    assert len(probed) >= 20
    assert set(probed[:7]) == {f"p{number}" for number in range(7)}
    assert {probed.count(f"p{number}") for number in range(7)} <= {2, 3, 4}


def test_the_dead_and_those_who_left_are_not_probed() -> None:
    bench = Bench(peers=2)
    bench.hear(wire.Dead(1, "p0", "x"))
    bench.hear(wire.Dead(1, "p1", "p1"))
    bench.pass_time(5.0)
    assert not bench.sent(wire.Ping)


# being asked


def test_a_ping_is_answered_where_it_wants_the_answer() -> None:
    bench = Bench()
    bench.hear(wire.Ping(7, "self", "10.0.0.9", 1234, "other"))
    bench.hear(wire.Ping(8, "self"))
    assert bench.sent(wire.Ack) == [(("10.0.0.9", 1234), wire.Ack(7, b"here")), (PEER, wire.Ack(8, b"here"))]


def test_a_ping_for_somebody_else_is_dropped_silently() -> None:
    bench = Bench()
    bench.hear(wire.Ping(7, "other"))
    assert bench.take() == []
    assert bench.swim.answer(wire.Ping(7, "other")) is None
    assert bench.swim.answer(wire.Ping(7, "self")) == wire.encode(wire.Ack(7))


def test_a_ping_on_behalf_of_another_has_its_own_number_and_the_ack_the_asker_s() -> None:
    bench = Bench()
    bench.hear(wire.IndirectPing(77, "p", "10.0.0.5", 7946, True))
    ((to, ping),) = bench.sent(wire.Ping)
    assert to == ("10.0.0.5", 7946)
    assert ping.node == "p"
    bench.take()
    bench.hear(wire.Ack(ping.seq, b"coordinate"), ("10.0.0.5", 7946))
    assert bench.sent(wire.Ack) == [(PEER, wire.Ack(77))], "a relayed ack has no payload"
    bench.take()
    bench.pass_time(1.0)
    assert not bench.sent(wire.Nack)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_nack_says_that_we_got_no_answer_either(wanted: bool) -> None:
    bench = Bench()
    bench.hear(wire.IndirectPing(77, "p", "10.0.0.5", 7946, wanted, "10.0.0.8", 7001, "asker"))
    bench.take()
    bench.pass_time(0.49)
    assert not bench.sent(wire.Nack)
    bench.pass_time(0.02)
    assert bench.sent(wire.Nack) == ([(("10.0.0.8", 7001), wire.Nack(77))] if wanted else [])


def test_a_request_to_ping_nowhere_is_junk() -> None:
    with pytest.raises(RemoteProtocolError):
        Bench().hear(wire.IndirectPing(77, "p", "", 0, True))
