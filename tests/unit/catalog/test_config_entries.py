"""Config entries: what they say of a service, and one truth with the intentions."""

from typing import Any

import msgspec
import pytest

from mesh_agent.catalog import config_entries, federation, keys
from mesh_agent.catalog.config_entries import PROXY_DEFAULTS, SERVICE_DEFAULTS, SERVICE_INTENTIONS, Changes
from mesh_agent.catalog.view import View
from mesh_agent.hlc import HybridClock
from mesh_agent.model import Action, ConfigEntry, Intention, Proxy, Record, Service, Topic, Upstream

FEDERATED = Topic("dc1", "federated")


class Stored:
    """A View that is written to as a server's store would be."""

    def __init__(self) -> None:
        self.view = View("dc1")
        self.view.load(1, [])
        self._clock = HybridClock("dc1")

    def write(self, changes: Changes) -> None:
        revision = self.view.index + 1
        records = []
        for key, value in changes.items():
            envelope = (
                federation.tombstone(self._clock, 1.0) if value is None else federation.put(value, self._clock, 1.0)
            )
            before = self.view.record(key)
            records.append(Record(key, envelope, before.created if before else revision, revision))
        self.view.apply(revision, records, [])

    def entry(self, kind: str, name: str, *sources: Intention, meta: dict[str, str] | None = None, **settings: Any):  # type: ignore[no-untyped-def]
        entry = ConfigEntry(kind=kind, name=name, settings=settings, meta=meta or {})
        changes, expect = config_entries.put(self.view, entry, sources)
        assert set(changes) <= set(expect)
        self.write(changes)
        return changes

    def sources(self, name: str) -> dict[str, Action]:
        found = config_entries.find(self.view, SERVICE_INTENTIONS, name)
        return {} if found is None else {each.source: each.action for each in found.sources}


def intention(source: str, destination: str, action: Action = Action.ALLOW, **more: Any) -> Intention:
    return Intention(source=source, destination=destination, action=action, **more)


@pytest.fixture
def stored() -> Stored:
    return Stored()


def test_an_intention_is_an_entry_and_an_entry_is_intentions(stored: Stored) -> None:
    stored.write({keys.intention("web", "api"): intention("web", "api")})
    assert stored.sources("api") == {"web": Action.ALLOW}
    stored.entry(SERVICE_INTENTIONS, "api", intention("web", "api", Action.DENY), intention("*", "api"))
    assert [(each.source, each.action) for each in stored.view.intentions()] == [
        ("web", Action.DENY),
        ("*", Action.ALLOW),
    ]


def test_an_entry_replaces_the_sources_of_its_destination_and_of_no_other(stored: Stored) -> None:
    stored.write({keys.intention("web", "db"): intention("web", "db")})
    stored.entry(SERVICE_INTENTIONS, "api", intention("web", "api"), intention("job", "api"))
    stored.entry(SERVICE_INTENTIONS, "api", intention("job", "api"))
    assert stored.sources("api") == {"job": Action.ALLOW}
    assert stored.sources("db") == {"web": Action.ALLOW}
    found = config_entries.find_all(stored.view, SERVICE_INTENTIONS)
    assert [each.entry.name for each in found] == ["api", "db"]


def test_writing_the_same_again_changes_nothing(stored: Stored) -> None:
    given = intention("web", "api", description="why", created_at=5.0, updated_at=5.0)
    stored.entry(SERVICE_INTENTIONS, "api", given, meta={"external-source": "kubernetes"})
    later = msgspec.structs.replace(given, created_at=9.0, updated_at=9.0)
    assert not stored.entry(SERVICE_INTENTIONS, "api", later, meta={"external-source": "kubernetes"})
    stored.entry(SERVICE_DEFAULTS, "api", Protocol="http")
    assert not stored.entry(SERVICE_DEFAULTS, "api", Protocol="http")


def test_a_changed_source_keeps_when_it_was_created_and_its_meta(stored: Stored) -> None:
    stored.write({keys.intention("web", "api"): intention("web", "api", created_at=1.0, meta={"by": "ann"})})
    stored.entry(SERVICE_INTENTIONS, "api", intention("web", "api", Action.DENY, created_at=7.0, updated_at=7.0))
    (found,) = stored.view.intentions()
    assert (found.action, found.created_at, found.updated_at, found.meta) == (Action.DENY, 1.0, 7.0, {"by": "ann"})


def test_an_intention_that_is_added_by_other_means_leaves_the_meta_of_the_entry(stored: Stored) -> None:
    stored.entry(SERVICE_INTENTIONS, "api", intention("web", "api"), meta={"external-source": "kubernetes"})
    stored.write({keys.intention("job", "api"): intention("job", "api")})
    found = config_entries.find(stored.view, SERVICE_INTENTIONS, "api")
    assert found is not None
    assert found.entry.meta == {"external-source": "kubernetes"}
    assert len(found.sources) == 2


