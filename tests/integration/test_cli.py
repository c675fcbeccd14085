"""The `mesh` command as a user runs it: formats, exit codes (0 done, 1 the agent said no, 2 wrong usage), and what errors say."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from tests.support.agents import AgentProcess, Cluster, environment

pytestmark = pytest.mark.timeout(600)  # some fifty programs are started

_LISTS = [
    "members",
    "services list",
    "catalog datacenters",
    "catalog nodes",
    "catalog services",
    "catalog service web",
    "health service web",
    "health node s1",
    "health checks web",
    "health state any",
    "intention list",
    "intention match web",
    "ca roots",
    "ca leaf web",
]


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[AgentProcess]:
    """A server by itself that runs service web."""
    cluster = Cluster(tmp_path)
    found = cluster.add("s1", "dc1", 1, server=True, retry_join_wan=[])
    try:
        await cluster.start()
        await found.put("/v1/agent/service/register", {"Name": "web", "Port": 80, "Check": {"TTL": "60s"}})
        yield found
    finally:
        await cluster.stop()


async def mesh(*arguments: str, **environ: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "mesh_agent",
        *arguments,
        env=environment(**environ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_lists_in_every_format(agent: AgentProcess) -> None:
    address = f"{agent.address}:8500"
    for command in _LISTS:
        results = await asyncio.gather(
            *(mesh(*command.split(), "-o", output, CONSUL_HTTP_ADDR=address) for output in ("table", "json", "yaml"))
        )
        assert [code for code, _, _ in results] == [0, 0, 0], (command, results)
        table, as_json, as_yaml = (out for _, out, _ in results)
        assert table.splitlines()[0].strip(), command
        assert json.loads(as_json) == yaml.safe_load(as_yaml), command
        assert "PRIVATE KEY" not in table + as_json + as_yaml
        assert "\x1b" not in table, "no colours where nobody sees them"


async def test_what_the_agent_refuses_is_exit_code_1(agent: AgentProcess, tmp_path: Path) -> None:
    address = f"http://{agent.address}:8500/"
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"Name": "x", "Bogus": 1}')
    for command, text in {
        ("catalog", "nodes", "-d", "nowhere"): "No path to datacenter",
        ("health", "state", "ill"): "not any, passing, warning or critical",
        ("ca", "leaf", "a/b c"): "'a_2Fb_20c' is not registered on the node",
        ("services", "deregister", "nobody"): "Unknown service ID",
        ("services", "register", str(wrong)): 'unknown field "Bogus"',
        ("intention", "allow", "we*", "db"): "wildcard",
        ("join", "bad..name"): "bad..name",
    }.items():
        code, out, err = await mesh(*command, MESH_HTTP_ADDR=address)
        assert (code, out, text in err) == (1, "", True), (command, err)
    assert (await mesh("intention", "allow", "web", "db", MESH_HTTP_ADDR=address))[0] == 0
    assert (await mesh("intention", "check", "web", "db", MESH_HTTP_ADDR=address))[0] == 0
    assert (await mesh("intention", "check", "other", "db", MESH_HTTP_ADDR=address))[0] == 1


async def test_without_an_agent(tmp_path: Path) -> None:
    code, _, err = await mesh("members", MESH_HTTP_ADDR="127.0.0.1:1")
    assert code == 1
    assert err.splitlines()[0] == "Error: no agent answers at http://127.0.0.1:1: Connection refused"
    assert "--http-addr" in err
    socket = tmp_path / "none.sock"
    code, _, err = await mesh("members", "--http-addr", f"unix://{socket}", MESH_HTTP_ADDR="127.0.0.1:1")
    assert (code, str(socket) in err) == (1, True), "flags win over the environment"


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["members", "-o", "xml"], "not one of 'table', 'json', 'yaml'"),
        (["intention", "allow", "web"], "Missing argument"),
        (["services", "register", "/does/not/exist"], "/does/not/exist"),
        (["members", "--http-addr", "ftp://host"], "not the address of an agent"),
        (["members", "--http-addr", "host:port"], "not the address of an agent"),
        (["validate", "/does/not/exist"], "there is no such file"),
        (["agent", "--set", "nonsense"], "is not KEY=VALUE"),
        (["agent", "--set", "node_name=n", "--set", "colour=1"], "colour"),
        (["agent", "--set", "node_name=n", "--set", "ports.http=x"], "ports.http"),
        (["agent", "--set", "node_name=n", "--set", "ports.http.x=1"], "ports.http"),
        (["agent", "--set", "node_name=n", "--set", "ports=1"], "ports"),
        (["agent"], "node_name is missing"),
        (["agent", "--dev", "--set", "bind_addr=host"], "bind_addr"),
    ],
)
async def test_wrong_usage_and_settings_are_exit_code_2(command: list[str], text: str) -> None:
    code, out, err = await mesh(*command)
    assert (code, out, text in err) == (2, "", True), (code, out, err)
    assert "Traceback" not in err
