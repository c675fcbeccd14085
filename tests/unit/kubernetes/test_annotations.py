"""Annotations of pods: ours, Consul's, and what is said about mistakes."""

import pytest

from mesh_agent.errors import InvalidRequest
from mesh_agent.kubernetes.annotations import PREFIX, Wishes, read, service_of
from mesh_agent.model import Upstream

CONSUL = "consul.hashicorp.com/"


def test_a_pod_that_says_nothing_wishes_nothing() -> None:
    assert read({"team": "a"}) == Wishes()


def test_every_annotation_is_read() -> None:
    found = read(
        {
            f"{PREFIX}inject": "true",
            f"{PREFIX}service": "api",
            f"{PREFIX}service-port": "http",
            f"{PREFIX}service-protocol": "HTTP",
            f"{PREFIX}service-tags": "v1, blue",
            f"{PREFIX}service-upstreams": "db:5432, cache:6379:dc2",
            f"{PREFIX}exclude-outbound-cidrs": "10.9.0.0/16,192.0.2.7",
            f"{PREFIX}exclude-outbound-ports": "22,123",
            f"{PREFIX}exclude-inbound-ports": "9100,9100",
        }
    )
    assert found == Wishes(
        inject=True,
        service="api",
        port="http",
        protocol="http",
        tags=("v1", "blue"),
        upstreams=(
            Upstream(destination_name="db", local_bind_port=5432),
            Upstream(destination_name="cache", local_bind_port=6379, datacenter="dc2"),
        ),
        exclude_outbound_cidrs=("10.9.0.0/16", "192.0.2.7/32"),
        exclude_outbound_ports=(22, 123),
        exclude_inbound_ports=(9100,),
    )


def test_annotations_of_consul_mean_the_same() -> None:
    found = read(
        {
            f"{CONSUL}connect-inject": "false",
            f"{CONSUL}connect-service": "api",
            f"{CONSUL}connect-service-port": "8080",
            f"{CONSUL}connect-service-upstreams": "db:5432",
            f"{CONSUL}service-tags": "v1",
            f"{CONSUL}transparent-proxy-exclude-outbound-ports": "22",
        }
    )
    assert (found.inject, found.service, found.port, found.tags) == (False, "api", "8080", ("v1",))
    assert found.upstreams == (Upstream(destination_name="db", local_bind_port=5432),)
    assert found.exclude_outbound_ports == (22,)


def test_our_annotation_beats_consuls() -> None:
    assert read({f"{PREFIX}inject": "false", f"{CONSUL}connect-inject": "true"}).inject is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inject", "perhaps"),
        ("service", "Not_A_Name"),
        ("service-port", "70000"),
        ("service-port", "80,81"),
        ("service-protocol", "smtp"),
        ("service-upstreams", "db"),
        ("service-upstreams", "db:port"),
        ("service-upstreams", "db:1:dc1:x"),
        ("exclude-outbound-cidrs", "10.0.0.0/40"),
        ("exclude-outbound-ports", "0"),
        ("exclude-inbound-ports", "http"),
        ("service-port", "9" * 5000),
        ("service-port", "\u0668\u0660"),
        ("service-upstreams", "db:" + "1" * 5000),
        ("exclude-inbound-ports", "1" * 5000),
    ],
)
def test_a_mistake_is_named_with_its_annotation(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=PREFIX + name):
        read({PREFIX + name: value})


def test_the_service_account_is_the_service() -> None:
    assert service_of("api", Wishes()) == "api"
    assert service_of("api", Wishes(service="api")) == "api"


@pytest.mark.parametrize("account", ["", "default"])
def test_the_default_account_is_nobody(account: str) -> None:
    with pytest.raises(InvalidRequest, match="serviceAccountName"):
        service_of(account, Wishes())


def test_a_service_that_the_account_does_not_prove_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="must be the same"):
        service_of("web", Wishes(service="api"))
