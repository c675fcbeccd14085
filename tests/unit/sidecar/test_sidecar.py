"""Which registration a sidecar is for, when Envoy is started again, where it is found, and with what."""

from pathlib import Path

import pytest

from mesh_agent.clock import ManualClock
from mesh_agent.errors import ConfigError, InvalidRequest, NotFound
from mesh_agent.sidecar.bootstrap import Sidecar, bootstrap
from mesh_agent.sidecar.registration import Registration, resolve
from mesh_agent.sidecar.runner import Options, await_registration, command, find_envoy
from mesh_agent.sidecar.supervision import Restarts


def proxy(proxy_id: str, service_id: str, service: str) -> dict[str, object]:
    return {
        "ID": proxy_id,
        "Service": f"{service}-sidecar-proxy",
        "Kind": "connect-proxy",
        "Proxy": {"DestinationServiceName": service, "DestinationServiceID": service_id},
    }


SERVICES = {
    "web-1": {"ID": "web-1", "Service": "web", "Kind": ""},
    "web-1-sidecar-proxy": proxy("web-1-sidecar-proxy", "web-1", "web"),
    "api-1-sidecar-proxy": proxy("api-1-sidecar-proxy", "api-1", "api"),
    "api-2-sidecar-proxy": proxy("api-2-sidecar-proxy", "api-2", "api"),
}


@pytest.mark.parametrize(
    ("service", "sidecar_id", "expected"),
    [
        ("web", "", Registration("web-1-sidecar-proxy", "web")),
        ("web-1", "", Registration("web-1-sidecar-proxy", "web")),
        ("api-2", "", Registration("api-2-sidecar-proxy", "api")),
        ("", "api-1-sidecar-proxy", Registration("api-1-sidecar-proxy", "api")),
    ],
)
def test_a_sidecar_is_found_by_service_id_name_or_its_own_id(
    service: str, sidecar_id: str, expected: Registration
) -> None:
    assert resolve(SERVICES, service, sidecar_id) == expected


def test_what_cannot_be_resolved_says_what_to_do() -> None:
    with pytest.raises(NotFound, match=r"connect\.sidecar_service"):
        resolve({}, "web")
    with pytest.raises(NotFound, match="there are: api-1-sidecar-proxy, api-2-sidecar-proxy, web-1-sidecar-proxy"):
        resolve(SERVICES, "", "nope")
    with pytest.raises(InvalidRequest, match="name one with --sidecar-id"):
        resolve(SERVICES, "api")


async def test_waiting_ends_with_the_last_reason_when_time_is_up(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NotFound):
        await await_registration(lambda: {}, "web", "", ManualClock(), timeout_s=0.0)
    found = await await_registration(lambda: SERVICES, "web", "", ManualClock())
    assert found.proxy_id == "web-1-sidecar-proxy"


def test_restarts_slow_down_and_begin_anew_after_a_good_run() -> None:
    restarts = Restarts()
    assert [restarts.after(1.0) for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert [restarts.after(ran_s) for ran_s in (3600.0, 1.0)] == [0.5, 1.0]


def test_an_envoy_that_cannot_be_run_is_named_with_where_it_came_from(tmp_path: Path) -> None:
    program = tmp_path / "envoy"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(ConfigError, match=r"--envoy: .* is not a program"):
        find_envoy(str(program), {})
    program.chmod(0o755)
    assert find_envoy(str(program), {"MESH_ENVOY": "/other"}) == str(program)
    assert find_envoy("", {"MESH_ENVOY": str(program)}) == str(program)


def test_a_denied_source_is_not_given_the_ten_minutes_of_envoys_default() -> None:
    words = command(Options("envoy", concurrency=2), "/x.json")
    assert words[words.index("--drain-time-s") + 1] == "0"
    assert words[words.index("--concurrency") + 1] == "2"


def test_the_bootstrap_names_the_proxy_and_asks_the_agent_for_everything() -> None:
    found = bootstrap(Sidecar("web-sidecar-proxy", "web", "/run/mesh/xds.sock", admin_port=19000))
    assert found["node"] == {"id": "web-sidecar-proxy", "cluster": "web"}
    assert found["dynamic_resources"]["ads_config"]["api_type"] == "DELTA_GRPC"
    assert "/run/mesh/xds.sock" in str(found["static_resources"])
    assert found["admin"]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 19000}
    assert "admin" not in bootstrap(Sidecar("web-sidecar-proxy", "web", "/run/mesh/xds.sock"))
