"""What is answered to whom: the Responder through its wire, read back by dnspython."""

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import pytest

from mesh_agent.dns import NeedTopic, Recurse, wire
from mesh_agent.model import Node, Proxy, Service, Status, Topic
from tests.unit.dns.conftest import World, node, rcode, rows, values


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("api.service.mesh", ["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
        ("api.service.consul", ["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
        ("api.service.dc1.mesh", ["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
        ("api.service.dc2.mesh", ["10.2.0.1"]),
        ("api.service.dc2.dc.mesh", ["10.2.0.1"]),
        ("api.service.DC2.mesh", ["10.2.0.1"]),
        ("blue.api.service.mesh", ["10.0.0.1"]),
        ("_api._tcp.service.mesh", ["10.0.0.1", "10.0.0.2", "10.0.0.3"]),
        ("_api._blue.service.mesh", ["10.0.0.1"]),
        ("own.service.mesh", ["192.0.2.7"]),
        ("n2.node.mesh", ["10.0.0.2"]),
        ("N2.node.dc1.mesh", ["10.0.0.2"]),
        ("m1.node.dc2.mesh", ["10.2.0.1"]),
        ("c0000207.addr.dc1.mesh", ["192.0.2.7"]),
        ("ns.mesh", ["10.0.0.9"]),
    ],
)
def test_addresses(world: World, name: str, addresses: list[str]) -> None:
    answer = world.ask(name)
    assert rcode(answer) == "NOERROR"
    assert sorted(values(answer)) == addresses
    assert answer.flags & dns.flags.AA
    assert not answer.authority


@pytest.mark.parametrize(
    ("name", "qtype"),
    [
        ("nothing.service.mesh", "A"),
        ("nothing.service.mesh", "SRV"),
        ("down.service.mesh", "A"),
        ("green.api.service.mesh", "A"),
        ("api.connect.mesh", "A"),
        ("nobody.node.mesh", "A"),
        ("nonsense.mesh", "A"),
        ("api.service.dc2.extra.mesh", "A"),
        ("stored.query.mesh", "A"),
        ("zz.addr.mesh", "A"),
    ],
)
def test_what_does_not_exist_is_nxdomain_with_the_soa(world: World, name: str, qtype: str) -> None:
    answer = world.ask(name, qtype)
    assert rcode(answer) == "NXDOMAIN"
    assert not answer.answer
    assert values(answer, "authority") == ["ns.mesh. hostmaster.mesh. 1 3600 600 86400 0"]
    assert answer.authority[0].name.to_text() == "mesh."


@pytest.mark.parametrize(
    ("name", "qtype"),
    [
        ("api.service.mesh", "AAAA"),
        ("api.service.mesh", "TXT"),
        ("api.service.mesh", "CNAME"),
        ("api.service.mesh", "SOA"),
        ("six.service.mesh", "A"),
        ("n1.node.mesh", "SRV"),
        ("n1.node.mesh", "AAAA"),
        ("0a000001.addr.mesh", "AAAA"),
        ("mesh", "A"),
        ("service.mesh", "A"),
        ("dc2.mesh", "A"),
        ("_tcp.service.mesh", "A"),
        ("ns.mesh", "AAAA"),
    ],
)
def test_what_exists_without_the_type_is_nodata_with_the_soa(world: World, name: str, qtype: str) -> None:
    answer = world.ask(name, qtype)
    assert rcode(answer) == "NOERROR"
    assert not answer.answer
    assert [rrset.name.to_text() for rrset in answer.authority] == ["mesh."]


def test_the_soa_carries_the_zone_that_was_asked_for(world: World) -> None:
    answer = world.ask("nothing.service.CONSUL")
    assert answer.authority[0].to_text() == "CONSUL. 0 IN SOA ns.CONSUL. hostmaster.CONSUL. 1 3600 600 86400 0"


def test_case_of_the_question_is_kept_in_question_and_owners(world: World) -> None:
    answer = world.ask("aPi.SERVICE.mEsh")
    assert answer.question[0].name.to_text() == "aPi.SERVICE.mEsh."
    assert answer.answer[0].name.to_text() == "aPi.SERVICE.mEsh."


def test_srv_leads_to_nodes_with_address_and_meta(world: World) -> None:
    answer = world.ask("api.service.mesh", "SRV", use_edns=0)
    assert sorted(values(answer)) == [
        "1 10 8080 n1.node.dc1.mesh.",
        "1 10 8080 n2.node.dc1.mesh.",
        "1 3 8080 n3.node.dc1.mesh.",  # warning has its own weight
    ]
    assert rows(answer, "additional")[:2] == [
        "n1.node.dc1.mesh. 0 n1.node.dc1.mesh. 0 IN A 10.0.0.1",
        'n1.node.dc1.mesh. 0 n1.node.dc1.mesh. 0 IN TXT "rack=r1"',
    ]
    assert len(answer.additional) == 6


@pytest.mark.parametrize(
    ("name", "target", "additional"),
    [
        ("own.service.mesh", "1 1 7 c0000207.addr.dc1.mesh.", ["192.0.2.7", '"rack=r1"']),
        ("own.service.dc1.consul", "1 1 7 c0000207.addr.dc1.consul.", ["192.0.2.7", '"rack=r1"']),
        ("six.service.mesh", "1 1 6 20010db8000000000000000000000006.addr.dc1.mesh.", ["2001:db8::6", '"rack=r1"']),
        ("ext.service.mesh", "1 1 443 www.example.com.", ['"rack=r1"']),
        ("api.service.dc2.mesh", "1 1 9090 m1.node.dc2.mesh.", ["10.2.0.1"]),
    ],
)
def test_srv_targets(world: World, name: str, target: str, additional: list[str]) -> None:
    answer = world.ask(name, "SRV")
    assert values(answer) == [target]
    assert values(answer, "additional") == additional


def test_srv_targets_are_not_compressed_and_their_addresses_point_to_them(world: World) -> None:
    data = world.responder.answer(dns.message.make_query("api.service.dc2.mesh", "SRV").to_wire())
    assert isinstance(data, bytes)
    target = b"\2m1\4node\3dc2\4mesh\0"
    assert data.count(target) == 1
    assert data[data.index(target) + len(target) :][:4] == wire.pointer(data.index(target)) + b"\0\1"


def test_the_names_in_srv_answers_resolve(world: World) -> None:
    for name in ("api.service.mesh", "own.service.dc1.mesh", "api.service.dc2.dc.mesh"):
        answer = world.ask(name, "SRV", use_edns=0)
        for rrset in answer.additional:
            again = world.ask(rrset.name.to_text(), dns.rdatatype.to_text(rrset.rdtype))
            assert values(again) == [item.to_text() for item in rrset]


def test_a_node_whose_name_is_no_label_is_reached_by_address(world: World) -> None:
    odd = node("x" * 70, "10.0.0.77")
    world.dc1.instance(Service(id="odd", name="odd", node=odd.name, port=1), odd)
    assert values(world.ask("odd.service.mesh", "SRV")) == ["1 1 1 0a00004d.addr.dc1.mesh."]


def test_two_instances_at_one_address_are_one_address_and_two_services(world: World) -> None:
    n1 = node("n1", "10.0.0.1")
    for port in (1, 2):
        world.dc1.instance(Service(id=f"twin{port}", name="twin", node="n1", port=port), n1)
    assert values(world.ask("twin.service.mesh")) == ["10.0.0.1"]
    answer = world.ask("twin.service.mesh", "SRV")
    assert sorted(values(answer)) == ["1 1 1 n1.node.dc1.mesh.", "1 1 2 n1.node.dc1.mesh."]
    assert values(answer, "additional") == ["10.0.0.1"]


def test_a_host_name_becomes_a_cname_unless_there_are_addresses(world: World) -> None:
    for qtype in ("A", "AAAA", "CNAME", "ANY"):
        assert values(world.ask("ext.service.mesh", qtype)) == ["www.example.com."]
    n2 = node("n2", "10.0.0.2")
    world.dc1.instance(Service(id="ext", name="ext", node="n2", port=443, address="198.51.100.1"), n2)
    assert values(world.ask("ext.service.mesh")) == ["198.51.100.1"]
    assert values(world.ask("ext.service.mesh", "CNAME")) == []


def test_only_one_cname_at_a_time(world: World) -> None:
    n2 = node("n2", "10.0.0.2")
    world.dc1.instance(Service(id="ext", name="ext", node="n2", address="www2.example.com"), n2)
    seen = {tuple(values(world.ask("ext.service.mesh"))) for _ in range(40)}
    assert seen == {("www.example.com.",), ("www2.example.com.",)}
    assert not world.ask("ext.service.mesh").flags & dns.flags.TC


def test_any_and_txt_on_a_node(world: World) -> None:
    assert values(world.ask("n1.node.mesh", "TXT")) == ['"rack=r1"']
    assert rows(world.ask("n1.node.mesh"), "additional") == ['n1.node.mesh. 0 n1.node.mesh. 0 IN TXT "rack=r1"']
    assert values(world.ask("n1.node.mesh", "ANY")) == ["10.0.0.1", '"rack=r1"']
    world.dc1.put(Node(name="n1", address="10.0.0.1", meta={"rfc1035-spf": "v=spf1 -all", "a": "b"}))
    assert values(world.ask("n1.node.mesh", "TXT")) == ['"a=b"', '"v=spf1 -all"']


def test_any_on_a_service_gives_both_families(world: World) -> None:
    world.dc1.instance(Service(id="six4", name="six", node="n2", port=6), node("n2", "10.0.0.2"))
    assert sorted(values(world.ask("six.service.mesh", "ANY"))) == ["10.0.0.2", "2001:db8::6"]
    assert values(world.ask("six.service.mesh", "AAAA")) == ["2001:db8::6"]


def test_apex(world: World) -> None:
    assert values(world.ask("mesh", "SOA")) == ["ns.mesh. hostmaster.mesh. 1 3600 600 86400 0"]
    answer = world.ask("consul", "NS")
    assert values(answer) == ["s1.node.dc1.consul."]
    assert values(answer, "additional") == ["10.0.0.9"]
    assert len(values(world.ask("mesh", "ANY"))) == 2


def test_the_mesh_endpoints_of_a_service(world: World) -> None:
    proxy = Service(
        id="api-sidecar-proxy",
        name="api-sidecar-proxy",
        node="n2",
        port=21000,
        kind="connect-proxy",
        proxy=Proxy(destination_service="api"),
    )
    world.dc1.instance(proxy, node("n2", "10.0.0.2"))
    assert values(world.ask("api.connect.mesh")) == ["10.0.0.2"]
    assert values(world.ask("api.connect.dc1.mesh", "SRV")) == ["1 1 21000 n2.node.dc1.mesh."]


def test_reverse_names(world: World) -> None:
    assert values(world.ask("1.0.0.10.in-addr.arpa", "PTR")) == ["n1.node.dc1.mesh."]
    assert values(world.ask("7.2.0.192.in-addr.arpa", "PTR")) == ["own.service.dc1.mesh."]
    assert values(world.ask(f"6.{'0.' * 23}8.b.d.0.1.0.0.2.ip6.arpa", "PTR")) == ["six.service.dc1.mesh."]
    assert rcode(world.ask("1.0.0.10.in-addr.arpa", "A")) == "NOERROR"
    assert rcode(world.ask("9.9.9.9.in-addr.arpa", "PTR")) == "REFUSED"
    world.dc1.put(node("n1", "10.0.0.100"))
    assert rcode(world.ask("1.0.0.10.in-addr.arpa", "PTR")) == "REFUSED"
    assert values(world.ask("100.0.0.10.in-addr.arpa", "PTR")) == ["n1.node.dc1.mesh."]


def test_reverse_names_on_a_client_agent_are_the_recursors_business(world: World) -> None:
    query = dns.message.make_query("1.0.0.10.in-addr.arpa", "PTR").to_wire()
    assert world.make(server=False, recursors=("192.0.2.1",)).answer(query) == Recurse()


def test_warning_counts_unless_only_passing(world: World) -> None:
    world.responder = world.make(only_passing=True)
    assert sorted(values(world.ask("api.service.mesh"))) == ["10.0.0.1", "10.0.0.2"]


def test_ttls(world: World) -> None:
    world.responder = world.make(node_ttl_s=30, service_ttl_s=5, soa_min_ttl_s=9)
    answer = world.ask("api.service.mesh", "SRV", use_edns=0)
    assert {rrset.ttl for rrset in answer.answer} == {5}
    assert {rrset.ttl for rrset in answer.additional} == {30}
    assert world.ask("n1.node.mesh").answer[0].ttl == 30
    negative = world.ask("nothing.service.mesh").authority[0]
    assert negative.ttl == 9
    assert negative[0].minimum == 9


def test_foreign_names_are_refused_or_recursed(world: World) -> None:
    answer = world.ask("www.example.com", use_edns=0)
    assert rcode(answer) == "REFUSED"
    assert not answer.flags & (dns.flags.RA | dns.flags.AA)
    assert isinstance(answer.options[0], dns.edns.EDEOption)
    assert "recursors" in (answer.options[0].text or "")
    world.responder = world.make(recursors=("192.0.2.1",))
    assert world.responder.answer(dns.message.make_query("www.example.com", "A").to_wire()) == Recurse()
    assert world.ask("api.service.mesh").flags & dns.flags.RA


def test_rd_and_cd_are_copied_and_nothing_else(world: World) -> None:
    query = dns.message.make_query("api.service.mesh", "A", flags=dns.flags.CD | dns.flags.AD | dns.flags.TC)
    answer = world.send(query)
    assert answer.flags == dns.flags.QR | dns.flags.AA | dns.flags.CD


def test_edns_is_echoed_only_to_those_who_speak_it(world: World) -> None:
    assert world.ask("api.service.mesh").edns == -1
    answer = world.ask("api.service.mesh", use_edns=0, want_dnssec=True)
    assert answer.edns == 0
    assert answer.ednsflags & dns.flags.DO
    subnet = world.ask("api.service.mesh", use_edns=0, options=[dns.edns.ECSOption("192.0.2.0", 24)]).options
    assert [option.to_text() for option in subnet] == ["ECS 192.0.2.0/24 scope/0"]
    cookie = world.ask("api.service.mesh", use_edns=0, options=[dns.edns.GenericOption(10, b"12345678")])
    assert cookie.options == ()


def test_an_unknown_edns_version_is_badvers(world: World) -> None:
    answer = world.ask("api.service.mesh", use_edns=1)
    assert rcode(answer) == "BADVERS"
    assert not answer.answer


def test_classes_and_transfers_and_opcodes(world: World) -> None:
    assert rcode(world.ask("version.bind", "TXT", rdclass="CH")) == "REFUSED"
    assert rcode(world.ask("api.service.mesh", "A", rdclass="ANY")) == "NOERROR"
    assert rcode(world.ask("mesh", "AXFR", tcp=True)) == "NOTIMP"
    assert rcode(world.ask("mesh", "IXFR")) == "NOTIMP"
    for opcode in (dns.opcode.NOTIFY, dns.opcode.UPDATE, dns.opcode.STATUS):
        query = dns.message.make_query("mesh", "SOA")
        query.set_opcode(opcode)
        data = world.responder.answer(query.to_wire())
        assert isinstance(data, bytes)
        answer = dns.message.from_wire(data)
        assert (rcode(answer), answer.opcode()) == ("NOTIMP", opcode)


def test_malformed_queries_get_formerr_and_answers_nothing(world: World) -> None:
    query = dns.message.make_query("api.service.mesh", "A").to_wire()
    broken = world.responder.answer(query + b"x")
    assert isinstance(broken, bytes)
    assert broken[:2] == query[:2]
    assert rcode(dns.message.from_wire(broken)) == "FORMERR"
    assert world.responder.answer(query[:11]) is None
    assert world.responder.answer(b"") is None
    good = world.responder.answer(query)
    assert isinstance(good, bytes)
    assert world.responder.answer(good) is None


def test_another_datacenter_is_waited_for_and_an_unreachable_one_is_an_honest_error(world: World) -> None:
    query = dns.message.make_query("api.service.dc2.mesh", "A", use_edns=0).to_wire()
    assert isinstance(world.responder.answer(query), bytes)
    world.catalog.cut["dc2"] = "No path to datacenter 'dc2'"
    topic = Topic("dc2", "service", "api")
    assert world.responder.answer(query) == NeedTopic(topic)
    answer = dns.message.from_wire(world.responder.unreachable(query, topic, world.catalog.cut["dc2"]))
    assert rcode(answer) == "SERVFAIL"
    assert [option.to_text() for option in answer.options] == [
        "EDE 22 (No Reachable Authority): No path to datacenter 'dc2'"
    ]
    del world.catalog.cut["dc2"]
    assert isinstance(world.responder.answer(query), bytes)


def test_a_datacenter_that_is_unknown_to_a_server_is_nxdomain_and_to_a_client_servfail(world: World) -> None:
    query = dns.message.make_query("api.service.dc9.mesh", "A").to_wire()
    topic = Topic("dc9", "service", "api")
    assert world.responder.answer(query) == NeedTopic(topic)
    answer = dns.message.from_wire(world.responder.unreachable(query, topic, "no path"))
    assert (rcode(answer), len(answer.authority)) == ("NXDOMAIN", 1)
    client = world.make(server=False)
    assert rcode(dns.message.from_wire(client.unreachable(query, topic, "no path"))) == "SERVFAIL"


def test_answers_are_counted(world: World) -> None:
    for _ in range(3):
        world.ask("api.service.mesh")
    world.ask("nothing.service.mesh", "SRV")
    counts = {(labels["type"], labels["rcode"]): value for _, labels, value in world.responder.counts()}
    assert counts == {("A", "NOERROR"): 3, ("SRV", "NXDOMAIN"): 1}


def test_changes_show_at_once(world: World) -> None:
    assert len(values(world.ask("api.service.mesh"))) == 3
    service = Service(id="api", name="api", node="n1", port=8080)
    world.dc1.instance(service, node("n1", "10.0.0.1"), Status.CRITICAL)
    for case in ("api", "Api"):  # the hot road and the warm one
        assert sorted(values(world.ask(f"{case}.service.mesh"))) == ["10.0.0.2", "10.0.0.3"]
    world.dc1.instance(service, node("n1", "10.0.0.11"))
    assert sorted(values(world.ask("api.service.mesh"))) == ["10.0.0.11", "10.0.0.2", "10.0.0.3"]
    world.dc1.delete(service)
    assert sorted(values(world.ask("api.service.mesh"))) == ["10.0.0.2", "10.0.0.3"]


def test_another_view_of_the_same_index_is_not_mistaken_for_the_old_one(world: World) -> None:
    assert len(values(world.ask("api.service.dc2.mesh"))) == 1
    other = World()
    while other.dc2.revision < world.dc2.revision - 1:
        other.dc2.put(node("filler", "10.9.9.9"))
    other.dc2.instance(Service(id="api", name="api", node="m2"), node("m2", "10.2.0.2"))
    assert other.dc2.view.index == world.dc2.view.index
    world.catalog.views["dc2"] = other.dc2.view
    assert values(world.ask("api.service.dc2.mesh")) == ["10.2.0.2"]


def test_the_header_is_plain_in_errors(world: World) -> None:
    data = world.responder.failed(dns.message.make_query("a.b", "A", use_edns=0).to_wire(), "x" * 999)
    assert len(data) < wire.UDP_BYTES
    assert rcode(dns.message.from_wire(data)) == "SERVFAIL"
