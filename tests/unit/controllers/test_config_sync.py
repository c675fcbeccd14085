"""Custom resources as config entries: who owns what, in which order, and what the resource is told."""

import functools
from typing import Any

import pytest

from mesh_agent.controllers import config_sync
from mesh_agent.controllers.config_sync import (
    FINALIZER,
    KINDS,
    SYNCED,
    Decision,
    Outcome,
    Remove,
    Write,
    decide,
    with_status,
)
from tests.support.kubernetes_objects import Json, meta

PROXY, DEFAULTS, INTENTIONS = KINDS
SOURCES = [{"name": "web", "action": "allow"}, {"name": "*", "action": "deny", "description": "why"}]


def resource(spec: Json | None = None, name: str = "api", *, finalizer: bool = True, **more: Any) -> Json:
    finalizers = ["other/one", FINALIZER] if finalizer else ["other/one"]
    made = {"metadata": meta(name, "shop", finalizers=finalizers, generation=2, **more)}
    return made | {"spec": {"protocol": "http"} if spec is None else spec}


def nested(depth: int) -> Json:
    """An object in an object, and so on."""
    start: Json = {}
    return functools.reduce(lambda inner, _: {"a": inner}, range(depth), start)


def entry(kind: Any, given: Json, **more: Any) -> Json:
    """The entry of a resource as the mesh shows it."""
    return {**config_sync.entry_of(kind, given, "c1"), "CreateIndex": 3, "ModifyIndex": 9} | more


def test_specs_become_entries() -> None:
    assert config_sync.entry_of(DEFAULTS, resource(), "c1") == {
        "Kind": "service-defaults",
        "Name": "api",
        "protocol": "http",
        "Meta": {"external-source": "kubernetes", "k8s-cluster": "c1", "k8s-namespace": "shop", "k8s-name": "api"},
    }
    spec = {"destination": {"name": "db", "namespace": "x"}, "sources": SOURCES}
    made = config_sync.entry_of(INTENTIONS, resource(spec, "db-callers"), "c1")
    assert (made["Kind"], made["Name"], made["sources"]) == ("service-intentions", "db", SOURCES)
    assert "destination" not in made
    made = config_sync.entry_of(PROXY, resource({"config": {"protocol": "grpc"}}, "global"), "c1")
    assert (made["Name"], made["config"]) == ("global", {"protocol": "grpc"})


@pytest.mark.parametrize(
    ("kind", "given", "text"),
    [
        (DEFAULTS, resource({"protocol": "udp"}), "use one of"),
        (DEFAULTS, resource({"meshGateway": {"mode": "local"}}), "meshgateway is not supported"),
        (DEFAULTS, resource({"protokol": "tcp"}), "unknown field"),
        (PROXY, resource({"config": nested(980)}, "global"), "levels deep"),
        (PROXY, resource({}, "web"), "'global'"),
        (INTENTIONS, resource({"sources": SOURCES}), "spec.destination.name"),
        (
            INTENTIONS,
            resource({"destination": {"name": "a", "peer": "x"}, "sources": SOURCES}),
            "peer is not supported",
        ),
        (INTENTIONS, resource({"destination": {"name": "a"}, "sources": []}), "at least one source"),
    ],
)
def test_a_spec_that_cannot_be_is_told_and_changes_nothing(kind: Any, given: Json, text: str) -> None:
    decision = decide(kind, given, {}, "c1")
    assert (decision.change, decision.add_finalizer, decision.outcome.reason) == (None, False, "InvalidSpec")
    assert text in decision.outcome.message.lower() or text in decision.outcome.message


def test_the_finalizer_comes_before_the_entry() -> None:
    given = resource(finalizer=False)
    decision = decide(DEFAULTS, given, {}, "c1")
    assert decision == Decision(add_finalizer=True, change=Write(config_sync.entry_of(DEFAULTS, given, "c1"), 0))
    changed = config_sync.with_finalizer(given, present=True)
    assert changed["metadata"]["finalizers"] == ["other/one", FINALIZER]
    assert config_sync.with_finalizer(changed, present=False) == given


def test_an_entry_that_is_as_it_should_be_is_not_written() -> None:
    given = resource({"destination": {"name": "api"}, "sources": SOURCES})
    held = entry(
        INTENTIONS,
        given,
        Sources=[
            {
                "Name": each["name"],
                "Action": each["action"],
                "Description": each.get("description", ""),
                "Precedence": 9,
                "Type": "consul",
            }
            for each in reversed(SOURCES)
        ],
    )
    del held["sources"]
    assert decide(INTENTIONS, given, {"api": held}, "c1") == Decision()


def test_an_own_entry_that_differs_is_written_from_the_version_that_was_seen() -> None:
    given = resource()
    held = entry(DEFAULTS, given, protocol="tcp")
    assert decide(DEFAULTS, given, {"api": held}, "c1").change == Write(config_sync.entry_of(DEFAULTS, given, "c1"), 9)


