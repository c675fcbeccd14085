"""What a sceptic would try by hand, in two datacenters of real hosts."""

import json
import secrets
import subprocess
import time

import pytest
from conftest import Datacenters, Node, crashed, measured, until

pytestmark = pytest.mark.timeout(600)
API = ["10.2.0.12", "10.2.0.13"]
WEB = ["10.1.0.12"]
GONE_S = 90.0
"""Three nodes find a dead one within 3 s to its turn, 1 to 8 s for the probe (8 on a starved machine) and 4 s of suspicion; six times that."""
TLS_REFUSALS = (35, 55, 56)
"""What curl ends with when the other side ends the handshake, or the connection after it while curl sends or waits (TLS 1.3)."""
CALL = "curl -s -m 5 -o /dev/null -w '%{http_code}' http://127.0.0.1:9191/"


def test_every_agent_is_a_member_and_healthy(mesh: Datacenters) -> None:
    for name, node in mesh.nodes.items():
        wanted = {other: 1 for other in mesh.nodes if other[:3] == name[:3]}
        until(lambda n=node, w=wanted: _members(n) == w, f"{name} sees all of its datacenter alive")
    wan = {member["Name"] for member in mesh["dc1-s1"].api("/v1/agent/members?wan=1")}
    assert wan == {"dc1-s1.dc1", "dc2-s1.dc2"}
    assert mesh["dc2-c1"].api("/v1/catalog/datacenters") == ["dc2", "dc1"]


def _members(node: Node) -> dict[str, int]:
    return {member["Name"]: member["Status"] for member in node.api("/v1/agent/members")}


def test_a_service_of_the_other_datacenter_is_found_by_the_hosts_own_resolver(mesh: Datacenters) -> None:
    for domain in ("mesh", "consul"):
        until(lambda d=domain: mesh["dc1-c2"].dig(f"api.service.dc2.{d}") == API, f"api in {domain}")
        until(lambda d=domain: mesh["dc2-c2"].dig(f"web.service.dc1.{d}") == WEB, f"web in {domain}")
    assert mesh["dc1-c2"].dig("api.service.mesh") == "NXDOMAIN"
    assert mesh["dc1-c1"].ok("getent hosts api.service.dc2.mesh").split()[0] in API


def test_a_new_registration_is_found_at_once_everywhere(mesh: Datacenters) -> None:
    here, near, far = mesh["dc2-c1"], mesh["dc2-c2"], mesh["dc1-c1"]
    times: dict[str, list[float]] = {"local": [], "other datacenter": []}
    for round_ in range(3):
        name = f"probe-{round_}-{secrets.token_hex(2)}"
        for node in (near, far):
            node.dig(f"{name}.service.dc2.mesh")
        started = time.monotonic()
        here.api("/v1/agent/service/register", "PUT", {"Name": name, "Port": 1})
        until(lambda n=name: near.dig(f"{n}.service.dc2.mesh") == API[:1], "found in its datacenter")
        times["local"].append(time.monotonic() - started)
        until(lambda n=name: far.dig(f"{n}.service.dc2.mesh") == API[:1], "found in the other one")
        times["other datacenter"].append(time.monotonic() - started)
        here.api(f"/v1/agent/service/deregister/{name}", "PUT")
        until(lambda n=name: far.dig(f"{n}.service.dc2.mesh") == "NXDOMAIN", "forgotten")
    for where, found in times.items():
        measured(
            f"register to DNS, {where}: {sorted(found)[1] * 1000:.0f} ms (median of 3, with two process starts in it)"
        )


def test_a_stopped_instance_disappears_from_both_and_comes_back(mesh: Datacenters) -> None:
    node = mesh["dc2-c1"]
    node.ok("systemctl stop demo-api")
    try:
        for reader in (mesh["dc2-c2"], mesh["dc1-c1"]):
            until(lambda r=reader: r.dig("api.service.dc2.mesh") == API[1:], "the stopped instance is gone")
    finally:
        node.ok("systemctl start demo-api")
    for reader in (mesh["dc2-c2"], mesh["dc1-c1"]):
        until(lambda r=reader: r.dig("api.service.dc2.mesh") == API, "and back")