def test_the_last_intention_takes_the_meta_of_its_entry_with_it(stored: Stored) -> None:
    stored.entry(SERVICE_INTENTIONS, "api", intention("web", "api"), intention("job", "api"), meta={"owner": "k8s"})
    stored.write(config_entries.without_intention(stored.view, "web", "api"))
    assert stored.view.config_entry(SERVICE_INTENTIONS, "api") is not None
    stored.write(config_entries.without_intention(stored.view, "job", "api"))
    assert config_entries.find(stored.view, SERVICE_INTENTIONS, "api") is None
    stored.write({keys.intention("web", "api"): intention("web", "api")})
    found = config_entries.find(stored.view, SERVICE_INTENTIONS, "api")
    assert found is not None
    assert found.entry.meta == {}


def test_every_change_of_a_source_moves_the_index_its_deletion_too(stored: Stored) -> None:
    seen = []
    for sources in (["a"], ["a", "b"], ["a"]):
        stored.entry(SERVICE_INTENTIONS, "api", *(intention(each, "api") for each in sources))
        found = config_entries.find(stored.view, SERVICE_INTENTIONS, "api")
        assert found is not None
        seen.append(found.modified)
    assert seen == sorted(set(seen))


@pytest.mark.parametrize("kind", [SERVICE_DEFAULTS, SERVICE_INTENTIONS])
def test_a_deleted_entry_is_gone_and_its_deletion_is_known_to_all_datacenters(stored: Stored, kind: str) -> None:
    stored.entry(kind, "api", *([intention("web", "api")] if kind == SERVICE_INTENTIONS else []))
    changes, expect = config_entries.delete(stored.view, kind, "api")
    assert set(changes) <= set(expect)
    stored.write(changes)
    assert config_entries.find(stored.view, kind, "api") is None
    assert config_entries.find_all(stored.view, kind) == []
    assert set(stored.view.records(FEDERATED)) == set(changes), "tombstones are exchanged like everything else"
    assert config_entries.delete(stored.view, kind, "api")[0] == {}


def test_a_new_source_is_expected_to_be_absent(stored: Stored) -> None:
    entry = ConfigEntry(kind=SERVICE_INTENTIONS, name="api")
    changes, expect = config_entries.put(stored.view, entry, (intention("web", "api"),))
    assert keys.intention("web", "api") in changes
    assert expect == dict.fromkeys([keys.config_entry(SERVICE_INTENTIONS, "api"), keys.intention("web", "api")], 0)


# what entries mean for a sidecar

SIDECAR = Service(
    id="web-sidecar-proxy",
    name="web-sidecar-proxy",
    node="n1",
    kind="connect-proxy",
    proxy=Proxy(
        destination_service="web",
        upstreams=(Upstream(destination_name="api"), Upstream(destination_name="db", config={"protocol": "tcp"})),
    ),
)


def test_without_entries_a_registration_is_what_it_says(stored: Stored) -> None:
    assert config_entries.resolved(SIDECAR, stored.view) == SIDECAR


@pytest.mark.parametrize(
    ("own", "of_service", "of_all", "wanted"),
    [
        ({}, None, None, None),
        ({}, None, "http", "http"),
        ({}, "grpc", "http", "grpc"),
        ({}, "", "http", "http"),
        ({"protocol": "tcp"}, "grpc", "http", "tcp"),
    ],
)
def test_the_most_specific_protocol_counts(
    stored: Stored, own: dict[str, str], of_service: str | None, of_all: str | None, wanted: str | None
) -> None:
    if of_service is not None:
        stored.entry(SERVICE_DEFAULTS, "web", Protocol=of_service)
    if of_all is not None:
        stored.entry(PROXY_DEFAULTS, "global", Config={"protocol": of_all})
    assert SIDECAR.proxy is not None
    proxy = msgspec.structs.replace(SIDECAR.proxy, config=own)
    found = config_entries.resolved(msgspec.structs.replace(SIDECAR, proxy=proxy), stored.view)
    assert found.proxy is not None
    assert found.proxy.config.get("protocol") == wanted


def test_an_upstream_speaks_what_its_destination_speaks(stored: Stored) -> None:
    stored.entry(SERVICE_DEFAULTS, "api", Protocol="http2")
    stored.entry(SERVICE_DEFAULTS, "db", Protocol="http2")
    found = config_entries.resolved(SIDECAR, stored.view)
    assert found.proxy is not None
    assert [each.config for each in found.proxy.upstreams] == [{"protocol": "http2"}, {"protocol": "tcp"}]


def test_other_settings_of_proxy_defaults_complete_the_proxy_s_own(stored: Stored) -> None:
    stored.entry(PROXY_DEFAULTS, "global", Config={"local_connect_timeout_ms": 7, "bind_address": "10.0.0.1"})
    assert SIDECAR.proxy is not None
    proxy = msgspec.structs.replace(SIDECAR.proxy, config={"bind_address": "127.0.0.1"})
    found = config_entries.resolved(msgspec.structs.replace(SIDECAR, proxy=proxy), stored.view)
    assert found.proxy is not None
    assert found.proxy.config == {"local_connect_timeout_ms": 7, "bind_address": "127.0.0.1"}
