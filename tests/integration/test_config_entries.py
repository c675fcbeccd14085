"""Config entries through the HTTP API of two real datacenters."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mesh_agent.http.message import Response
from tests.support.agents import AgentProcess, Cluster, environment, until

pytestmark = pytest.mark.timeout(240)
INTENTIONS = "/v1/config/service-intentions"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Two datacenters, a client agent in the first."""
    found = Cluster(tmp_path)
    found.add("dc1-s1", "dc1", 1, server=True)
    found.add("dc1-c1", "dc1", 2)
    found.add("dc2-s1", "dc2", 1, server=True)
    try:
        await found.start()
        yield found
    finally:
        await found.stop()


async def read(agent: AgentProcess, path: str) -> Any:
    answer = await agent.get(path)
    return json.loads(answer.body) if answer.status == 200 else answer.status


async def said(agent: AgentProcess, method: str, path: str, body: object = None) -> tuple[int, str]:
    answer = await agent.call(method, path, body)
    return answer.status, answer.body.decode()


def holds(agent: AgentProcess, path: str, wanted: object, key: str) -> Any:
    async def probe() -> bool:
        found = await read(agent, path)
        return (found if isinstance(found, int) else found.get(key)) == wanted

    return probe


async def test_an_entry_is_written_anywhere_and_read_everywhere(cluster: Cluster) -> None:
    server, client, far = (cluster.agents[name] for name in ("dc1-s1", "dc1-c1", "dc2-s1"))
    path = "/v1/config/service-defaults/api"
    entry = {"Kind": "service-defaults", "Name": "api", "Protocol": "http"}
    assert await said(client, "PUT", "/v1/config", entry) == (200, "true")
    for agent in (server, client, far):
        await until(holds(agent, path, "http", "Protocol"), f"{agent.name} knows it")
    assert await said(client, "PUT", "/v1/config?dc=dc2", {**entry, "Protocol": "grpc"}) == (200, "true")
    assert (await read(client, f"{path}?dc=dc2"))["Protocol"] == "grpc", "the other datacenter answers at once"
    for agent in (server, client, far):
        await until(holds(agent, path, "grpc", "Protocol"), f"{agent.name} knows the change")
    assert await said(far, "DELETE", path) == (200, "{}")
    for agent in (server, client, far):
        await until(holds(agent, path, 404, ""), f"{agent.name} knows the deletion")
    assert await said(server, "GET", path) == (404, 'Config entry not found for "service-defaults" / "api"')
    assert await said(client, "DELETE", path) == (200, "{}")


async def test_entries_and_intentions_are_one_truth(cluster: Cluster) -> None:
    server, client = cluster.agents["dc1-s1"], cluster.agents["dc1-c1"]
    await server.put("/v1/connect/intentions/exact?source=web&destination=api", {"Action": "allow"})
    assert [each["Name"] for each in (await read(server, f"{INTENTIONS}/api"))["Sources"]] == ["web"]
    sources = [{"Name": "*", "Action": "deny"}, {"Name": "job", "Action": "allow", "Description": "nightly"}]
    body = {"Kind": "service-intentions", "Name": "api", "Sources": sources}
    assert await said(client, "PUT", "/v1/config", body) == (200, "true")
    found = await read(server, "/v1/connect/intentions")
    assert [(each["SourceName"], each["Action"], each["Description"]) for each in found] == [
        ("job", "allow", "nightly"),
        ("*", "deny", ""),
    ]
    check = "/v1/connect/intentions/check?destination=api&source="
    assert [(await read(server, check + source))["Allowed"] for source in ("job", "web")] == [True, False]
    assert [each["Name"] for each in await read(server, INTENTIONS)] == ["api"]
    assert await said(server, "DELETE", f"{INTENTIONS}/api") == (200, "{}")
    assert await read(server, "/v1/connect/intentions") == []


async def test_a_write_with_cas_is_refused_when_somebody_was_faster(cluster: Cluster) -> None:
    server = cluster.agents["dc1-s1"]
    body = {"Kind": "service-intentions", "Name": "api", "Sources": [{"Name": "web", "Action": "allow"}]}
    assert await said(server, "PUT", "/v1/config?cas=7", body) == (200, "false")
    assert await said(server, "PUT", "/v1/config?cas=0", body) == (200, "true")
    assert await said(server, "PUT", "/v1/config?cas=0", body) == (200, "false")
    index = (await read(server, f"{INTENTIONS}/api"))["ModifyIndex"]
    await server.put("/v1/connect/intentions/exact?source=job&destination=api", {"Action": "allow"})
    assert await said(server, "DELETE", f"{INTENTIONS}/api?cas={index}") == (200, "false")
    index = (await read(server, f"{INTENTIONS}/api"))["ModifyIndex"]
    assert await said(server, "DELETE", f"{INTENTIONS}/api?cas={index}") == (200, "true")
    assert await said(server, "PUT", "/v1/config?cas=0", body) == (200, "true"), "a tombstone is no entry"
    assert (await server.call("PUT", "/v1/config?cas=x", body)).status == 400


