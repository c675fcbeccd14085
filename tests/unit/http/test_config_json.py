"""Config entries as clients write them."""

import json
from typing import Any

import pytest

from mesh_agent.catalog.config_entries import Found
from mesh_agent.errors import InvalidRequest
from mesh_agent.http.config_json import parse, render
from mesh_agent.model import Action


def given(**entry: Any) -> Any:
    return parse(json.dumps(entry).encode(), 5.0)


def test_names_may_be_written_in_any_case() -> None:
    one = parse(b'{"Kind": "service-defaults", "Name": "api", "Protocol": "HTTP"}', 5.0)
    assert parse(b'{"kind": "service-defaults", "name": "api", "protocol": "http"}', 5.0) == one
    assert one.entry.settings == {"Protocol": "http"}


def test_proxy_defaults_are_global_with_or_without_the_name() -> None:
    assert given(Kind="proxy-defaults", Config={"protocol": "grpc", "x": 1}) == given(
        Kind="proxy-defaults", Name="global", Config={"protocol": "grpc", "x": 1}
    )


def test_what_was_read_can_be_written_again() -> None:
    entry = {
        "Kind": "service-intentions",
        "Name": "api",
        "Sources": [{"Name": "web", "Action": "allow", "Description": "why"}, {"Name": "*", "Action": "deny"}],
        "Meta": {"owner": "ann"},
    }
    one = given(**entry)
    assert [(each.source, each.destination, each.action) for each in one.sources] == [
        ("web", "api", Action.ALLOW),
        ("*", "api", Action.DENY),
    ]
    shown = render(Found(one.entry, one.sources, 3, 4))
    assert shown["Sources"][0] == {
        "Name": "web",
        "Action": "allow",
        "Precedence": 9,
        "Type": "consul",
        "Description": "why",
    }
    assert (shown["CreateIndex"], shown["ModifyIndex"], shown["Meta"]) == (3, 4, {"owner": "ann"})
    assert given(**shown) == one


def test_empty_values_that_clients_of_consul_send_ask_for_nothing() -> None:
    entry = given(
        Kind="service-defaults",
        Name="api",
        Protocol="http",
        TransparentProxy={"OutboundListenerPort": 0},
        MeshGateway={},
        Expose={"Checks": False, "Paths": None},
        Namespace="",
        CreateIndex=4,
    )
    assert entry.entry.settings == {"Protocol": "http"}


def test_nesting_is_no_way_to_break_it() -> None:
    """Custom resources come from every user of a cluster, and keep fields that nobody knows."""
    for field, kind in (("TransparentProxy", "service-defaults"), ("Config", "proxy-defaults")):
        deep: Any = 0
        for _ in range(900):
            deep = {"a": deep}
        with pytest.raises(InvalidRequest, match="more than 64 levels deep"):
            given(Kind=kind, Name="global", **{field: deep})


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"Kind": "service-router", "Name": "api"}, "knows proxy-defaults, service-defaults, service-intentions"),
        ({"Name": "api"}, "invalid config entry kind"),
        ({"Kind": "service-defaults"}, "Name must be set"),
        ({"Kind": "service-defaults", "Name": "*"}, "use proxy-defaults"),
        ({"Kind": "service-defaults", "Name": "a", "Protocol": "udp"}, "use one of tcp, http, http2, grpc"),
        ({"Kind": "service-defaults", "Name": "a", "MeshGateway": {"Mode": "local"}}, "MeshGateway is not supported"),
        ({"Kind": "service-defaults", "Name": "a", "Protokol": "tcp"}, 'unknown field "Protokol"'),
        ({"Kind": "service-defaults", "Name": "a", "Meta": {"a": 1}}, "Meta.a must be a string"),
        ({"Kind": "proxy-defaults", "Name": "web"}, "the only one that counts is 'global'"),
        ({"Kind": "proxy-defaults", "Config": {"protocol": "x"}}, "Config.protocol"),
        ({"Kind": "service-intentions", "Name": "a"}, "at least one source"),
        ({"Kind": "service-intentions", "Name": "a", "Sources": [{"Action": "allow"}]}, "Sources[0]: Name"),
        ({"Kind": "service-intentions", "Name": "a", "Sources": [{"Name": "b"}]}, "Sources[0]: Action"),
        (
            {"Kind": "service-intentions", "Name": "a", "Sources": [{"Name": "b", "Permissions": [{}]}]},
            "Permissions",
        ),
        (
            {"Kind": "service-intentions", "Name": "a", "Sources": [{"Name": "b", "Action": "deny"}] * 2},
            "more than once",
        ),
        (
            {"Kind": "service-intentions", "Name": "a", "Sources": [{"Name": "b", "Action": "deny", "Peer": "x"}]},
            "Peer is not supported",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_a_text_that_helps(entry: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        given(**entry)
    assert text in str(refused.value)
