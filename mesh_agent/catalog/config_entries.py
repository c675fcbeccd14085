"""Config entries: what is said of a service, or of all of them, apart from any registration. Pure.

A sidecar's own settings come first, then `service-defaults` of its service, then `proxy-defaults`. An entry of kind `service-intentions` is another way
to read and write the intentions of one destination: it exists as long as there is one, and adds nothing but the meta that says who cares for it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from mesh_agent.catalog import keys
from mesh_agent.catalog.view import View
from mesh_agent.model import ConfigEntry, FederatedValue, Intention, Record, Service

SERVICE_DEFAULTS = "service-defaults"
PROXY_DEFAULTS = "proxy-defaults"
SERVICE_INTENTIONS = "service-intentions"
KINDS = (PROXY_DEFAULTS, SERVICE_DEFAULTS, SERVICE_INTENTIONS)
GLOBAL = "global"
"""The only name of a `proxy-defaults` entry."""


@dataclass(frozen=True, slots=True)
class Found:
    """An entry as readers see it; `sources` are the intentions of a `service-intentions` entry."""

    entry: ConfigEntry
    sources: tuple[Intention, ...]
    created: int
    modified: int


Changes = dict[str, FederatedValue | None]
"""Federated objects to write by key; None deletes."""


def find(view: View, kind: str, name: str) -> Found | None:
    """The entry of that kind and name."""
    if kind == SERVICE_INTENTIONS:
        sources = tuple(each for each in view.intentions() if each.destination == name)
        return _of_intentions(view, name, sources, view.federated(keys.intentions_of(name)).values())
    entry, record = view.config_entry(kind, name), view.record(keys.config_entry(kind, name))
    return None if entry is None or record is None else Found(entry, (), record.created, record.revision)


def find_all(view: View, kind: str) -> list[Found]:
    """Every entry of a kind, by name."""
    if kind != SERVICE_INTENTIONS:
        found = [find(view, kind, each.name) for each in view.config_entries(kind)]
        return [each for each in found if each is not None]
    records: dict[str, list[Record]] = {}
    for key, record in view.federated(keys.INTENTIONS).items():
        records.setdefault(key[: key.rindex("/") + 1], []).append(record)
    sources: dict[str, list[Intention]] = {}
    for each in view.intentions():
        sources.setdefault(each.destination, []).append(each)
    entries = (
        _of_intentions(view, name, tuple(sources[name]), records[keys.intentions_of(name)]) for name in sorted(sources)
    )
    return [each for each in entries if each is not None]


def _of_intentions(view: View, name: str, sources: tuple[Intention, ...], records: Iterable[Record]) -> Found | None:
    """Tombstones among the records count: a source that was taken away is a change."""
    if not sources:
        return None
    entry = view.config_entry(SERVICE_INTENTIONS, name) or ConfigEntry(kind=SERVICE_INTENTIONS, name=name)
    own = view.record(keys.config_entry(SERVICE_INTENTIONS, name))
    every = [*records, *([] if own is None else [own])]
    return Found(entry, sources, min(each.created for each in every), max(each.revision for each in every))


def _expected(view: View, kind: str, name: str) -> dict[str, int]:
    """The revision of every record that an entry consists of, tombstones included; 0 for one that is not there."""
    own = view.record(keys.config_entry(kind, name))
    found = {keys.config_entry(kind, name): 0 if own is None else own.revision}
    if kind == SERVICE_INTENTIONS:
        found |= {key: record.revision for key, record in view.federated(keys.intentions_of(name)).items()}
    return found


def put(view: View, entry: ConfigEntry, sources: tuple[Intention, ...]) -> tuple[Changes, dict[str, int]]:
    """What to write so that the entry is `entry` with exactly `sources`, and the revisions that this rests on. Nothing when it is so already."""
    expect = _expected(view, entry.kind, entry.name)
    changes: Changes = {}
    if view.config_entry(entry.kind, entry.name) != entry:
        changes[keys.config_entry(entry.kind, entry.name)] = entry
    known = {(each.source, each.destination): each for each in view.intentions() if each.destination == entry.name}
    for source in sources:
        before = known.pop((source.source, source.destination), None)
        wanted = source if before is None else _changed(before, source)
        if wanted != before:
            changes[keys.intention(source.source, source.destination)] = wanted
    if entry.kind == SERVICE_INTENTIONS:
        changes |= {keys.intention(*pair): None for pair in known}
    return changes, expect | {key: 0 for key in changes if key not in expect}


def _changed(before: Intention, wanted: Intention) -> Intention:
    """`wanted` with what an entry does not say; `before` itself when nothing differs."""
    if (before.action, before.description) == (wanted.action, wanted.description):
        return before
    return msgspec.structs.replace(wanted, meta=before.meta, created_at=before.created_at)


def delete(view: View, kind: str, name: str) -> tuple[Changes, dict[str, int]]:
    """What to write so that there is no such entry, and the revisions that this rests on. Nothing when there is none."""
    changes: Changes = {}
    if view.config_entry(kind, name) is not None:
        changes[keys.config_entry(kind, name)] = None
    if kind == SERVICE_INTENTIONS:
        changes |= {keys.intention(each.source, name): None for each in view.intentions() if each.destination == name}
    return changes, _expected(view, kind, name)


def without_intention(view: View, source: str, destination: str) -> Changes:
    """What to write so that an intention is gone; with the last one of a destination goes its entry."""
    changes: Changes = {keys.intention(source, destination): None}
    others = any(each.destination == destination and each.source != source for each in view.intentions())
    if not others and view.config_entry(SERVICE_INTENTIONS, destination) is not None:
        changes[keys.config_entry(SERVICE_INTENTIONS, destination)] = None
    return changes


# what entries mean for sidecars


def protocol(view: View, service: str) -> str:
    """The protocol that entries give a service; empty if none does."""
    own = view.config_entry(SERVICE_DEFAULTS, service)
    return str((own.settings.get("Protocol") if own else "") or _proxy_defaults(view).get("protocol") or "")


def _proxy_defaults(view: View) -> dict[str, Any]:
    found = view.config_entry(PROXY_DEFAULTS, GLOBAL)
    config = found.settings.get("Config") if found else None
    return config if isinstance(config, dict) else {}


def proxy_config(view: View, service: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a service's sidecar: its own, completed by the entries."""
    found = protocol(view, service)
    return {**_proxy_defaults(view), **({"protocol": found} if found else {}), **own}


def upstream_config(view: View, destination: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """The config of an upstream: its own, and the protocol that the destination speaks."""
    found = protocol(view, destination)
    return {**({"protocol": found} if found else {}), **own}


def resolved(service: Service, view: View) -> Service:
    """A sidecar's registration as if everything that entries say of it had been written there."""
    proxy = service.proxy
    if proxy is None:
        return service
    upstreams = tuple(
        msgspec.structs.replace(each, config=upstream_config(view, each.destination_name, each.config))
        for each in proxy.upstreams
    )
    config = proxy_config(view, proxy.destination_service, proxy.config)
    return msgspec.structs.replace(service, proxy=msgspec.structs.replace(proxy, config=config, upstreams=upstreams))
