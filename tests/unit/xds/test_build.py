"""From inputs to snapshots: what a proxy is given, and what is not made again."""

import re

import msgspec
import pytest

from mesh_agent.model import Action, Intention, Status, Upstream, Weights
from mesh_agent.xds.admission import Admission
from mesh_agent.xds.build import Builder
from mesh_agent.xds.inputs import Destination, Mesh
from mesh_agent.xds.naming import CLUSTER, ENDPOINTS, EXTENSION, INBOUND, LISTENER, ORDER, SECRET, identity_pattern
from tests.support.xds import inputs, instance, opened, proxy

ALLOW, DENY = Action.ALLOW, Action.DENY
CALLS_DB = (Upstream(destination_name="db", local_bind_port=5432),)
DB = Destination("dc1", "db")
DB_CLUSTER = "db.default.dc1.internal.mesh.test"


def intention(source: str, destination: str, action: Action) -> Intention:
    return Intention(source=source, destination=destination, action=action)


@pytest.mark.parametrize(
    ("source", "peer", "meant"),
    [
        ("web", "spiffe://mesh.test/ns/default/dc/dc1/svc/web", True),
        ("web", "spiffe://mesh.test/ns/default/dc/dc2/svc/web", True),
        ("web", "spiffe://mesh.test/ns/default/dc/dc1/svc/webx", False),
        ("web", "spiffe://meshxtest/ns/default/dc/dc1/svc/web", False),
        ("web", "spiffe://mesh.test/ns/default/dc/dc1/x/svc/web", False),
        ("w.b", "spiffe://mesh.test/ns/default/dc/dc1/svc/web", False),
        ("*", "spiffe://mesh.test/ns/default/dc/dc1/svc/anything", True),
        ("*", "spiffe://mesh.test/agent/client/dc/dc1/id/n1", False),
    ],
)
def test_a_source_is_a_service_in_any_datacenter_and_nothing_else(source: str, peer: str, meant: bool) -> None:
    assert bool(re.fullmatch(identity_pattern(source, "mesh.test"), peer)) is meant


def admitted(source: str, *intentions: Intention, default_allow: bool = False) -> str:
    """The chain that takes connections of `source` to api."""
    admission = Admission.of(intentions, "api", "mesh.test", default_allow=default_allow)
    peer = f"spiffe://mesh.test/ns/default/dc/dc1/svc/{source}"
    return next((chain for pattern, chain in admission.rules if re.fullmatch(pattern, peer)), "refused")


def test_each_allowed_source_has_a_chain_of_its_own() -> None:
    given = (intention("web", "api", ALLOW), intention("job", "api", ALLOW), intention("old", "api", DENY))
    assert [admitted(source, *given) for source in ("web", "job", "old", "new")] == [
        "allow:web",
        "allow:job",
        "refused",
        "refused",
    ]


def test_unnamed_sources_share_chains_by_their_last_character_and_an_exception_replaces_one() -> None:
    everybody = intention("*", "api", ALLOW)
    before = {source: admitted(source, everybody) for source in ("web", "lab", "other", "Ünïcode_")}
    assert before == {"web": "allow:*b", "lab": "allow:*b", "other": "allow:*r", "Ünïcode_": "allow:*"}
    after = {source: admitted(source, everybody, intention("web", "api", DENY)) for source in before}
    assert after == {"web": "refused", "lab": "allow:*b!web", "other": "allow:*r", "Ünïcode_": "allow:*"}
    assert {source: admitted(source, default_allow=True) for source in before} == before


def test_an_exact_intention_wins_over_the_wildcards_before_and_after_it() -> None:
    given = (intention("*", "*", ALLOW), intention("*", "api", DENY), intention("web", "api", ALLOW))
    assert (admitted("web", *given), admitted("job", *given)) == ("allow:web", "refused")
    assert admitted("web", intention("web", "api", DENY), intention("web", "*", ALLOW)) == "refused"


def test_a_listener_has_a_chain_even_if_nobody_is_allowed() -> None:
    snapshot = Builder().build(inputs(proxy()))
    listener = opened(snapshot.table(LISTENER).resources[INBOUND])
    assert [chain["name"] for chain in listener["filter_chains"]] == ["nobody"]


