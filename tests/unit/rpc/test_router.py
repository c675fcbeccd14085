"""Which server is asked, and which one next."""

import random
from dataclasses import dataclass, field

import pytest

from mesh_agent.rpc.router import Router, datacenters, server_of


@dataclass
class Member:
    name: str
    address: str = "10.0.0.1"
    tags: dict[str, str] = field(default_factory=dict)
    status: str = "alive"


def server(name: str, datacenter: str = "dc1", status: str = "alive") -> Member:
    return Member(name, tags={"role": "consul", "port": "8300", "dc": datacenter, "roots": "aa,bb"}, status=status)


def test_a_server_is_preferred_until_it_fails() -> None:
    router = Router(random.Random(1))
    members = [server("s1"), server("s2"), server("s3")]
    first = router.servers(members, "dc1")
    assert router.servers(members, "dc1") == first
    router.failed(first[0])
    assert router.servers(members, "dc1") == [*first[1:], first[0]]


def test_only_live_servers_of_the_datacenter_are_asked() -> None:
    members = [
        server("s1", status="failed"),
        server("s2", "dc2"),
        Member("c1", tags={"role": "node", "dc": "dc1"}),
        server("s3"),
    ]
    assert [found.name for found in Router(random.Random(1)).servers(members, "dc1")] == ["s3"]


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"role": "consul", "dc": "dc1"},
        {"role": "consul", "dc": "dc1", "port": "x"},
        {"role": "consul", "port": "1"},
    ],
)
def test_a_member_that_does_not_say_where_its_rpc_is_is_no_server(tags: dict[str, str]) -> None:
    assert server_of(Member("m", tags=tags)) is None


def test_the_own_datacenter_comes_first_and_one_that_left_is_gone() -> None:
    members = [server("a.dc3", "dc3"), server("b.dc2", "dc2", status="failed"), server("c.dc4", "dc4", status="left")]
    assert datacenters(members, "dc1") == ["dc1", "dc2", "dc3"]