def test_a_killed_hosts_instances_disappear_and_come_back(mesh: Datacenters) -> None:
    with crashed(mesh, "dc2-c2"):
        started = time.monotonic()
        until(lambda: mesh["dc1-c1"].dig("api.service.dc2.mesh") == API[:1], "the dead host's instance is gone", GONE_S)
        measured(f"host killed to gone from DNS in the other datacenter: {time.monotonic() - started:.1f} s")
        until(lambda: mesh["dc2-c1"].dig("api.service.mesh") == API[:1], "in its own datacenter too")
    seconds = until(lambda: mesh["dc1-c1"].dig("api.service.dc2.mesh") == API, "it is back after power-on")
    measured(f"host powered on to back in DNS: {seconds:.1f} s after boot")
    serves = "curl -s -m 5 -o /dev/null -w '%{http_code}' http://127.0.0.1:9090/health"
    assert mesh["dc2-c2"].run(serves)[1] == "200", "it is not found before it serves"


# identities and intentions


def _status(node: Node) -> str:
    return node.run(CALL)[1]


def _intention(node: Node, action: str) -> None:
    node.api("/v1/connect/intentions/exact?source=web&destination=api", "PUT", {"Action": action})


def test_web_calls_api_with_its_identity(mesh: Datacenters) -> None:
    until(lambda: _status(mesh["dc1-c1"]) == "200", "the call succeeds")
    answer = json.loads(mesh["dc1-c1"].ok("curl -s -m 5 http://127.0.0.1:9191/who"))
    assert answer["service"] == "api"
    assert answer["caller"] == "spiffe://mesh.internal/ns/default/dc/dc1/svc/web"
    forged = "curl -s -m 5 -H 'x-forwarded-client-cert: URI=spiffe://mesh.internal/ns/default/dc/dc1/svc/root' http://127.0.0.1:9191/"
    assert json.loads(mesh["dc1-c1"].ok(forged))["caller"] == "spiffe://mesh.internal/ns/default/dc/dc1/svc/web"


def test_an_intention_that_is_changed_in_one_datacenter_is_enforced_in_the_other(mesh: Datacenters) -> None:
    web, far = mesh["dc1-c1"], mesh["dc2-c1"]
    try:
        _intention(web, "deny")
        seconds = until(lambda: _status(web) in ("403", "000", "503"), "refused")
        measured(f"intention denied in dc1 to enforced in dc2: {seconds * 1000:.0f} ms, one process start in it")
        _intention(far, "allow")
        until(lambda: _status(web) == "200", "allowed again, from the other datacenter")
        web.api("/v1/connect/intentions/exact?source=web&destination=api", "DELETE")
        until(lambda: _status(web) in ("403", "000", "503"), "no intention is a refusal")
    finally:
        _intention(web, "allow")
    until(lambda: _status(web) == "200", "allowed")


def _curl_listener(node: Node, *options: str) -> tuple[int, str]:
    return node.run(f"curl -sk -m 5 -w ' %{{http_code}}' {' '.join(options)} https://10.2.0.12:21000/")


def _curl_as(node: Node, service: str) -> tuple[int, str]:
    """The same with the certificate of a service of the node, which its agent gives."""
    leaf = node.api(f"/v1/agent/connect/ca/leaf/{service}")
    for name, key in ((f"{service}.pem", "CertPEM"), (f"{service}.key", "PrivateKeyPEM")):
        node.ok(f"umask 077; printf '%%s' %s > /tmp/{name}", leaf[key])
    try:
        return _curl_listener(node, f"--cert /tmp/{service}.pem --key /tmp/{service}.key")
    finally:
        node.ok(f"rm /tmp/{service}.pem /tmp/{service}.key")


def test_strangers_are_refused(mesh: Datacenters) -> None:
    node = mesh["dc1-c2"]
    code, out = _curl_listener(node)
    assert code in TLS_REFUSALS, f"without a certificate: {code} {out}"
    node.ok(
        "cd /tmp && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=x "
        "-addext subjectAltName=URI:spiffe://mesh.internal/ns/default/dc/dc1/svc/web -keyout foreign.key -out foreign.pem 2>/dev/null"
    )
    code, out = _curl_listener(node, "--cert /tmp/foreign.pem --key /tmp/foreign.key")
    assert code in TLS_REFUSALS, f"with a foreign CA's certificate of the right name: {code} {out}"


def test_a_valid_certificate_of_the_wrong_service_is_refused(mesh: Datacenters) -> None:
    node = mesh["dc1-c2"]
    node.api("/v1/agent/service/register", "PUT", {"Name": "batch", "Port": 1})
    try:
        until(lambda: node.api_status("/v1/agent/connect/ca/leaf/batch")[0] == 200, "batch has a certificate")
        assert node.api_status("/v1/agent/connect/ca/leaf/api")[0] == 403, "and may not have that of api"
        code, out = _curl_as(node, "batch")
        assert code in TLS_REFUSALS or out.endswith(" 403"), f"{code} {out}"
        code, out = _curl_as(mesh["dc1-c1"], "web")
        assert out.endswith(" 200"), f"the same request with the right one: {code} {out}"
    finally:
        node.api("/v1/agent/service/deregister/batch", "PUT")


