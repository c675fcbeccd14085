"""What is sent beside what: gossip to whom, how often, and how large a packet may be."""

from mesh_agent.gossip import layers, wire
from mesh_agent.gossip.effects import SendPacket
from tests.unit.gossip.machines import Bench, alive, unpacked


def test_nothing_is_sent_when_there_is_nothing_to_say() -> None:
    bench = Bench(peers=2)
    bench.pass_time(20.0)
    bench.take()
    bench.pass_time(0.0)
    quiet = [e for e in bench.take() if isinstance(e, SendPacket)]
    assert quiet == []


def test_the_dead_are_told_for_a_while_so_that_they_can_object() -> None:
    bench = Bench(peers=1)
    bench.hear(wire.Dead(1, "p0", "x"))
    bench.pass_time(1.0)
    assert any(m.node == "p0" for _, m in bench.sent(wire.Dead))
    bench.pass_time(40.0)
    bench.take()
    bench.ear.queue = [b"news"]
    bench.pass_time(2.0)
    assert not bench.sent(wire.User), "after gossip_to_dead_s the dead are left in peace"


def test_a_packet_of_gossip_never_exceeds_its_size() -> None:
    bench = Bench(peers=60)
    for number in range(60):
        bench.hear(alive(f"p{number}", 2, address=f"10.0.1.{number + 1}", meta=b"m" * 400))
    bench.pass_time(5.0)
    packets = [e for e in bench.take() if isinstance(e, SendPacket)]
    assert packets
    for packet in packets:
        datagram = layers.with_crc(layers.compound(list(packet.parts)))
        assert len(datagram) <= 1400
        assert unpacked(packet)
