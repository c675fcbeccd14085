"""Settings as the chart gives them."""

import json

import pytest

from mesh_agent.controllers.settings import load
from mesh_agent.errors import ConfigError


def test_they_are_a_json_object() -> None:
    given = {
        "to_mesh": {"by_default": True, "cluster_ip": False, "node_port_addresses": "InternalOnly"},
        "to_kubernetes": {"enabled": True, "datacenters": ["dc2"]},
        "bundle_namespaces": ["team-*"],
    }
    found = load(json.dumps(given), cluster="c1", namespace="mesh-system", identity="a")
    assert (found.cluster, found.namespace, found.identity) == ("c1", "mesh-system", "a")
    assert (found.to_mesh.by_default, found.to_mesh.cluster_ip, found.to_mesh.namespace_suffix) == (True, False, True)
    assert found.to_kubernetes.datacenters == ("dc2",)
    assert found.bundle_namespaces == ("team-*",)


@pytest.mark.parametrize(
    ("text", "cluster", "wrong"),
    [
        ("{", "c1", "settings are wrong"),
        ('{"to_mesh": {"by_defualt": true}}', "c1", "by_defualt"),
        ('{"to_mesh": {"node_port_addresses": "Any"}}', "c1", "ExternalFirst"),
        ("{}", "C 1", "cluster's name"),
    ],
)
def test_a_typo_is_an_error(text: str, cluster: str, wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        load(text, cluster=cluster, namespace="mesh-system", identity="a")
