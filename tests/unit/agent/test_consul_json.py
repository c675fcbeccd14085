"""Consul's JSON of services and checks, and what is wrong with it."""

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh_agent.agent import consul_json
from mesh_agent.agent.definition import CheckDefinition
from mesh_agent.agent.fields import decode_object
from mesh_agent.errors import InvalidRequest
from mesh_agent.model import Status, Upstream, Weights


def test_a_whole_service_is_read() -> None:
    found = consul_json.service(
        {
            "ID": "web1",
            "Name": "web",
            "Tags": ["a", "b"],
            "Address": "10.0.0.1",
            "Port": 8080,
            "Meta": {"version": "1"},
            "EnableTagOverride": True,
            "Weights": {"Passing": 5, "Warning": 1},
            "TaggedAddresses": {"lan": {"Address": "10.0.0.2", "Port": 1}},
            "Checks": [{"HTTP": "http://127.0.0.1:8080/health", "Interval": "10s", "Header": {"X-A": ["1", "2"]}}],
            "Check": {"TTL": "30s", "Status": "passing"},
            "Connect": {
                "SidecarService": {
                    "Proxy": {
                        "Upstreams": [{"DestinationName": "api", "Datacenter": "dc2", "LocalBindPort": 9000}],
                        "Config": {"protocol": "http"},
                    }
                }
            },
        }
    )
    assert (found.service_id, found.name, found.tags, found.port) == ("web1", "web", ("a", "b"), 8080)
    assert found.weights == Weights(passing=5, warning=1)
    assert found.tagged_addresses["lan"].address == "10.0.0.2"
    http, ttl = found.checks
    assert (http.kind, http.interval_s, http.timeout_s, http.header) == ("http", 10.0, 10.0, {"X-A": ["1", "2"]})
    assert (ttl.kind, ttl.ttl_s, ttl.status) == ("ttl", 30.0, Status.PASSING)
    sidecar = found.sidecar
    assert sidecar is not None
    assert sidecar.proxy is not None
    assert (sidecar.service_id, sidecar.name, sidecar.kind) == (
        "web1-sidecar-proxy",
        "web-sidecar-proxy",
        "connect-proxy",
    )
    assert sidecar.proxy.upstreams == (Upstream(destination_name="api", datacenter="dc2", local_bind_port=9000),)
    assert sidecar.proxy.config == {"protocol": "http"}


@pytest.mark.parametrize(
    "names",
    [
        ("Name", "Port", "EnableTagOverride", "Meta"),
        ("name", "port", "enabletagoverride", "meta"),
        ("NAME", "PORT", "ENABLETAGOVERRIDE", "META"),
        ("name", "port", "enable_tag_override", "meta"),
    ],
)
def test_field_names_may_be_written_in_any_case_or_with_underscores(names: tuple[str, ...]) -> None:
    found = consul_json.service(dict(zip(names, ("web", 80, True, {"Key_X": "v"}), strict=True)))
    assert (found.name, found.port, found.enable_tag_override, found.meta) == ("web", 80, True, {"Key_X": "v"})


def test_null_is_as_good_as_nothing() -> None:
    found = consul_json.service(
        {"Name": "web", "Tags": None, "Check": None, "Checks": None, "Connect": None, "Proxy": None}
    )
    assert (found.tags, found.checks, found.sidecar, found.proxy) == ((), (), None, None)


