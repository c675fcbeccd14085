"""Servers and clients of two datacenters as processes on loopback: gossip, catalog, DNS, HTTP, CA and federation together."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.agents import Cluster, until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Two datacenters with a server and a client each, running and joined."""
    found = Cluster(tmp_path)
    for datacenter in ("dc1", "dc2"):
        found.add(f"{datacenter}-s1", datacenter, 1, server=True)
        found.add(f"{datacenter}-c1", datacenter, 2)
    try:
        await found.start()
        yield found
    finally:
        await found.stop()


def _service(name: str, **more: object) -> dict[str, object]:
    return {"Name": name, "Port": 80, **more}


async def test_a_service_is_found_in_both_datacenters_and_disappears_from_both(cluster: Cluster) -> None:
    one, two = cluster.agents["dc1-c1"], cluster.agents["dc2-c1"]
    assert await two.put("/v1/agent/service/register", _service("api", Check={"TTL": "60s", "Status": "passing"}))
    for agent, name in ((two, "api.service.mesh"), (one, "api.service.dc2.mesh"), (one, "api.service.dc2.consul")):
        await until(lambda a=agent, n=name: _is(a, n, [two.address]), f"{agent.name} finds {name}")
    assert await one.addresses("api.service.mesh") == "NXDOMAIN"
    found = await one.json("/v1/health/service/api?passing&dc=dc2")
    assert [entry["Node"]["Node"] for entry in found] == ["dc2-c1"]
    await two.put("/v1/agent/check/fail/service:api")
    for agent, name in ((two, "api.service.mesh"), (one, "api.service.dc2.mesh")):
        await until(lambda a=agent, n=name: _is(a, n, "NXDOMAIN"), f"{agent.name} does not offer {name}")
    await two.put("/v1/agent/service/deregister/api")
    await until(lambda: _services(one, "dc2", without="api"), "the catalog of dc2 forgets it")


async def _is(agent, name: str, wanted: object) -> bool:  # type: ignore[no-untyped-def]
    return await agent.addresses(name) == wanted


async def _services(agent, datacenter: str, *, without: str) -> bool:  # type: ignore[no-untyped-def]
    return without not in await agent.json(f"/v1/catalog/services?dc={datacenter}")


async def test_identities_intentions_and_roots(cluster: Cluster) -> None:
    one, two = cluster.agents["dc1-c1"], cluster.agents["dc2-c1"]
    await one.put("/v1/agent/service/register", _service("web"))
    leaf = await until(lambda: _json(one, "/v1/agent/connect/ca/leaf/web"), "a leaf")
    assert leaf["ServiceURI"] == "spiffe://mesh.internal/ns/default/dc/dc1/svc/web"
    refused = await one.get("/v1/agent/connect/ca/leaf/api")
    assert refused.status == 403
    for agent in (one, two):
        await until(lambda a=agent: _roots(a, 2), f"{agent.name} has the roots of both datacenters")
    await one.put("/v1/connect/intentions/exact?source=web&destination=api", {"Action": "allow"})
    check = "/v1/connect/intentions/check?source=web&destination=api"
    await until(lambda: _allowed(two, check), "the intention is known in dc2")
    body = {"Target": "api", "ClientCertURI": leaf["ServiceURI"]}
    answer = json.loads((await two.call("POST", "/v1/agent/connect/authorize", body)).body)
    assert answer["Authorized"] is True
    await two.call("DELETE", "/v1/connect/intentions/exact?source=web&destination=api")
    await until(lambda: _denied(one, check), "its deletion is known in dc1")


async def _json(agent, path: str):  # type: ignore[no-untyped-def]
    return await agent.json(path)


async def _roots(agent, count: int) -> bool:  # type: ignore[no-untyped-def]
    return len((await agent.json("/v1/connect/ca/roots"))["Roots"]) == count


async def _allowed(agent, path: str) -> bool:  # type: ignore[no-untyped-def]
    return bool((await agent.json(path))["Allowed"])


async def _denied(agent, path: str) -> bool:  # type: ignore[no-untyped-def]
    return not (await agent.json(path))["Allowed"]


async def test_a_datacenter_that_is_cut_off_fails_fast_and_the_other_stays_alive(cluster: Cluster) -> None:
    one, two, far = cluster.agents["dc1-c1"], cluster.agents["dc2-c1"], cluster.agents["dc2-s1"]
    await two.put("/v1/agent/service/register", _service("api"))
    await until(lambda: _is(one, "api.service.dc2.mesh", [two.address]), "api is found")
    await until(lambda: _is(two, "api.service.mesh", [two.address]), "and known to the client beside it")
    await far.signal(signal.SIGSTOP)
    await until(lambda: _is(one, "api.service.dc2.mesh", "SERVFAIL"), "an honest SERVFAIL")
    response = await one.get("/v1/health/service/api?dc=dc2", timeout_s=8.0)  # others wait for ten
    assert response.status == 500
    assert b"No path to datacenter" in response.body
    response = await one.get("/v1/catalog/services?dc=dc2", timeout_s=8.0)
    assert response.status == 500
    await one.put("/v1/agent/service/register", _service("local"))
    await until(lambda: _is(one, "local.service.mesh", [one.address]), "dc1 answers its own names")
    await two.put("/v1/agent/service/register", _service("late"))
    assert (await two.addresses("api.service.mesh")) == [two.address], "a client answers without its server"
    await far.signal(signal.SIGCONT)
    await until(lambda: _is(one, "api.service.dc2.mesh", [two.address]), "dc2 is back")
    await until(lambda: _is(one, "late.service.dc2.mesh", [two.address]), "and so is what was registered meanwhile")


