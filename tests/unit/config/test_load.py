"""Settings: file < environment < flags, and every mistake named with its place and key."""

from pathlib import Path

import pytest

from mesh_agent.config import load
from mesh_agent.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mesh.toml"
    path.write_text(text)
    return path


def test_flags_beat_the_environment_and_the_environment_beats_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'node_name = "file"\ndatacenter = "dc1"\n[ports]\nhttp = 1\ndns = 2\nhttps = 3\n')
    config = load(path, {"MESH_PORTS__HTTP": "10", "MESH_PORTS__DNS": "20", "PATH": "/"}, {"ports.dns": 200})
    assert (config.ports.https, config.ports.http, config.ports.dns) == (3, 10, 200)


def test_lists_tables_and_booleans_of_the_environment(tmp_path: Path) -> None:
    environ = {
        "MESH_RETRY_JOIN": "10.0.0.1, 10.0.0.2",
        "MESH_SERVER": "true",
        "MESH_NODE_META": '{"rack": "r1"}',
        "MESH_DNS__NODE_TTL_S": "7",
    }
    config = load(write(tmp_path, 'node_name = "n"'), environ, {})
    assert config.retry_join == ("10.0.0.1", "10.0.0.2")
    assert config.server
    assert config.node_meta == {"rack": "r1"}
    assert config.dns.node_ttl_s == 7


def test_secrets_are_read_from_their_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("AAECAwQFBgcICQoLDA0ODw==\n")
    config = load(write(tmp_path, f'node_name = "n"\nencrypt_file = "{tmp_path}/key"'), {}, {})
    assert config.encrypt == "AAECAwQFBgcICQoLDA0ODw=="


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('node_name = "n"\ncolour = 1', "colour"),
        ('node_name = "n"\n[ports]\nhttpp = 1', "httpp"),
        ('node_name = "n"\n[ports]\nhttp = "x"', "ports.http"),
        ("node_name = ", "TOML"),
        ('datacenter = "dc1"', "node_name"),
        ('node_name = "a b"', "node_name"),
        ('node_name = "n"\nencrypt = "short"', "encrypt"),
        ('node_name = "n"\njoin_token_file = "/does/not/exist"', "join_token_file"),
        ('node_name = "n"\ndatacenter = "DC1"', "lower case"),
        ('node_name = "n"\ndatacenter = "service"', "datacenter is 'service'"),
        ('node_name = "n"\ndatacenter = "a.b"', "datacenter is 'a.b'"),
        (f'node_name = "{"n" * 254}"', "node_name has 254 characters"),
        ('node_name = "n"\ntrust_domain = "Mesh"', "trust_domain is 'Mesh'"),
        ('node_name = "n"\ndomain = "a..b"', "domain is 'a..b'"),
        ('node_name = "n"\ndomain = ""', "domain is ''"),
        ('node_name = "n"\ndata_dir = ""', "data_dir must not be empty"),
        ('node_name = "n"\nbind_addr = "host"', "bind_addr is 'host'"),
        ('node_name = "n"\nbind_addr = "0.0.0.0"', "advertise_addr is missing"),
        ('node_name = "n"\nclient_addr = ""', "client_addr is ''"),
        ('node_name = "n"\ndns_addrs = ["x"]', "dns_addrs holds 'x'"),
        ('node_name = "n"\nretry_join = ["a:b:c"]', "retry_join holds 'a:b:c'"),
        ('node_name = "n"\nretry_join_wan = ["a:99999"]', "retry_join_wan holds 'a:99999'"),
        ('node_name = "n"\nretry_interval_s = 0', "retry_interval_s is 0"),
        ('node_name = "n"\nmax_body_bytes = 1', "max_body_bytes is 1"),
        ('node_name = "n"\n[dns]\nrecursors = ["x y"]', "dns.recursors holds 'x y'"),
        ('node_name = "n"\n[dns]\nservice_ttl_s = -1', "dns.service_ttl_s is -1"),
        ('node_name = "n"\n[ca]\nleaf_ttl_s = -5.0', "ca.leaf_ttl_s is -5"),
        ('node_name = "n"\n[ports]\nhttp = 65536', "ports.http is 65536"),
        ('node_name = "n"\n[ports]\nhttp = -2', "ports.http is -2"),
        ('node_name = "n"\n[ports]\nhttp = 8600', "ports.dns is 8600, which is ports.http already"),
        ('node_name = "n"\n[ports]\nsidecar_min = 30000', "ports.sidecar_min is 30000"),
        ('node_name = "n"\n[kubernetes]\napi = "10.0.0.1:6443"', "kubernetes.api"),
        ('node_name = "n"\n[kubernetes]\napi = "https://10.0.0.1:6443"', "kubernetes.ca_file"),
        ('node_name = "n"\n[kubernetes]\napi = "http://x"\ncontrollers = ["mesh-controller"]', "namespace/name"),
        ('node_name = "n"\n[kubernetes]\ninjectors = ["a/b/c"]', "kubernetes.injectors: 'a/b/c'"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=named) as raised:
        load(path, {}, {})
    assert str(raised.value).startswith(f"{path}: ")


def test_settings_of_every_kind_are_accepted(tmp_path: Path) -> None:
    text = """
    node_name = "Node-1.example.com"
    bind_addr = "0.0.0.0"
    advertise_addr = "fd00::1"
    client_addr = "localhost"
    domain = "mesh.example.com."
    alt_domain = ""
    retry_join = ["a", "a.example:8301", "10.0.0.1", "10.0.0.1:1", "fd00::2", "[fd00::2]:8301"]
    [ports]
    http = 0
    https = 0
    dns = -1
    [dns]
    recursors = ["192.0.2.1", "192.0.2.1:53", "[2001:db8::1]:53", "2001:db8::1"]
    """
    assert load(write(tmp_path, text), {}, {}).node_name == "Node-1.example.com"


@pytest.mark.parametrize(("name", "value"), [("MESH_COLOUR", "1"), ("MESH_PORTS__HTTP", "x"), ("MESH_NODE_META", "{")])
def test_a_mistake_in_the_environment_names_the_variable(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load(write(tmp_path, 'node_name = "n"'), {name: value}, {})


def test_variables_of_the_command_line_are_not_settings(tmp_path: Path) -> None:
    assert load(write(tmp_path, 'node_name = "n"'), {"MESH_HTTP_ADDR": "x", "MESH_LAB_HOME": "y"}, {}).node_name == "n"


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "none.toml", {}, {})
