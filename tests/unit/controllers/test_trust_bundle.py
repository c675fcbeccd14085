"""Which namespaces get the trust bundle, and which lose it."""

from typing import Any

import pytest

from mesh_agent.controllers.objects import MANAGED_BY, MANAGER, Create, Delete, Replace
from mesh_agent.controllers.trust_bundle import plan
from mesh_agent.injector.names import CA_CONFIG_MAP, CA_KEY
from tests.support.kubernetes_objects import config_map, meta, namespace

ROOTS = "roots\n"
IN = {"mesh.openmesh.io/inject": "enabled"}
OURS = {MANAGED_BY: MANAGER}


def bundle(where: str, text: str = ROOTS, **more: Any) -> dict[str, Any]:
    return config_map(CA_CONFIG_MAP, where, {CA_KEY: text}, **more)


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (IN, True),
        ({"mesh.openmesh.io/inject": "true"}, True),
        ({"consul.hashicorp.com/connect-inject": "true"}, True),
        ({"mesh.openmesh.io/inject": "disabled", "consul.hashicorp.com/connect-inject": "true"}, False),
        ({"mesh.openmesh.io/inject": "disabled"}, False),
        ({}, False),
    ],
)
def test_a_namespace_takes_part_by_its_label_ours_before_consul_s(labels: dict[str, str], wanted: bool) -> None:
    steps = plan([namespace("shop", labels=labels)], [], [], ROOTS, ())
    assert [type(each) for each in steps] == ([Create] if wanted else [])


def test_a_new_bundle_is_known_as_ours() -> None:
    (step,) = plan([namespace("shop", labels=IN)], [], [], ROOTS, ())
    assert isinstance(step, Create)
    assert step.path == "/api/v1/namespaces/shop/configmaps"
    assert step.body["metadata"] == {"name": CA_CONFIG_MAP, "namespace": "shop", "labels": OURS}
    assert step.body["data"] == {CA_KEY: ROOTS}


def test_a_namespace_with_an_injected_pod_takes_part_until_the_pod_is_gone() -> None:
    pod = {"metadata": meta("web-1", "shop")}
    held = bundle("shop", labels=OURS)
    assert [type(each) for each in plan([namespace("shop")], [pod], [], ROOTS, ())] == [Create]
    assert plan([namespace("shop")], [pod], [held], ROOTS, ()) == []
    assert [type(each) for each in plan([namespace("shop")], [], [held], ROOTS, ())] == [Delete]


def test_the_own_namespace_and_patterns_have_one_without_a_label() -> None:
    steps = plan(
        [namespace(each) for each in ("mesh-system", "team-a", "shop")], [], [], ROOTS, ("mesh-system", "team-*")
    )
    assert [each.path.split("/")[4] for each in steps] == ["mesh-system", "team-a"]


def test_nothing_is_to_be_done_when_all_is_as_it_should_be() -> None:
    assert plan([namespace("shop", labels=IN)], [], [bundle("shop")], ROOTS, ()) == []


def test_changed_roots_are_written_from_the_version_that_was_read_and_leave_the_rest() -> None:
    held = bundle("shop", "old")
    held["data"]["other"] = "kept"
    (step,) = plan([namespace("shop", labels=IN)], [], [held], ROOTS, ())
    assert isinstance(step, Replace)
    assert step.body["metadata"]["resourceVersion"] == "7"
    assert step.body["data"] == {CA_KEY: ROOTS, "other": "kept"}


def test_a_namespace_that_leaves_loses_exactly_the_bundle_that_was_seen() -> None:
    (step,) = plan([namespace("shop")], [], [bundle("shop", labels=OURS)], ROOTS, ())
    assert step == Delete("/api/v1/namespaces/shop/configmaps/mesh-ca-bundle", "uid-shop-mesh-ca-bundle", "7")


def test_a_bundle_that_others_made_is_not_deleted() -> None:
    assert plan([namespace("shop")], [], [bundle("shop")], ROOTS, ()) == []


def test_a_namespace_that_is_being_deleted_is_left_alone() -> None:
    leaving = namespace("shop", labels=IN, deletionTimestamp="2026-01-01T00:00:00Z")
    assert plan([leaving], [], [], ROOTS, ()) == []


def test_without_roots_no_bundle_is_emptied() -> None:
    assert plan([namespace("shop", labels=IN)], [], [bundle("shop")], "", ()) == []
