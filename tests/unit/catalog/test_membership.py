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


def test_with_a_node_its_checks_fail_once_and_its_agent_has_the_last_word() -> None:
    catalog = ViewWriter("dc1")
    check = Check(id="http", node="n1", service_id="web", status=Status.PASSING, output="200", notes="kept")
    warned = Check(id="disk", node="n1", status=Status.CRITICAL, output="full")
    catalog.put(Node(name="n1"), Service(id="web", name="web", node="n1"), _health("n1"), check, warned)
    dead, alive = (Liveness("n1", "10.0.0.1", "", alive=up) for up in (False, True))
    puts = plan(catalog.view, [dead], settled=True).puts
    written = {key: msgspec.json.decode(value, type=Check) for key, value in puts.items()}
    assert set(written) == {keys.check("n1", SERF_HEALTH), keys.check("n1", "http")}
    failed = written[keys.check("n1", "http")]
    assert (failed.status, failed.output, failed.notes) == (Status.CRITICAL, "Agent not live or unreachable", "kept")
    catalog.put(*written.values())
    assert not plan(catalog.view, [dead], settled=True)
    back = plan(catalog.view, [alive], settled=True).puts
    assert set(back) == {keys.check("n1", SERF_HEALTH)}, "the others are for the agent to say"
    catalog.put(check)
    assert not plan(catalog.view, [dead], settled=True), "no quarrel with an agent that still reaches the servers"


def test_an_external_node_is_none_of_gossip_s_business() -> None:
    catalog = ViewWriter("dc1")
    external = Node(name="k8s-c1", address="127.0.0.1", meta={"external-node": "true"})
    catalog.put(external, Service(id="web", name="web", node="k8s-c1"), _health("k8s-c1"))
    assert not plan(catalog.view, [], settled=True)
    assert not plan(catalog.view, [Liveness("k8s-c1", "10.0.0.1", "", alive=False, left=True)], settled=True)