def test_only_instances_that_may_be_used_are_endpoints_with_their_weights() -> None:
    given = (
        instance("db", 1, weights=Weights(passing=5)),
        instance("db", 2, Status.CRITICAL),
        instance("db", 3, Status.WARNING, weights=Weights(warning=2)),
        instance("db", 4, Status.WARNING, weights=Weights(warning=0)),
        instance("db", 5, address="192.0.2.9"),
    )
    snapshot = Builder().build(inputs(proxy(upstreams=CALLS_DB), endpoints={DB: given}))
    found = opened(snapshot.table(ENDPOINTS).resources[DB_CLUSTER])["endpoints"][0]["lb_endpoints"]
    addresses = [each["endpoint"]["address"]["socket_address"]["address"] for each in found]
    assert addresses == ["10.0.1.1", "10.0.1.3", "192.0.2.9"]
    assert [each["load_balancing_weight"] for each in found] == [5, 2, 1]


def test_an_upstream_that_is_not_known_yet_has_no_endpoints_but_is_there() -> None:
    snapshot = Builder().build(inputs(proxy(upstreams=CALLS_DB)))
    assert "endpoints" not in opened(snapshot.table(ENDPOINTS).resources[DB_CLUSTER])


def test_equal_inputs_give_equal_versions_on_every_agent() -> None:
    given = inputs(proxy(upstreams=CALLS_DB), endpoints={DB: (instance("db", 1),)})
    first, second = Builder().build(given), Builder().build(given)
    assert {kind: first.table(kind).versions() for kind in ORDER} == {
        kind: second.table(kind).versions() for kind in ORDER
    }


def test_only_the_part_that_changed_is_made_again() -> None:
    builder, sidecar = Builder(), proxy(upstreams=CALLS_DB)
    endpoints = {DB: (instance("db", 1),)}
    before = builder.build(inputs(sidecar, endpoints=endpoints))

    def changed_kinds(**changes: object) -> set[str]:
        after = builder.build(inputs(sidecar, **({"endpoints": endpoints} | changes)))  # type: ignore[arg-type]
        found = {kind for kind in ORDER if after.table(kind) is not before.table(kind)}
        builder.build(inputs(sidecar, endpoints=endpoints))
        return found

    assert changed_kinds() == set()
    # The tables before are not the very objects that are made when it changes back, so each kind is looked at on a fresh builder.
    for kinds, changes in (
        ({ENDPOINTS}, {"endpoints": {DB: (instance("db", 2),)}}),
        ({SECRET}, {"certificate": "RENEWED"}),
        ({LISTENER}, {"intentions": (intention("web", "api", ALLOW),)}),
        (set(), {"intentions": (intention("web", "elsewhere", ALLOW),)}),
    ):
        builder = Builder()
        before = builder.build(inputs(sidecar, endpoints=endpoints))
        assert changed_kinds(**changes) == kinds


def test_an_intention_of_an_http_service_changes_its_filter_and_nothing_else() -> None:
    builder, sidecar = Builder(), proxy(config={"protocol": "http"})
    before = builder.build(inputs(sidecar))
    after = builder.build(inputs(sidecar, intentions=(intention("web", "api", ALLOW),)))
    assert {kind for kind in ORDER if after.table(kind) is not before.table(kind)} == {EXTENSION}


def test_a_proxy_without_a_local_port_only_calls_others() -> None:
    snapshot = Builder().build(inputs(proxy(local_port=0, upstreams=CALLS_DB)))
    assert list(snapshot.table(CLUSTER).resources) == [DB_CLUSTER]
    assert [name.split(":")[0] for name in snapshot.table(LISTENER).resources] == ["upstream"]


def test_two_upstreams_to_one_destination_share_its_cluster() -> None:
    twice = (*CALLS_DB, msgspec.structs.replace(CALLS_DB[0], local_bind_port=5433))
    snapshot = Builder().build(inputs(proxy(local_port=0, upstreams=twice)))
    assert len(snapshot.table(CLUSTER).resources) == 1
    assert len(snapshot.table(LISTENER).resources) == 2


def test_another_datacenter_has_an_identity_of_its_own() -> None:
    far = (Upstream(destination_name="db", datacenter="dc2", local_bind_port=5432),)
    snapshot = Builder().build(inputs(proxy(local_port=0, upstreams=far), mesh=Mesh("mesh.test", "dc1")))
    cluster = opened(snapshot.table(CLUSTER).resources["db.default.dc2.internal.mesh.test"])
    context = cluster["transport_socket"]["typed_config"]["common_tls_context"]
    validation = context["combined_validation_context"]["default_validation_context"]
    assert validation["match_typed_subject_alt_names"] == [
        {"san_type": "URI", "matcher": {"exact": "spiffe://mesh.test/ns/default/dc/dc2/svc/db"}}
    ]
    assert context["tls_params"]["tls_maximum_protocol_version"] == "TLSv1_3"
