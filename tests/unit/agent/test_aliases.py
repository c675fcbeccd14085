"""Aliases of other nodes: what the catalog says."""

import pytest

from mesh_agent.agent.aliases import RemoteViews, of_node
from mesh_agent.agent.checks import Result
from mesh_agent.agent.definition import CheckDefinition
from mesh_agent.model import Check, Node, Service, Status, Topic
from tests.support.catalog import ViewWriter

OK, WARN, BAD = Status.PASSING, Status.WARNING, Status.CRITICAL


def _check(check_id: str, status: Status, service_id: str = "") -> Check:
    return Check(id=check_id, node="N2", name=check_id, status=status, output="out", service_id=service_id)


@pytest.mark.parametrize(
    ("service", "checks", "result"),
    [
        ("", [], Result(OK, "No checks found.")),
        ("", [_check("serfHealth", OK), _check("w", BAD, "web")], Result(OK, "All checks passing.")),
        ("", [_check("serfHealth", BAD)], Result(BAD, 'Aliased check "serfHealth" failing: out')),
        ("web", [_check("serfHealth", OK), _check("w", WARN, "web")], Result(WARN, 'Aliased check "w" failing: out')),
        (
            "web",
            [_check("serfHealth", BAD), _check("w", WARN, "web")],
            Result(BAD, 'Aliased check "serfHealth" failing: out'),
        ),
        ("web", [_check("x", BAD, "api")], Result(OK, "No checks found.")),
        ("db", [_check("serfHealth", OK)], Result(BAD, "Service db could not be found on node N2")),
    ],
)
def test_what_the_catalog_says(service: str, checks: list[Check], result: Result) -> None:
    writer = ViewWriter("dc1")
    writer.put(Node(name="N2", address="10.0.0.2"), Service(id="web", name="web", node="N2"), *checks)
    assert of_node(writer.view, CheckDefinition(id="a", alias_node="n2", alias_service=service)) == result


def test_a_node_that_is_not_there_is_critical() -> None:
    definition = CheckDefinition(id="a", alias_node="n9")
    assert (
        of_node(None, definition)
        == of_node(ViewWriter("dc1").view, definition)
        == Result(BAD, "Node n9 could not be found")
    )


def test_views_are_followed_while_a_check_asks_for_them() -> None:
    heard: list[Topic] = []
    views, one, other = RemoteViews(heard.append), ViewWriter("dc1"), ViewWriter("dc1")
    topic = Topic("dc1", "node", "n2")
    for writer in (one, one, other):
        views.follow(topic, writer.view)
    assert not one.view.has_listeners(), "a new View replaces the old one"
    other.put(Node(name="n2"))
    assert heard == [topic]
    views.keep_only({"n2"})
    other.put(Node(name="n2", address="1"))
    assert heard == [topic, topic]
    views.keep_only(set())
    assert not other.view.has_listeners()