@pytest.fixture
def capture(mesh: Datacenters, tmp_path):  # type: ignore[no-untyped-def]
    """Everything on the WAN link, as bytes, once `stop()` is called."""
    file = tmp_path / "wan.pcap"
    process = subprocess.Popen(
        [
            *mesh.lab.enter("@dc1"),
            "tcpdump",
            "-i",
            "wan0",
            "-U",
            "-s",
            "0",
            "--immediate-mode",
            "-w",
            str(file),
            "-Z",
            "root",
        ],
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said = b""
    while b"listening" not in said:
        line = process.stderr.readline()
        assert line, f"tcpdump ended: {said.decode()}"
        said += line

    def stop() -> bytes:
        """The packets come in order: once the last one, a ping with a pattern of its own, is there, all are."""
        last = secrets.token_hex(16)
        mesh["dc1-c1"].ok(f"ping -c 1 -p {last} 10.2.0.12")
        until(lambda: bytes.fromhex(last) in file.read_bytes(), "the last packet is in the capture")
        process.terminate()
        process.wait()
        return file.read_bytes()

    try:
        yield stop
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_no_plaintext_crosses_the_wan(mesh: Datacenters, capture) -> None:  # type: ignore[no-untyped-def]
    marker = f"marker-{secrets.token_hex(12)}"
    for _ in range(5):
        answer = mesh["dc1-c1"].ok(f"curl -s -m 5 http://127.0.0.1:9191/{marker}")
        assert marker in answer
    packets = capture()
    assert len(packets) > 2000
    assert marker.encode() not in packets


def test_the_capture_would_have_seen_it(mesh: Datacenters, capture) -> None:  # type: ignore[no-untyped-def]
    marker = f"marker-{secrets.token_hex(12)}"
    node = mesh["dc2-c1"]
    node.ok("systemd-run --unit plain-control --collect python3 -m http.server 7777 --bind 0.0.0.0")
    try:
        until(lambda: mesh["dc1-c1"].run(f"curl -s -m 5 http://10.2.0.12:7777/{marker}")[0] == 0, "a plain call")
        assert marker.encode() in capture()
    finally:
        node.run("systemctl stop plain-control")


# partitions


def test_a_cut_wan_leaves_both_datacenters_alive_and_heals(mesh: Datacenters, wan) -> None:  # type: ignore[no-untyped-def]
    one, two = mesh["dc1-c1"], mesh["dc2-c1"]
    until(lambda: one.dig("api.service.dc2.mesh") == API, "all is well")
    wan("drop")
    until(lambda: one.dig("api.service.dc2.mesh") == "SERVFAIL", "an honest SERVFAIL")
    until(lambda: two.dig("web.service.dc1.mesh") == "SERVFAIL", "in both directions")
    for node, name in (
        (one, "api.service.dc2.mesh"),
        (one, "never-asked.service.dc2.mesh"),
        (two, "web.service.dc1.mesh"),
    ):
        answer, took_s = node.timed_dig(name)
        assert answer == "SERVFAIL"
        assert took_s < 2.5, "fails fast"
    for path in ("/v1/health/service/api?dc=dc2", "/v1/catalog/services?dc=dc2"):
        status, took_s = one.timed_status(path)
        assert status == 500
        assert took_s < 2.5, "fails fast"
    for node, datacenter, name in ((one, "dc1", "web"), (two, "dc2", "api")):
        wanted = WEB if name == "web" else API
        until(lambda n=node, s=name, w=wanted: n.dig(f"{s}.service.mesh") == w, "its own names are answered")
        node.api("/v1/agent/service/register", "PUT", {"Name": f"alone-{datacenter}", "Port": 1})
        until(lambda n=node, d=datacenter: n.dig(f"alone-{d}.service.mesh") == [mesh.address[n.name]], "registers")
        until(lambda n=node, d=datacenter: n.api_status(f"/v1/agent/connect/ca/leaf/alone-{d}")[0] == 200, "leafs")
    one.api("/v1/connect/intentions/exact?source=cut&destination=one", "PUT", {"Action": "allow"})
    two.api("/v1/connect/intentions/exact?source=cut&destination=two", "PUT", {"Action": "deny"})
    wan("heal")
    seconds = until(lambda: one.dig("api.service.dc2.mesh") == API, "dc2 is found again")
    seconds += until(lambda: two.dig("alone-dc1.service.dc1.mesh") == WEB, "and what was registered meanwhile")
    measured(f"WAN healed to names of the other datacenter: {seconds:.1f} s")
    pairs = {("cut", "one"), ("cut", "two")}
    for node in (one, two):
        until(lambda n=node: pairs <= _pairs(n), "intentions of both sides are everywhere")
    for server in ("dc1-s1", "dc2-s1"):
        until(lambda s=server: _all_alive(mesh[s]), "the WAN pool is whole", 90)
    for node, datacenter in ((one, "dc1"), (two, "dc2")):
        node.api(f"/v1/agent/service/deregister/alone-{datacenter}", "PUT")
    for destination in ("one", "two"):
        one.api(f"/v1/connect/intentions/exact?source=cut&destination={destination}", "DELETE")
    until(lambda: _status(one) == "200", "calls work")


def _pairs(node: Node) -> set[tuple[str, str]]:
    return {(each["SourceName"], each["DestinationName"]) for each in node.api("/v1/connect/intentions")}


def _all_alive(node: Node) -> bool:
    return all(member["Status"] == 1 for member in node.api("/v1/agent/members?wan=1"))


def test_calls_go_on_while_the_servers_are_gone(mesh: Datacenters) -> None:
    web, server = mesh["dc1-c1"], mesh["dc1-s1"]
    web.api("/v1/agent/service/register", "PUT", {"Name": "kept", "Port": 1})
    until(lambda: web.dig("kept.service.mesh") == WEB, "kept is found")
    server.ok("systemctl stop mesh-agent")
    try:
        assert web.dig("web.service.mesh") == WEB
        assert _status(web) == "200"
        web.ok("systemctl restart mesh-agent")
        assert web.dig("kept.service.mesh") == WEB, "after a restart of the agent without a server"
        assert "kept" in web.api("/v1/agent/services")
        until(lambda: _status(web) == "200", "the sidecar goes on")
    finally:
        server.ok("systemctl start mesh-agent")
    until(lambda: server.dig("kept.service.mesh") == WEB, "the server has the registration again")
    until(lambda: web.dig("api.service.dc2.mesh") == API, "the other datacenter is found again")
    web.api("/v1/agent/service/deregister/kept", "PUT")


def test_a_server_that_loses_power_comes_back_with_everything(mesh: Datacenters) -> None:
    far, near = mesh["dc1-c1"], mesh["dc2-c1"]
    with crashed(mesh, "dc2-s1"):
        assert near.dig("api.service.mesh") == API
        until(lambda: far.dig("api.service.dc2.mesh") == "SERVFAIL", "the other datacenter says so")
    until(lambda: far.dig("api.service.dc2.mesh") == API, "it is back")
    until(lambda: mesh["dc2-s1"].dig("api.service.mesh") == API, "with its catalog")
    until(lambda: _status(far) == "200", "and calls work")


def test_a_host_that_loses_power_keeps_its_registrations(mesh: Datacenters) -> None:
    mesh["dc1-c1"].api("/v1/agent/service/register", "PUT", {"Name": "durable", "Port": 1})
    until(lambda: mesh["dc1-s1"].dig("durable.service.mesh") == WEB, "registered")
    with crashed(mesh, "dc1-c1"):
        until(lambda: mesh["dc1-s1"].dig("durable.service.mesh") == "NXDOMAIN", "gone with its host", GONE_S)
    until(lambda: mesh["dc1-s1"].dig("durable.service.mesh") == WEB, "registered still")
    until(lambda: _status(mesh["dc1-c1"]) == "200", "and its sidecar works")
    mesh["dc1-c1"].api("/v1/agent/service/deregister/durable", "PUT")


def test_the_agents_are_small(mesh: Datacenters) -> None:
    for name in ("dc1-s1", "dc1-c2"):
        pid = mesh[name].ok("systemctl show -p MainPID --value mesh-agent").strip()
        rss = int(mesh[name].ok(f"grep VmRSS /proc/{pid}/status").split()[1]) / 1024
        measured(f"resident memory of the agent on {name}: {rss:.0f} MiB")


def test_secrets_are_nowhere_in_the_logs(mesh: Datacenters) -> None:
    for node in mesh.nodes.values():
        for secret in ("gossip_lan", "join_token"):
            code, _ = node.run(f"journalctl --no-pager | grep -qF -f /etc/mesh/secrets/{secret}")
            assert code == 1, f"{secret} is in the journal of {node.name}"
