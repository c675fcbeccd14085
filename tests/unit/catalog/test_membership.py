"""What gossip means for the catalog, and for whom it means nothing."""

import msgspec

from mesh_agent.catalog import keys
from mesh_agent.catalog.membership import Liveness, plan
from mesh_agent.model import SERF_HEALTH, Check, Node, Service, Status
from tests.support.catalog import ViewWriter


def _health(node: str) -> Check:
    return Check(id=SERF_HEALTH, node=node, status=Status.PASSING)


def test_a_node_that_left_is_removed_with_all_that_is_on_it() -> None:
    catalog = ViewWriter("dc1")
    catalog.put(Node(name="n1"), Service(id="web", name="web", node="n1"), _health("n1"))
    found = plan(catalog.view, [Liveness("n1", "10.0.0.1", "", alive=False, left=True)], settled=True)
    assert set(found.deletes) == {keys.node("n1"), keys.service("n1", "web"), keys.check("n1", SERF_HEALTH)}


def test_a_node_that_gossip_does_not_know_is_critical_once_agents_had_time_to_join() -> None:
    catalog = ViewWriter("dc1")
    catalog.put(Node(name="n1"), _health("n1"))
    assert not plan(catalog.view, [], settled=False)
    (value,) = plan(catalog.view, [], settled=True).puts.values()
    assert msgspec.json.decode(value, type=Check).status is Status.CRITICAL


def test_an_external_node_is_none_of_gossip_s_business() -> None:
    catalog = ViewWriter("dc1")
    external = Node(name="k8s-c1", address="127.0.0.1", meta={"external-node": "true"})
    catalog.put(external, Service(id="web", name="web", node="k8s-c1"), _health("k8s-c1"))
    assert not plan(catalog.view, [], settled=True)
    assert not plan(catalog.view, [Liveness("k8s-c1", "10.0.0.1", "", alive=False, left=True)], settled=True)