async def test_writers_at_the_same_time_leave_the_entry_of_one_of_them(cluster: Cluster) -> None:
    server, client = cluster.agents["dc1-s1"], cluster.agents["dc1-c1"]

    def body(number: int) -> dict[str, object]:
        sources = [{"Name": f"{number}-{each}", "Action": "allow"} for each in range(5)]
        return {"Kind": "service-intentions", "Name": "api", "Sources": sources}

    answers = await asyncio.gather(
        *(said((server, client)[each % 2], "PUT", "/v1/config", body(each)) for each in range(8))
    )
    assert {status for status, _ in answers} <= {200, 409}
    assert (200, "true") in answers
    found = await read(server, f"{INTENTIONS}/api")
    assert len({each["Name"].partition("-")[0] for each in found["Sources"]}) == 1
    assert len(found["Sources"]) == 5


async def following(agent: AgentProcess, path: str, first: Response) -> Response:
    """Wait, as clients do, from index to index until the answer is another one: a root of the other datacenter wakes the same waiters."""
    answer = first
    while answer.body == first.body:
        index = answer.header("X-Consul-Index")
        answer = await agent.get(f"{path}?index={index}&wait=60s", timeout_s=70)
        assert answer.header("X-Consul-Index") != index, "it waited in vain"
    return answer


async def test_a_blocking_query_returns_when_an_entry_changes(cluster: Cluster) -> None:
    server, client = cluster.agents["dc1-s1"], cluster.agents["dc1-c1"]
    answer = await client.get("/v1/config/proxy-defaults")
    assert answer.body == b"[]"
    waiting = asyncio.create_task(following(client, "/v1/config/proxy-defaults", answer))
    await server.put("/v1/config", {"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}})
    (found,) = json.loads((await waiting).body)
    assert (found["Name"], found["Config"]) == ("global", {"protocol": "http"})


@pytest.mark.parametrize("path", ["/v1/config/service-router", "/v1/config/nonsense/x"])
async def test_kinds_that_there_are_not_are_refused_with_those_that_there_are(cluster: Cluster, path: str) -> None:
    status, text = await said(cluster.agents["dc1-c1"], "GET", path)
    assert status == 400
    assert "proxy-defaults, service-defaults, service-intentions" in text
    status, text = await said(cluster.agents["dc1-c1"], "GET", "/v1/config/service-defaults?dc=nowhere")
    assert (status, text) == (500, "No path to datacenter")


async def test_a_client_can_wait_for_an_entry_that_is_not_there(cluster: Cluster) -> None:
    server, client = cluster.agents["dc1-s1"], cluster.agents["dc1-c1"]
    path = "/v1/config/service-defaults/late"
    answer = await client.get(path)
    assert answer.status == 404
    waiting = asyncio.create_task(following(client, path, answer))
    await server.put("/v1/config", {"Kind": "service-defaults", "Name": "late", "Protocol": "grpc"})
    assert json.loads((await waiting).body)["Protocol"] == "grpc"
    every = [(each["Kind"], each["Name"]) for each in await client.json("/v1/config/")]
    assert every == [("service-defaults", "late")]


async def test_the_command_line_reads_writes_lists_and_deletes(cluster: Cluster, tmp_path: Path) -> None:
    address = f"{cluster.agents['dc1-c1'].address}:8500"

    async def mesh(*arguments: str, entry: str = "") -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mesh_agent", "config", *arguments, "--http-addr", address),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment(NO_COLOR="1"),
        )
        out, _ = await process.communicate(entry.encode())
        return process.returncode or 0, out.decode()

    file = tmp_path / "api.yml"
    file.write_text("Kind: service-defaults\nName: api\nProtocol: http\n")
    assert await mesh("write", str(file)) == (0, "Config entry written: service-defaults/api\n")
    status, text = await mesh("read", "--kind", "service-defaults", "--name", "api")
    assert (status, json.loads(text)["Protocol"]) == (0, "http")
    entry = json.dumps({"Kind": "service-defaults", "Name": "api", "Protocol": "tcp"})
    status, text = await mesh("write", "-", "--cas", "--modify-index", "1", entry=entry)
    assert (status, "not written" in text) == (1, True)
    status, text = await mesh("list", "--kind", "service-defaults")
    assert (status, "api" in text) == (0, True)
    status, text = await mesh("list", "--kind", "service-router")
    assert (status, "this mesh knows" in text) == (1, True)
    assert await mesh("delete", "--kind", "service-defaults", "--name", "api") == (
        0,
        "Config entry deleted: service-defaults/api\n",
    )

    async def forgotten() -> bool:
        return (await mesh("read", "--kind", "service-defaults", "--name", "api"))[0] == 1

    await until(forgotten, "the client agent has heard of it, too")
