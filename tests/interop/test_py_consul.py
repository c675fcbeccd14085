"""A client that was written for Consul (PyPI's py-consul), unchanged, against a server of ours."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import consul
import pytest
import requests.exceptions

from tests.support.agents import Cluster, until

pytestmark = pytest.mark.timeout(180)

Client = consul.Consul


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    """py-consul, connected to a server by itself."""
    cluster = Cluster(tmp_path)
    agent = cluster.add("s1", "dc1", 1, server=True, retry_join_wan=[])
    try:
        await cluster.start()
        found = consul.Consul(host=agent.address)
        yield found
        found.http.session.close()
    finally:
        await cluster.stop()


async def call(
    function: Callable[..., Any], *arguments: object, **options: object
) -> Any:  # whatever the client returns
    """The client blocks: it gets a thread."""
    return await asyncio.to_thread(function, *arguments, **options)


async def test_services_and_checks(client: Client) -> None:
    agent, health = client.agent, client.health
    ttl = consul.Check.ttl("60s")
    assert await call(
        agent.service.register, "web", service_id="web/1", port=80, tags=["v1"], meta={"a": "b"}, check=ttl
    )
    assert (await call(agent.services))["web/1"]["Tags"] == ["v1"]
    index, found = await call(health.service, "web")
    assert [each["Service"]["ID"] for each in found] == ["web/1"]
    assert (await call(health.service, "web", passing=True))[1] == []

    async def change() -> None:
        await call(agent.check.ttl_pass, "service:web/1", notes="well")

    (_, woken), _ = await asyncio.gather(call(health.service, "web", index=index, wait="30s"), change())
    assert [each["Output"] for each in woken[0]["Checks"] if each["CheckID"] == "service:web/1"] == ["well"]
    assert [each["Service"]["ID"] for each in (await call(health.service, "web", passing=True, tag="v1"))[1]] == [
        "web/1"
    ]
    for report, status in ((agent.check.ttl_warn, "warning"), (agent.check.ttl_fail, "critical")):
        await call(report, "service:web/1")
        assert [each["CheckID"] for each in (await call(health.state, status))[1]] == ["service:web/1"]
    await call(agent.check.register, "disk", check=consul.Check.tcp("127.0.0.1", 1, "60s"), service_id="web/1")
    await call(agent.check.deregister, "disk")
    await call(agent.service.maintenance, "web/1", "true", reason="repair")
    assert "_service_maintenance:web/1" in await call(agent.checks)
    await call(agent.service.maintenance, "web/1", "false")
    await call(agent.service.deregister, "web/1")
    assert await call(agent.services) == {}


async def test_the_catalog(client: Client) -> None:
    catalog = client.catalog
    assert await call(catalog.datacenters) == ["dc1"]
    assert await call(catalog.register, "printer", "10.1.1.1", service={"service": "paper", "port": 9})
    assert [each["Node"] for each in (await call(catalog.nodes))[1]] == ["printer", "s1"]
    assert set((await call(catalog.services))[1]) == {"consul", "paper"}
    assert [each["ServicePort"] for each in (await call(catalog.service, "paper"))[1]] == [9]
    assert set((await call(catalog.node, "printer"))[1]["Services"]) == {"paper"}
    assert (await call(catalog.nodes, consistency="consistent"))[1] == (await call(catalog.nodes, consistency="stale"))[
        1
    ]
    assert await call(catalog.deregister, "printer")
    assert (await call(catalog.node, "printer"))[1] is None


async def test_the_agent_and_its_pools(client: Client) -> None:
    own = await call(client.agent.self)
    assert (own["Config"]["NodeName"], own["Config"]["Datacenter"]) == ("s1", "dc1")
    assert [each["Name"] for each in await call(client.agent.members)] == ["s1"]
    assert [each["Name"] for each in await call(client.agent.members, wan=True)] == ["s1.dc1"]
    assert (await call(client.status.peers)) == [await call(client.status.leader)]
    await call(client.agent.maintenance, "true", reason="repair")
    await until(lambda: _statuses(client, {"critical"}), "maintenance is in the catalog")
    await call(client.agent.maintenance, "false")
    await until(lambda: _statuses(client, {"passing"}), "maintenance is over")
    assert b"mesh_" in (await call(client.agent.metrics, format_prometheus=True)).encode()


async def _statuses(client: Client, wanted: set[str]) -> bool:
    return wanted <= {each["Status"] for each in (await call(client.health.node, "s1"))[1]}


async def test_identities_and_intentions(client: Client) -> None:
    await call(client.agent.service.register, "web")
    roots = await call(client.agent.connect.ca.roots)
    leaf = await call(client.agent.connect.ca.leaf, "web")
    assert leaf["ServiceURI"] == f"spiffe://{roots['TrustDomain']}/ns/default/dc/dc1/svc/web"
    intentions = client.connect.intentions
    assert await call(intentions.upsert, "web", "db", action="allow", description="why", meta={"a": "b"})
    assert (await call(intentions.read, "web", "db"))["Meta"] == {"a": "b"}
    assert await call(intentions.check, "web", "db")
    assert await call(intentions.delete, "web", "db")
    assert not await call(intentions.check, "web", "db")


async def test_mistakes_are_the_clients_own_exceptions(client: Client) -> None:
    with pytest.raises(consul.ConsulException, match="No path to datacenter"):
        await call(client.catalog.nodes, dc="nowhere")
    with pytest.raises(consul.ConsulException, match="No path to datacenter"):
        await call(client.connect.intentions.list, dc="nowhere")
    with pytest.raises(consul.exceptions.BadRequest, match="Invalid service address"):
        await call(client.agent.service.register, "web", address="0.0.0.0")
    with pytest.raises((consul.ConsulException, requests.exceptions.RequestException)):
        await call(client.agent.join, "127.0.0.1:1")