@pytest.mark.parametrize(
    "owner",
    [
        {},
        {"external-source": "kubernetes", "k8s-cluster": "c2", "k8s-namespace": "shop", "k8s-name": "api"},
        {"external-source": "kubernetes", "k8s-cluster": "c1", "k8s-namespace": "b", "k8s-name": "api"},
    ],
)
def test_an_entry_of_somebody_else_is_refused(owner: dict[str, str]) -> None:
    given = resource()
    held = entry(DEFAULTS, given, Meta=owner)
    decision = decide(DEFAULTS, given, {"api": held}, "c1")
    assert (decision.change, decision.outcome.reason) == (None, "ExternallyManaged")
    assert ("b/api" if owner.get("k8s-namespace") == "b" else "belongs to") in decision.outcome.message
    leaving = resource(deletionTimestamp="now")
    assert decide(DEFAULTS, leaving, {"api": held}, "c1") == Decision(release=True), (
        "nor is it deleted with the resource"
    )


def test_an_entry_is_taken_over_only_when_told_and_only_when_it_says_the_same() -> None:
    given = resource(annotations={"mesh.openmesh.io/migrate-entry": "true"})
    same, other = entry(DEFAULTS, given, Meta={}), entry(DEFAULTS, given, Meta={}, protocol="tcp")
    assert decide(DEFAULTS, given, {"api": same}, "c1").change == Write(config_sync.entry_of(DEFAULTS, given, "c1"), 9)
    assert decide(DEFAULTS, given, {"api": other}, "c1").outcome.reason == "ExternallyManaged"
    far = entry(DEFAULTS, given, Meta={"external-source": "kubernetes", "k8s-cluster": "c2"})
    assert decide(DEFAULTS, given, {"api": far}, "c1").outcome.reason == "ExternallyManaged"


def test_a_deleted_resource_takes_its_entry_with_it_and_goes_after_it() -> None:
    given = resource(deletionTimestamp="now")
    held = entry(DEFAULTS, given)
    assert decide(DEFAULTS, given, {"api": held}, "c1") == Decision(
        change=Remove("service-defaults", "api", 9), release=True
    )
    assert decide(DEFAULTS, given, {}, "c1") == Decision(release=True), "a crash came between the two"
    gone = resource(deletionTimestamp="now", finalizer=False)
    assert decide(DEFAULTS, gone, {"api": held}, "c1") == Decision(), "somebody else's finalizer holds it"


def test_entries_that_no_resource_asks_for_are_deleted() -> None:
    now = resource({"destination": {"name": "new"}, "sources": SOURCES}, "callers")
    before = resource({"destination": {"name": "old"}, "sources": SOURCES}, "callers")
    forgotten = resource({"destination": {"name": "lost"}, "sources": SOURCES}, "forgotten")
    entries = {"new": entry(INTENTIONS, now), "old": entry(INTENTIONS, before), "lost": entry(INTENTIONS, forgotten)}
    entries["foreign"] = entry(INTENTIONS, now, Name="foreign", Meta={})
    entries["far"] = entry(INTENTIONS, now, Name="far", Meta={"external-source": "kubernetes", "k8s-cluster": "c2"})
    found = config_sync.orphans(INTENTIONS, [now], entries, "c1")
    assert [each.name for each in found] == ["lost", "old"]


def test_what_belongs_to_a_resource_that_leaves_is_left_to_it() -> None:
    leaving = resource(deletionTimestamp="now")
    assert config_sync.orphans(DEFAULTS, [leaving], {"api": entry(DEFAULTS, leaving)}, "c1") == []


# the status

NOW = "2023-11-14T22:13:20Z"
WALL = 1_700_000_000.7


def test_the_first_success_is_told_with_its_time() -> None:
    told = with_status(resource(), SYNCED, WALL, wrote=True)
    assert told is not None
    assert told["status"] == {
        "conditions": [
            {
                "type": "Synced",
                "status": "True",
                "reason": "Synced",
                "message": SYNCED.message,
                "observedGeneration": 2,
                "lastTransitionTime": NOW,
            }
        ],
        "lastSyncedTime": NOW,
    }
    assert with_status(told, SYNCED, WALL + 60, wrote=False) is None, "a status that is true is not written again"
    again = with_status(told, SYNCED, WALL + 60, wrote=True)
    assert again is not None
    assert again["status"]["lastSyncedTime"] == "2023-11-14T22:14:20Z"
    assert again["status"]["conditions"][0]["lastTransitionTime"] == NOW


def test_a_failure_keeps_the_time_of_the_last_success_and_other_conditions() -> None:
    given = with_status(resource(), SYNCED, WALL, wrote=True)
    assert given is not None
    given["status"]["conditions"].insert(0, {"type": "Other", "status": "True"})
    told = with_status(given, Outcome(False, "Refused", "no"), WALL + 60, wrote=False)
    assert told is not None
    other, condition = told["status"]["conditions"]
    assert (other["type"], condition["status"], condition["reason"]) == ("Other", "False", "Refused")
    assert condition["lastTransitionTime"] == "2023-11-14T22:14:20Z"
    assert told["status"]["lastSyncedTime"] == NOW
    assert not config_sync.is_waiting(told)
    assert config_sync.is_waiting({**told, "metadata": {**told["metadata"], "generation": 3}})
    assert config_sync.is_waiting(resource())
