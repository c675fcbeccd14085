"""The codec against RFC layouts and dnspython: strict on the way in, standard on the way out."""

import dns.edns
import dns.message
import dns.name
import dns.rdata
import pytest

from mesh_agent.dns import wire

QUERY = dns.message.make_query("Api.service.MESH", "SRV", use_edns=-1).to_wire()


def with_counts(*counts: int) -> bytes:
    return QUERY[:4] + b"".join(count.to_bytes(2, "big") for count in counts) + QUERY[12:]


def test_a_query_is_parsed_with_its_case_kept_in_the_question_and_folded_in_the_labels() -> None:
    parsed = wire.parse_query(QUERY)
    assert parsed.labels == (b"api", b"service", b"mesh")
    assert parsed.question == QUERY[12:]
    assert (parsed.qtype, parsed.qclass, parsed.edns) == (wire.SRV, wire.IN, None)


def test_edns_is_parsed() -> None:
    options = [dns.edns.ECSOption("192.0.2.0", 24), dns.edns.GenericOption(10, b"cookie!!")]
    query = dns.message.make_query("a.mesh", "A", use_edns=0, payload=1400, want_dnssec=True, options=options)
    edns = wire.parse_query(query.to_wire()).edns
    assert edns is not None
    assert (edns.size, edns.version, edns.dnssec_ok) == (1400, 0, True)
    assert edns.options == ((8, bytes.fromhex("00011800c00002")), (10, b"cookie!!"))


def test_other_additional_records_are_skipped() -> None:
    tsig = b"\x03key\0" + bytes.fromhex("00fa00ff00000000") + b"\0\3abc"
    opt = bytes.fromhex("000029100000000000") + b"\0\0"
    parsed = wire.parse_query(with_counts(1, 0, 0, 2) + opt + tsig)
    assert parsed.edns is not None
    assert parsed.edns.size == 4096


OPT = bytes.fromhex("0000290200000000000000")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(QUERY[:12], id="no question"),
        pytest.param(QUERY[:20], id="name cut off"),
        pytest.param(QUERY[:-1], id="question cut off"),
        pytest.param(QUERY + b"\0", id="trailing byte"),
        pytest.param(with_counts(0, 0, 0, 0), id="no questions"),
        pytest.param(with_counts(2, 0, 0, 0) + QUERY[12:], id="two questions"),
        pytest.param(with_counts(1, 1, 0, 0), id="an answer"),
        pytest.param(with_counts(1, 0, 1, 0), id="an authority"),
        pytest.param(with_counts(1, 0, 0, 1), id="OPT missing"),
        pytest.param(with_counts(1, 0, 0, 2) + OPT + OPT, id="two OPT"),
        pytest.param(with_counts(1, 0, 0, 1) + b"\1a" + OPT, id="OPT below the root"),
        pytest.param(with_counts(1, 0, 0, 1) + OPT[:-1] + b"\5", id="OPT cut off"),
        pytest.param(with_counts(1, 0, 0, 1) + OPT[:-1] + b"\2\0\0", id="option cut off"),
        pytest.param(with_counts(1, 0, 0, 1) + OPT[:-1] + b"\4\0\x08\0\x09", id="option longer than OPT"),
        pytest.param(QUERY[:12] + b"\xc0\x0c\0\1\0\1", id="pointer to itself"),
        pytest.param(QUERY[:12] + b"\x40" + b"a" * 64 + b"\0\0\1\0\1", id="label type 01"),
        pytest.param(QUERY[:12] + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1", id="name of 257 bytes"),
        pytest.param(with_counts(1, 0, 0, 1) + b"\x05abc", id="owner cut off"),
    ],
)
def test_malformed_queries_are_told_apart(data: bytes) -> None:
    with pytest.raises(wire.Malformed):
        wire.parse_query(data)


def test_the_longest_name_is_accepted() -> None:
    name = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"b" * 61 + b"\0"
    assert len(name) == 255
    assert len(wire.parse_query(QUERY[:12] + name + b"\0\1\0\1").labels) == 4


def test_names_are_encoded_as_dnspython_does() -> None:
    for text in ("mesh", "a.b.c.", "www.example.com"):
        assert wire.encode_name(text) == dns.name.from_text(text).to_wire()
    assert wire.encode_name("") == b"\0"


@pytest.mark.parametrize("name", ["a..b", ".a", "x" * 64, ".".join(["x" * 60] * 5)])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"label|domain name"):
        wire.encode_name(name)


@pytest.mark.parametrize(
    ("rtype", "rdata", "text"),
    [
        ("SRV", wire.srv_rdata(1, 10, 8080, wire.encode_name("n1.mesh")), "1 10 8080 n1.mesh."),
        ("TXT", wire.txt_rdata("k=v"), '"k=v"'),
        ("TXT", wire.txt_rdata(""), '""'),
        ("TXT", wire.txt_rdata("x" * 300), f'"{"x" * 255}" "{"x" * 45}"'),
        (
            "SOA",
            wire.soa_rdata(wire.encode_name("ns.mesh"), wire.encode_name("hostmaster.mesh"), 1, 5),
            "ns.mesh. hostmaster.mesh. 1 3600 600 86400 5",
        ),
    ],
)
def test_rdata_is_what_the_rfcs_say(rtype: str, rdata: bytes, text: str) -> None:
    assert dns.rdata.from_wire("IN", rtype, rdata, 0, len(rdata)).to_text() == text


@pytest.mark.parametrize(
    "value", [b"", b"\0\1\x18", b"\0\3\0\0", b"\0\1\x21\0" + bytes(5), b"\0\1\x18\0\1\2", b"\0\1\x18\0\1\2\3\4"]
)
def test_malformed_client_subnets_are_refused(value: bytes) -> None:
    with pytest.raises(wire.Malformed):
        wire.echo_client_subnet(value)


def test_a_client_subnet_comes_back_with_scope_0() -> None:
    assert wire.echo_client_subnet(bytes.fromhex("00011808c00002")) == bytes.fromhex("00011800c00002")
