"""The HTTP API of one server as a client that was written for Consul meets it: shapes, refusals that change nothing, edge cases of registrations."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.agents import AgentProcess, Cluster

pytestmark = pytest.mark.timeout(240)

_NODE = {"Node": "printer", "Address": "10.1.1.1"}
_PAIR = {"SourceName": "web", "DestinationName": "db", "Action": "allow"}
_EXACT = "/v1/connect/intentions/exact"


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[AgentProcess]:
    """A server by itself."""
    cluster = Cluster(tmp_path)
    found = cluster.add("s1", "dc1", 1, server=True, retry_join_wan=[])
    try:
        await cluster.start()
        yield found
    finally:
        await cluster.stop()


async def everything(agent: AgentProcess) -> list[Any]:
    """All that a request could have changed."""
    paths = ("/v1/agent/services", "/v1/agent/checks", "/v1/catalog/nodes", "/v1/health/state/any")
    return [await agent.json(path) for path in (*paths, "/v1/catalog/services", "/v1/connect/intentions")]


_REFUSED: list[tuple[str, str, object, int, str]] = [
    ("PUT", "/v1/agent/service/register", {"Name": "x", "Address": "0.0.0.0"}, 400, "Invalid service address"),
    ("PUT", "/v1/agent/service/register", {"Name": "x", "Check": {"TTL": "soon"}}, 400, "write it like 10s"),
    ("PUT", "/v1/catalog/register", {"Node": "printer"}, 400, "Must provide address"),
    ("PUT", "/v1/catalog/register", {**_NODE, "ID": "junk"}, 400, "not a UUID"),
    ("PUT", "/v1/catalog/register", {**_NODE, "Node": "a\nb"}, 400, "cannot be printed"),
    ("PUT", "/v1/catalog/register", {**_NODE, "Check": {"Name": "c", "ServiceID": "x"}}, 400, "Missing service reg"),
    ("PUT", "/v1/catalog/register", {"Node": "printer", "SkipNodeUpdate": True}, 400, "Must provide address"),
    ("PUT", "/v1/agent/join/no..name", None, 500, "no..name"),
    ("PUT", "/v1/agent/maintenance?enable=perhaps", None, 400, 'Invalid value for enable: "perhaps"'),
    ("POST", "/v1/connect/intentions", {**_PAIR, "SourceName": "web*"}, 400, "wildcard"),
    ("PUT", f"{_EXACT}?source=web&destination=other", _PAIR, 400, "'db' in the body and 'other' in the query"),
    ("GET", "/v1/agent/services?filter=Service==web", None, 400, "filter"),
    ("GET", "/v1/catalog/nodes?stale&consistent", None, 400, "conflicting semantics"),
    ("GET", "/v1/catalog/nodes?wait=10", None, 400, "Invalid wait time"),
    ("GET", "/v1/health/service/", None, 400, "Missing name"),
    ("GET", "/v1/agent/service/nobody", None, 404, "unknown service ID: nobody"),
    ("PUT", "/v1/agent/check/pass/nobody", None, 404, "Unknown check ID"),
]


async def test_what_is_refused_says_why_and_changes_nothing(agent: AgentProcess) -> None:
    before = await everything(agent)
    for method, path, body, status, text in _REFUSED:
        answer = await agent.call(method, path, body)
        assert (answer.status, text in answer.body.decode()) == (status, True), (method, path, body, answer.body)
    assert await everything(agent) == before


async def test_names_of_every_kind_are_registered_found_and_forgotten(agent: AgentProcess) -> None:
    names = ["a/b", "sp ace", "ünï", "100%", "a?b", "a#b", "register", "..", "x" * 255]
    for name in names:
        await agent.put("/v1/agent/service/register", {"Name": name, "ID": name, "Check": {"TTL": "60s"}})
    assert set(await agent.json("/v1/catalog/services")) == {*names, "consul"}
    for name in names:
        assert [each["ServiceID"] for each in await agent.json(f"/v1/catalog/service/{quote(name, safe='')}")] == [name]
        await agent.put(f"/v1/agent/check/pass/{quote('service:' + name, safe='')}")
    assert (await agent.json("/v1/agent/service/a/b"))["Service"] == "a/b", "many clients do not escape a slash"
    assert len(await agent.json("/v1/health/service/a/b?passing")) == 1
    await agent.put("/v1/agent/service/deregister/a/b")
    for name in names[1:]:
        await agent.put(f"/v1/agent/service/deregister/{quote(name, safe='')}")
    assert await agent.json("/v1/agent/services") == await agent.json("/v1/agent/checks") == {}


async def test_the_catalog_takes_what_has_no_agent(agent: AgentProcess) -> None:
    service = {"Service": "paper", "Port": 9, "Tags": ["a4"]}
    check = {"CheckID": "tray", "Status": "passing", "ServiceID": "paper"}
    await agent.put("/v1/catalog/register", {**_NODE, "Service": service, "Check": check})
    again = {"Node": "printer", "SkipNodeUpdate": True, "Check": {**check, "Status": "critical"}}
    await agent.put("/v1/catalog/register", again)
    found = await agent.json("/v1/health/service/paper")
    assert [(each["Node"]["Address"], each["Checks"][0]["Status"]) for each in found] == [("10.1.1.1", "critical")]
    assert (found[0]["Checks"][0]["ServiceName"], found[0]["Checks"][0]["ServiceTags"]) == ("paper", ["a4"])
    new = {"Node": "scanner", "Address": "10.1.1.2", "SkipNodeUpdate": True, "Service": {"Service": "scan"}}
    await agent.put("/v1/catalog/register", new)
    assert len(await agent.json("/v1/catalog/service/scan")) == 1, "a service without its node would be nowhere"
    for node in ("printer", "scanner"):
        await agent.put("/v1/catalog/deregister", {"Node": node})
    assert [each["Node"] for each in await agent.json("/v1/catalog/nodes")] == ["s1"]
    assert await agent.json("/v1/catalog/node-services/printer") == {"Node": None, "Services": None}


async def test_only_nodes_with_the_wanted_meta(agent: AgentProcess) -> None:
    service = {"Service": "paper", "Port": 9}
    check = {"CheckID": "tray", "Status": "passing", "ServiceID": "paper"}
    await agent.put("/v1/catalog/register", {**_NODE, "NodeMeta": {"floor": "2"}, "Service": service, "Check": check})
    for path, name in (
        ("/v1/catalog/nodes", "Node"),
        ("/v1/catalog/service/paper", "ServiceID"),
        ("/v1/health/service/paper", "Node"),
        ("/v1/health/checks/paper", "CheckID"),
        ("/v1/health/state/passing", "CheckID"),
    ):
        assert [name in each for each in await agent.json(f"{path}?node-meta=floor:2")] == [True], path
        assert await agent.json(f"{path}?node-meta=floor:3") == [], path
    assert await agent.json("/v1/catalog/services?node-meta=floor:2") == {"paper": []}
    assert await agent.json("/v1/catalog/services?node-meta=floor:3") == {}


async def test_an_intention_can_be_changed_by_its_id(agent: AgentProcess) -> None:
    made = json.loads((await agent.call("POST", "/v1/connect/intentions", _PAIR)).body)["ID"]
    changed = await agent.put(f"/v1/connect/intentions/{made}", {**_PAIR, "Action": "deny"})
    assert json.loads(changed.body) == {"ID": made}
    assert (await agent.json(f"/v1/connect/intentions/{made}"))["Action"] == "deny"
    other = await agent.call("PUT", f"/v1/connect/intentions/{made}", {**_PAIR, "SourceName": "other"})
    assert (other.status, b"web => db" in other.body) == (400, True)


async def test_answers_for_people_and_for_load_balancers(agent: AgentProcess) -> None:
    plain, pretty = await agent.get("/v1/catalog/nodes"), await agent.get("/v1/catalog/nodes?pretty")
    assert json.loads(plain.body) == json.loads(pretty.body)
    assert (plain.body.count(b"\n"), pretty.body.startswith(b'[\n    {\n        "ID"')) == (0, True)
    assert pretty.header("X-Consul-Index") == plain.header("X-Consul-Index")
    assert (await agent.get("/v1/connect/ca/roots?pretty=0")).body.count(b"\n") == 0
    await agent.put("/v1/agent/service/register", {"Name": "web", "Check": {"TTL": "60s", "Status": "warning"}})
    for path, status, reason in (
        ("/v1/agent/health/service/id/web", 429, "warning"),
        ("/v1/agent/health/service/name/web?format=text", 429, "warning"),
        ("/v1/agent/health/service/id/nobody", 404, "ServiceId nobody not found"),
        ("/v1/agent/health/service/name/n%0Abody?format=text", 404, "ServiceName n?body not found"),
    ):
        answer = await agent.get(path)
        assert (answer.status, answer.header("X-Consul-Reason")) == (status, reason)