_OK = {"Name": "web"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "Missing service name"),
        ({"Name": ""}, "Missing service name"),
        ({"Name": "x" * 256}, "Name: 256 characters are too long"),
        ({"Name": "a\nb"}, "Name: .* cannot be printed"),
        ({"Name": 1}, "Name must be a string"),
        (_OK | {"Prot": 1}, 'unknown field "Prot"'),
        (_OK | {"Port": -1}, "Port: -1 is not a port"),
        (_OK | {"Port": 65536}, "Port: 65536 is not a port"),
        (_OK | {"Port": "80"}, "Port must be a number"),
        (_OK | {"Port": True}, "Port must be a number"),
        (_OK | {"Port": 1.5}, "Port must be a number"),
        (_OK | {"Tags": "a"}, "Tags must be a list"),
        (_OK | {"Tags": [1]}, r"Tags\[0\] must be a string"),
        (_OK | {"Meta": {"a": 1}}, "Meta.a must be a string"),
        (_OK | {"Meta": {"a b": "1"}}, "Key contains invalid characters"),
        (_OK | {"Meta": {"": "1"}}, "Key cannot be blank"),
        (_OK | {"Meta": {"consul-x": "1"}}, "reserved for internal use"),
        (_OK | {"Meta": {"a" * 129: "1"}}, "Key is too long"),
        (_OK | {"Meta": {"a": "1" * 513}}, "Value is too long"),
        (_OK | {"Meta": {f"k{n}": "" for n in range(65)}}, "more than 64"),
        (_OK | {"Kind": "mesh-gateway"}, "Kind: 'mesh-gateway' is not supported"),
        (_OK | {"Kind": "connect-proxy"}, "Proxy.DestinationServiceName must be non-empty"),
        (_OK | {"Kind": "connect-proxy", "Port": 0, "Proxy": {"DestinationServiceName": "web"}}, "Port must be set"),
        (_OK | {"Address": "0.0.0.0"}, "Address: Invalid service address: 0.0.0.0"),
        (_OK | {"Address": "::"}, "Address: Invalid service address: ::"),
        (_OK | {"Weights": {"Passing": 0}}, "Weights: passing must be"),
        (_OK | {"Connect": {"SidecarService": {"Prot": 1}}}, 'unknown field "Prot" in Connect.SidecarService'),
        (_OK | {"Connect": {"SidecarService": {"ID": "mine"}}}, "always 'web-sidecar-proxy'"),
        (_OK | {"Connect": {"SidecarService": {"Connect": {"SidecarService": {}}}}}, "a sidecar of its own"),
        (
            _OK | {"Connect": {"SidecarService": {"Proxy": {"Upstreams": [{"DestinationName": "a"}]}}}},
            r"Upstreams\[0\].LocalBindPort must be given",
        ),
        (_OK | {"Checks": [{"TTL": "1s"}, {}]}, r"Checks\[1\]: a check needs one of"),
        (_OK | {"Check": {"TTL": 2**63}}, r"Checks\[0\].TTL: too long a duration"),
        (_OK | {"Check": {"TTL": 1e30}}, r"Checks\[0\].TTL: too long a duration"),
        (_OK | {"Check": {"TTL": "soon"}}, r"Checks\[0\].TTL: 'soon' is not a duration"),
        (_OK | {"Check": {"TTL": "1s", "check_id": "x", "CheckID": "y", "What": 1}}, 'unknown field "What"'),
        ([], "must be an object"),
    ],
)
def test_a_wrong_service_is_refused_by_the_name_of_the_field(value: Any, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        consul_json.service(value)


_CHECK = {"Name": "c"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"TTL": "1s"}, "Missing check name"),
        (_CHECK, "needs one of TTL, HTTP"),
        (_CHECK | {"TTL": "1s", "TCP": "a:1", "Interval": "1s"}, "exactly one kind, this one has 2"),
        (_CHECK | {"HTTP": "http://a"}, "Interval must be > 0"),
        (_CHECK | {"HTTP": "ftp://a", "Interval": "1s"}, "HTTP: 'ftp://a' is not a URL like"),
        (_CHECK | {"HTTP": "http://a b", "Interval": "1s"}, "not a URL"),
        (_CHECK | {"HTTP": "http://a\r\nX: y", "Interval": "1s"}, "not a URL"),
        (_CHECK | {"HTTP": "http://a:99999", "Interval": "1s"}, "not a URL"),
        (_CHECK | {"HTTP": "http://[::1", "Interval": "1s"}, "not a URL"),
        (
            _CHECK | {"HTTP": "http://a", "Interval": "1s", "Header": {"A": ["b\r\nC: d"]}},
            "Header.A: not an HTTP header",
        ),
        (_CHECK | {"HTTP": "http://a", "Interval": "1s", "Header": {"A:": ["b"]}}, "not an HTTP header"),
        (_CHECK | {"HTTP": "http://a", "Interval": "1s", "Method": "GET /"}, "not an HTTP method"),
        (_CHECK | {"TCP": "a", "Interval": "1s"}, "TCP: 'a' is not host:port"),
        (_CHECK | {"TCP": "a:0", "Interval": "1s"}, "TCP: 0 is not a port"),
        (_CHECK | {"UDP": ":1", "Interval": "1s"}, "UDP: ':1' is not host:port"),
        (_CHECK | {"GRPC": "a/b", "Interval": "1s"}, "GRPC: 'a' is not host:port"),
        (_CHECK | {"GRPC": "a:1", "TLSSkipVerify": True, "Interval": "1s"}, "not supported for gRPC"),
        (_CHECK | {"SystemdUnit": "*", "Interval": "1s"}, "not the name of a systemd unit"),
        (_CHECK | {"SystemdUnit": "-H", "Interval": "1s"}, "not the name of a systemd unit"),
        (_CHECK | {"Args": "ls", "Interval": "1s"}, "Args must be a list"),
        (_CHECK | {"TTL": "-1s"}, "must be positive"),
        (_CHECK | {"TTL": "1s", "DeregisterCriticalServiceAfter": "-1m"}, "must be positive"),
        (_CHECK | {"TTL": "1s", "SuccessBeforePassing": -1}, "must not be negative"),
        (_CHECK | {"TTL": "1s", "Status": "fine"}, "Status: 'fine' is not passing"),
    ],
)
def test_a_wrong_check_is_refused_by_the_name_of_the_field(value: Any, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        consul_json.check(value)


@pytest.mark.parametrize(
    ("value", "kind", "timeout_s"),
    [
        ({"TTL": "30s"}, "ttl", 10.0),
        ({"HTTP": "https://a/b?c=d", "Interval": "60s"}, "http", 10.0),
        ({"TCP": "[::1]:80", "Interval": "3s"}, "tcp", 3.0),
        ({"UDP": "a:1", "Interval": "60s", "Timeout": "0s"}, "udp", 10.0),
        ({"GRPC": "a:1/svc", "Interval": "60s", "Timeout": "2s"}, "grpc", 2.0),
        ({"Args": ["true"], "Interval": "60s"}, "script", 30.0),
        ({"ScriptArgs": ["true"], "Interval": "5s"}, "script", 5.0),
        ({"SystemdUnit": "getty@tty1.service", "Interval": "60s"}, "systemd", 10.0),
        ({"AliasService": "web"}, "alias", 10.0),
        ({"AliasNode": "n2"}, "alias", 10.0),
    ],
)
def test_every_kind_of_check_and_its_default_timeout(value: dict[str, Any], kind: str, timeout_s: float) -> None:
    found = consul_json.check(_CHECK | value)
    assert (found.kind, found.timeout_s) == (kind, timeout_s)


def test_a_duration_may_be_nanoseconds_as_go_encodes_it() -> None:
    assert consul_json.check(_CHECK | {"TTL": 15_000_000_000}).ttl_s == 15.0


@pytest.mark.parametrize(
    ("value", "services", "checks"),
    [
        ({"service": {"name": "web", "port": 80}}, ["web"], []),
        ({"services": [{"name": "a"}, {"name": "b", "id": "b1"}]}, ["a", "b1"], []),
        ({"check": {"id": "mem", "name": "m", "args": ["x"], "interval": "10s"}}, [], ["mem"]),
        (
            {"checks": [{"id": "t", "ttl": "1s", "service_id": "web", "deregister_critical_service_after": "2m"}]},
            [],
            ["t"],
        ),
    ],
)
def test_files_of_definitions(value: Any, services: list[str], checks: list[str]) -> None:
    found, alone = consul_json.file(value)
    assert ([each.service_id for each in found], [each.id for each in alone]) == (services, checks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "expected `service`"),
        ({"node_name": "x", "service": {"name": "web"}}, 'unknown field "node_name"'),
        ({"services": [{"name": "a"}, {"port": 1}]}, r"services\[1\]: Missing service name"),
        ({"services": [{"name": "a", "port": "x"}]}, r"services\[0\].Port must be a number"),
    ],
)
def test_a_wrong_file_is_refused(value: Any, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text):
        consul_json.file(value)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b'"\xff"', b"[" * 100_000, b'{"a":1e999}', b"{} {}"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="Request decode failed"):
        decode_object(body)


_FIELDS = [
    "Name", "ID", "Tags", "Port", "Meta", "Check", "Checks", "Connect", "SidecarService", "Proxy", "Weights", "Kind", "TTL",
    "HTTP", "TCP", "GRPC", "Header", "Interval", "Timeout", "Status", "Args", "Upstreams", "TaggedAddresses", "AliasNode",
]  # fmt: skip
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["1s", "web", "a:1", "http://a", "passing"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_FIELDS), inner, max_size=6),
    max_leaves=20,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=8))
def test_junk_is_either_a_definition_that_survives_the_disk_or_refused(value: dict[str, Any]) -> None:
    for read in (consul_json.service, consul_json.check):
        try:
            found = read(value)
        except InvalidRequest:
            continue
        assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found


def test_definitions_are_kept_on_disk_without_their_defaults() -> None:
    assert msgspec.json.encode(CheckDefinition(id="a", ttl_s=1.0)) == b'{"id":"a","ttl_s":1.0}'


def test_an_empty_check_is_none() -> None:
    assert consul_json.service(_OK | {"Check": {}}).checks == ()
