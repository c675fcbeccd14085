"""A small two-datacenter catalog and a client that speaks through dnspython."""

import random
from collections.abc import Callable

import dns.flags
import dns.message
import dns.rcode
import pytest

from mesh_agent.config import AgentConfig, DnsConfig
from mesh_agent.dns import Responder
from mesh_agent.model import Node, Service, Status, Weights
from tests.support.catalog import StaticCatalog, ViewWriter


class World:
    """The catalog, its writers, and ways to ask."""

    def __init__(self) -> None:
        self.dc1 = ViewWriter("dc1")
        self.dc2 = ViewWriter("dc2")
        self.catalog = StaticCatalog({"dc1": self.dc1.view, "dc2": self.dc2.view})
        self.responder = self.make()

    def make(self, *, server: bool = True, seed: int = 7, **settings: object) -> Responder:
        dns_config = DnsConfig(**settings)  # type: ignore[arg-type]
        config = AgentConfig(node_name="s1", datacenter="dc1", server=server, dns=dns_config)
        return Responder(config, self.catalog, random.Random(seed))

    def ask(self, name: str, qtype: str = "A", *, tcp: bool = False, **options: object) -> dns.message.Message:
        """Ask through the wire; dnspython checks what comes back."""
        query = dns.message.make_query(name, qtype, **options)  # type: ignore[arg-type]
        return self.send(query, tcp=tcp)

    def send(self, query: dns.message.Message, *, tcp: bool = False) -> dns.message.Message:
        wire = self.responder.answer(query.to_wire(), tcp=tcp)
        assert isinstance(wire, bytes), wire
        answer = dns.message.from_wire(wire)
        assert query.is_response(answer)
        return answer


def rows(answer: dns.message.Message, section: str = "answer") -> list[str]:
    """Records of a section as sorted text."""
    rrsets = getattr(answer, section)
    return sorted(f"{rrset.name} {rrset.ttl} {line}" for rrset in rrsets for line in rrset.to_text().splitlines())


def values(answer: dns.message.Message, section: str = "answer") -> list[str]:
    """RDATA of a section as text, in order."""
    return [item.to_text() for rrset in getattr(answer, section) for item in rrset]


def rcode(answer: dns.message.Message) -> str:
    return dns.rcode.to_text(answer.rcode())


def node(name: str, address: str, **meta: str) -> Node:
    return Node(name=name, address=address, meta=meta)


def fill(world: World) -> None:
    """dc1: api on three nodes (one warning), v6, hosts; dc2: api on one."""
    n1, n2, n3 = (node(f"n{i}", f"10.0.0.{i}", rack=f"r{i}") for i in (1, 2, 3))
    s1 = node("s1", "10.0.0.9")
    for host in (n1, n2, n3):
        status = Status.WARNING if host is n3 else Status.PASSING
        tags = ("v1", "Blue") if host is n1 else ("v1",)
        service = Service(
            id="api", name="api", node=host.name, port=8080, tags=tags, weights=Weights(passing=10, warning=3)
        )
        world.dc1.instance(service, host, status)
    world.dc1.instance(Service(id="consul", name="consul", node="s1", port=8300), s1)
    world.dc1.instance(Service(id="down", name="down", node="n1", port=1), n1, Status.CRITICAL)
    world.dc1.instance(Service(id="six", name="six", node="n1", address="2001:db8::6", port=6), n1)
    world.dc1.instance(Service(id="own", name="own", node="n1", address="192.0.2.7", port=7), n1)
    world.dc1.instance(Service(id="ext", name="ext", node="n1", address="www.example.com", port=443), n1)
    world.dc2.instance(Service(id="api", name="api", node="m1", port=9090), node("m1", "10.2.0.1"))


@pytest.fixture
def world() -> World:
    made = World()
    fill(made)
    return made


Ask = Callable[..., dns.message.Message]
