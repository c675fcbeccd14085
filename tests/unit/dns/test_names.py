"""Consul's name grammar."""

import ipaddress

import pytest

from mesh_agent.dns.names import Asked, Kind, NameParser, hex_label, parse_address, reverse_address

PARSER = NameParser(("mesh", "corp.consul"), "dc1", {"dc1", "dc2"}.__contains__)


def parse(name: str) -> Asked:
    return PARSER.parse(tuple(label.encode() for label in name.split(".") if label))


@pytest.mark.parametrize(
    ("name", "kind", "service", "tag", "datacenter"),
    [
        ("api.service.mesh", Kind.SERVICE, "api", "", "dc1"),
        ("api.service.dc2.mesh", Kind.SERVICE, "api", "", "dc2"),
        ("api.service.dc2.dc.mesh", Kind.SERVICE, "api", "", "dc2"),
        ("api.service.nowhere.mesh", Kind.SERVICE, "api", "", "nowhere"),
        ("api.service.dc2.corp.consul", Kind.SERVICE, "api", "", "dc2"),
        ("v1.api.service.mesh", Kind.SERVICE, "api", "v1", "dc1"),
        ("a.dotted.tag.api.service.dc2.mesh", Kind.SERVICE, "api", "a.dotted.tag", "dc2"),
        ("_api._tcp.service.mesh", Kind.SERVICE, "api", "", "dc1"),
        ("_api._amqp.service.dc2.dc.mesh", Kind.SERVICE, "api", "amqp", "dc2"),
        ("_api._udp.service.mesh", Kind.SERVICE, "api", "udp", "dc1"),
        ("_api._tcp.mesh", Kind.SERVICE, "api", "", "dc1"),
        ("_api._amqp.dc2.mesh", Kind.SERVICE, "api", "amqp", "dc2"),
        ("_api._tcp.dc2.dc.mesh", Kind.SERVICE, "api", "", "dc2"),
        ("service.service.mesh", Kind.SERVICE, "service", "", "dc1"),
        ("node.service.mesh", Kind.SERVICE, "node", "", "dc1"),
        ("api.service.dc.mesh", Kind.SERVICE, "api", "", "dc"),
        ("api.connect.mesh", Kind.CONNECT, "api", "", "dc1"),
        ("api.connect.dc2.dc.mesh", Kind.CONNECT, "api", "", "dc2"),
        ("n1.node.mesh", Kind.NODE, "n1", "", "dc1"),
        ("n1.example.com.node.dc2.mesh", Kind.NODE, "n1.example.com", "", "dc2"),
        ("ns.mesh", Kind.SERVICE, "consul", "", "dc1"),
        ("mesh", Kind.APEX, "", "", "dc1"),
    ],
)
def test_names_that_are_looked_up(name: str, kind: Kind, service: str, tag: str, datacenter: str) -> None:
    asked = parse(name)
    assert (asked.kind, asked.name, asked.tag, asked.datacenter) == (kind, service, tag, datacenter)
    assert asked.zone_labels == (2 if name.endswith("consul") else 1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("service.mesh", Kind.EMPTY),
        ("node.mesh", Kind.EMPTY),
        ("addr.dc2.mesh", Kind.EMPTY),
        ("service.dc2.dc.mesh", Kind.EMPTY),
        ("dc2.mesh", Kind.EMPTY),
        ("dc2.dc.mesh", Kind.EMPTY),
        ("dc.mesh", Kind.EMPTY),
        ("_tcp.mesh", Kind.EMPTY),
        ("service.nowhere.mesh", Kind.NOTHING),
        ("nowhere.mesh", Kind.NOTHING),
        ("_api._tcp.dc2.extra.mesh", Kind.NOTHING),
        ("_api.tcp.mesh", Kind.NOTHING),
        ("api.service.dc2.extra.mesh", Kind.NOTHING),
        ("api.service.dc2.extra.dc.mesh", Kind.NOTHING),
        ("stored.query.mesh", Kind.NOTHING),
        ("a.dc2.mesh", Kind.NOTHING),
        ("v1.api.connect.mesh", Kind.NOTHING),
        ("xyz.addr.mesh", Kind.NOTHING),
        ("0a00000.addr.mesh", Kind.NOTHING),
        ("a.0a000001.addr.mesh", Kind.NOTHING),
        ("example.com", Kind.FOREIGN),
        ("consul", Kind.FOREIGN),
        ("notmesh", Kind.FOREIGN),
        ("", Kind.FOREIGN),
        ("arpa", Kind.FOREIGN),
        ("3.2.1.in-addr.arpa", Kind.FOREIGN),
    ],
)
def test_names_that_are_not(name: str, kind: Kind) -> None:
    assert parse(name).kind is kind


def test_labels_that_are_no_text_are_nothing() -> None:
    assert PARSER.parse((b"\xff\xfe", b"service", b"mesh")).kind is Kind.NOTHING


@pytest.mark.parametrize("text", ["10.0.0.1", "255.255.255.255", "2001:db8::6", "::1"])
def test_addresses_as_names_round_trip(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert parse(f"{hex_label(address)}.addr.dc2.mesh").address == address
    labels = tuple(label.encode() for label in address.reverse_pointer.split("."))
    assert reverse_address(labels) == address


@pytest.mark.parametrize("name", ["256.0.0.10.in-addr.arpa", "x.0.0.10.in-addr.arpa", "01.0.0.10.in-addr.arpa"])
def test_what_only_looks_like_a_reverse_name(name: str) -> None:
    assert parse(name).kind is Kind.FOREIGN


def test_host_names_are_no_addresses() -> None:
    assert parse_address("www.example.com") is None
    assert parse_address("") is None