async def test_restarts_keep_registrations_and_clients_answer_while_the_server_is_down(cluster: Cluster) -> None:
    one, server = cluster.agents["dc1-c1"], cluster.agents["dc1-s1"]
    await one.put("/v1/agent/service/register", _service("web"))
    await until(lambda: _is(one, "web.service.mesh", [one.address]), "web is found")
    await server.signal(signal.SIGKILL)
    assert await one.addresses("web.service.mesh") == [one.address]
    await one.signal(signal.SIGTERM)
    await one.start()
    assert await one.addresses("web.service.mesh") == [one.address], "after a restart without a server"
    assert "web" in await one.json("/v1/agent/services")
    await server.start()
    await until(lambda: _is(server, "web.service.mesh", [one.address]), "the server knows it again")
    await until(lambda: _alive(server, "dc1-c1"), "and has the client alive")


async def _alive(agent, name: str) -> bool:  # type: ignore[no-untyped-def]
    checks = await agent.json(f"/v1/health/node/{name}")
    return any(check["CheckID"] == "serfHealth" and check["Status"] == "passing" for check in checks)


async def test_a_killed_node_disappears_and_comes_back_and_one_that_leaves_is_removed(cluster: Cluster) -> None:
    one, server = cluster.agents["dc1-c1"], cluster.agents["dc1-s1"]
    await one.put("/v1/agent/service/register", _service("web"))
    await until(lambda: _is(server, "web.service.mesh", [one.address]), "web is found")
    await one.signal(signal.SIGKILL)
    await until(lambda: _is(server, "web.service.mesh", "NXDOMAIN"), "its instances disappear", 60)
    await one.start()
    await until(lambda: _is(server, "web.service.mesh", [one.address]), "and come back", 60)
    await one.put("/v1/agent/leave")
    assert await one.exited() == 0
    # Within less than the time after which servers look at everything again: it must not register itself anew while it leaves.
    await until(lambda: _gone(server, "dc1-c1"), "a node that left is removed", 15)
    assert await server.addresses("web.service.mesh") == "NXDOMAIN"


async def _gone(agent, name: str) -> bool:  # type: ignore[no-untyped-def]
    return all(node["Node"] != name for node in await agent.json("/v1/catalog/nodes"))


async def test_mistakes_get_consuls_answers_and_change_nothing(cluster: Cluster) -> None:
    one = cluster.agents["dc1-c1"]
    before = await one.json("/v1/agent/services")
    for method, path, body, status, text in (
        ("PUT", "/v1/agent/service/register", b"{", 400, "not valid JSON"),
        ("PUT", "/v1/agent/service/register", b'{"Name": "x", "Prot": 1}', 400, 'unknown field "Prot"'),
        ("PUT", "/v1/agent/service/register", b'{"Port": 1}', 400, "Missing service name"),
        ("PUT", "/v1/agent/service/register", b'{"Name": "x", "Port": 70000}', 400, "not a port"),
        ("PUT", "/v1/agent/service/register", b'{"Name": "x", "Check": {"HTTP": "http://a"}}', 400, "Interval"),
        ("PUT", "/v1/agent/service/register", b" " * 600_000, 413, "too large"),
        ("PUT", "/v1/agent/service/deregister/none", b"", 404, "Unknown service ID"),
        ("PUT", "/v1/agent/check/pass/none", b"", 404, "Unknown check ID"),
        ("POST", "/v1/agent/services", b"", 405, "method POST not allowed"),
        ("GET", "/v1/health/service/web?dc=mars", b"", 500, "No path to datacenter"),
        ("GET", "/v1/health/service/web?index=x", b"", 400, "Invalid index"),
        ("GET", "/v1/health/service/web?wait=x&index=1", b"", 400, "Invalid wait"),
        ("PUT", "/v1/connect/intentions/exact?source=a&destination=b", b'{"Action": "maybe"}', 400, "Action"),
        ("GET", "/v1/nothing", b"", 404, ""),
    ):
        response = await one.call(method, path, raw=body)
        assert (response.status, text in response.body.decode()) == (status, True), (path, body[:40], response)
    assert await one.json("/v1/agent/services") == before


async def test_blocking_queries_wake_on_change_and_return_at_their_wait(cluster: Cluster) -> None:
    one = cluster.agents["dc1-c1"]
    first = await one.get("/v1/health/service/web")
    index = first.header("X-Consul-Index")
    waiting = asyncio.create_task(one.get(f"/v1/health/service/web?index={index}&wait=60s", timeout_s=70))
    await asyncio.sleep(0)
    await one.put("/v1/agent/service/register", _service("web"))
    answer = await waiting
    assert [entry["Service"]["ID"] for entry in json.loads(answer.body)] == ["web"]
    index = answer.header("X-Consul-Index")
    again = await one.get(f"/v1/catalog/services?index={10**9}&wait=50ms")
    assert again.status == 200
