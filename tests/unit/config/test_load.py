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
        ('node_name = "n"\n[kubernetes]\napi = "10.0.0.1:6443"', "kubernetes.api"),
        ('node_name = "n"\n[kubernetes]\napi = "https://10.0.0.1:6443"', "kubernetes.ca_file"),
        ('node_name = "n"\n[kubernetes]\napi = "http://x"\ncontrollers = ["mesh-controller"]', "namespace/name"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=named):
        load(path, {}, {})


@pytest.mark.parametrize(("name", "value"), [("MESH_COLOUR", "1"), ("MESH_PORTS__HTTP", "x"), ("MESH_NODE_META", "{")])
def test_a_mistake_in_the_environment_names_the_variable(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load(write(tmp_path, 'node_name = "n"'), {name: value}, {})


def test_variables_of_the_command_line_are_not_settings(tmp_path: Path) -> None:
    assert load(write(tmp_path, 'node_name = "n"'), {"MESH_HTTP_ADDR": "x", "MESH_LAB_HOME": "y"}, {}).node_name == "n"


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "none.toml", {}, {})
