"""Custom resources as config entries of the mesh. Pure.

A resource owns the entry that carries its cluster, namespace and name as meta; an entry of anybody else is never changed, except that one with the same
content may be taken over when the resource's annotation `migrate-entry` says so. Every write is bound to the version of the entry that was looked at.
The finalizer comes before the entry and goes after it, so a resource never vanishes before what it made.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from mesh_agent.agent.fields import anything
from mesh_agent.catalog.config_entries import GLOBAL, PROXY_DEFAULTS, SERVICE_DEFAULTS, SERVICE_INTENTIONS
from mesh_agent.controllers.objects import Json, annotations_of, is_leaving, name_of, namespace_of, said, switch
from mesh_agent.controllers.to_mesh import CLUSTER, KUBERNETES, SOURCE
from mesh_agent.errors import InvalidRequest
from mesh_agent.http.config_json import Given, check_depth, parse

GROUP = "mesh.openmesh.io"
VERSION = "v1alpha1"
FINALIZER = f"{GROUP}/config-entry"
NAMESPACE, NAME = "k8s-namespace", "k8s-name"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of custom resource and the kind of entry that it stands for."""

    resource: str
    plural: str
    entry: str


KINDS = (
    Kind("ProxyDefaults", "proxydefaults", PROXY_DEFAULTS),
    Kind("ServiceDefaults", "servicedefaults", SERVICE_DEFAULTS),
    Kind("ServiceIntentions", "serviceintentions", SERVICE_INTENTIONS),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a resource, for its status."""

    synced: bool
    reason: str = ""
    message: str = ""


SYNCED = Outcome(True, "Synced", "the mesh has this config entry")


@dataclass(frozen=True, slots=True)
class Write:
    """Put an entry into the mesh if it is still at version `cas` (0: absent)."""

    body: Json
    cas: int


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete an entry of the mesh if it is still at version `cas`."""

    kind: str
    name: str
    cas: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do for one resource, in this order: add the finalizer, change the mesh, release the finalizer, tell the outcome."""

    add_finalizer: bool = False
    change: Write | Remove | None = None
    release: bool = False
    outcome: Outcome = SYNCED


def collection(kind: Kind, namespace: str = "") -> str:
    """Path of the resources of a kind."""
    return f"/apis/{GROUP}/{VERSION}/" + (f"namespaces/{namespace}/" if namespace else "") + kind.plural


def path_of(kind: Kind, resource: Json) -> str:
    """Path of one resource."""
    return f"{collection(kind, namespace_of(resource))}/{name_of(resource)}"


def entry_name(kind: Kind, resource: Json) -> str:
    """Name of the entry that a resource stands for; empty if it does not say."""
    if kind.entry != SERVICE_INTENTIONS:
        return name_of(resource)
    destination = (resource.get("spec") or {}).get("destination")
    return str(destination.get("name") or "") if isinstance(destination, dict) else ""


def owner_meta(resource: Json, cluster: str) -> dict[str, str]:
    """The meta by which an entry is known as a resource's own."""
    return {SOURCE: KUBERNETES, CLUSTER: cluster, NAMESPACE: namespace_of(resource), NAME: name_of(resource)}


def entry_of(kind: Kind, resource: Json, cluster: str) -> Json:
    """The entry that a resource asks for, as `PUT /v1/config` wants it; InvalidRequest says what is wrong with the resource."""
    spec = dict(resource.get("spec") or {})
    check_depth(spec)
    if kind.entry == SERVICE_INTENTIONS:
        destination = anything(spec.pop("destination", None) or {}, "spec.destination").copy()
        name = destination.pop("name", "")
        destination.pop("namespace", None)
        if any(destination.values()):
            raise InvalidRequest(f"spec.destination: {', '.join(destination)} is not supported by this mesh")
        if not name:
            raise InvalidRequest("spec.destination.name must be set")
    else:
        name = name_of(resource)
    if kind.entry == PROXY_DEFAULTS and name != GLOBAL:
        raise InvalidRequest(f"a ProxyDefaults must be called {GLOBAL!r}")
    body = {**spec, "Kind": kind.entry, "Name": name, "Meta": owner_meta(resource, cluster)}
    parse(msgspec.json.encode(body), 0.0)
    return body


def decide(kind: Kind, resource: Json, entries: Mapping[str, Json], cluster: str) -> Decision:
    """What to do for one resource; `entries` are the mesh's of that kind by name."""
    if is_leaving(resource):
        return _leave(kind, resource, entries, cluster)
    try:
        body = entry_of(kind, resource, cluster)
    except InvalidRequest as error:
        return Decision(outcome=Outcome(False, "InvalidSpec", str(error)))
    missing = FINALIZER not in (resource["metadata"].get("finalizers") or [])
    held = entries.get(body["Name"])
    if held is None:
        return Decision(add_finalizer=missing, change=Write(body, 0))
    if not _owned(held, resource, cluster) and not _may_take_over(held, body, resource):
        return Decision(outcome=Outcome(False, "ExternallyManaged", _belongs_to(kind, held)))
    change = None if _same(held, body) else Write(body, int(held["ModifyIndex"]))
    return Decision(add_finalizer=missing, change=change)


def _leave(kind: Kind, resource: Json, entries: Mapping[str, Json], cluster: str) -> Decision:
    if FINALIZER not in (resource["metadata"].get("finalizers") or []):
        return Decision()
    owned = [each for each in entries.values() if _owned(each, resource, cluster)]
    change = Remove(kind.entry, owned[0]["Name"], int(owned[0]["ModifyIndex"])) if owned else None
    return Decision(change=change, release=len(owned) <= 1)


def orphans(kind: Kind, resources: Iterable[Json], entries: Mapping[str, Json], cluster: str) -> list[Remove]:
    """Entries of this cluster that no resource asks for any more: one that now names another service, or that went away without its finalizer.

    `resources` must be all of the kind, from a list that was complete.
    """
    asked = {(namespace_of(each), name_of(each), entry_name(kind, each)) for each in resources if not is_leaving(each)}
    leaving = {(namespace_of(each), name_of(each)) for each in resources if is_leaving(each)}
    found = []
    for name, held in sorted(entries.items()):
        meta = held.get("Meta") or {}
        owner = (meta.get(NAMESPACE, ""), meta.get(NAME, ""))
        ours = meta.get(SOURCE) == KUBERNETES and meta.get(CLUSTER) == cluster
        if ours and owner not in leaving and (*owner, name) not in asked:
            found.append(Remove(kind.entry, name, int(held["ModifyIndex"])))
    return found


def _owned(held: Json, resource: Json, cluster: str) -> bool:
    return owner_meta(resource, cluster).items() <= (held.get("Meta") or {}).items()


def _may_take_over(held: Json, body: Json, resource: Json) -> bool:
    """Only what nobody else's controller cares for, and only without changing what it says."""
    wished = switch(said(annotations_of(resource), "migrate-entry"), default=False)
    return wished and (held.get("Meta") or {}).get(SOURCE) != KUBERNETES and _content(held) == _content(body)


def _belongs_to(kind: Kind, held: Json) -> str:
    meta = held.get("Meta") or {}
    what = f"{kind.entry} {held['Name']!r} exists already and belongs to"
    if meta.get(SOURCE) == KUBERNETES:
        return f"{what} {meta.get(NAMESPACE)}/{meta.get(NAME)} of cluster {meta.get(CLUSTER)!r}; delete one of the two"
    return (
        f"{what} somebody outside Kubernetes; delete it there (mesh config delete), or make this resource say the same "
        f"and annotate it with {GROUP}/migrate-entry: 'true'"
    )


def _same(held: Json, body: Json) -> bool:
    return _content(held) == _content(body) and (held.get("Meta") or {}) == body["Meta"]


def _content(entry: Json) -> tuple[Any, Any]:
    try:
        given: Given = parse(msgspec.json.encode(entry), 0.0)
    except InvalidRequest:  # written by a newer version: whatever it says, it is not what we would write
        return entry, None
    return given.entry.settings, sorted(given.sources, key=lambda each: each.source)


# what the resource is told


def with_finalizer(resource: Json, *, present: bool) -> Json:
    """The resource with or without our finalizer."""
    others = [each for each in resource["metadata"].get("finalizers") or [] if each != FINALIZER]
    return {**resource, "metadata": {**resource["metadata"], "finalizers": [*others, FINALIZER] if present else others}}


def is_waiting(resource: Json) -> bool:
    """Whether its status does not tell yet what became of the newest version."""
    conditions = (resource.get("status") or {}).get("conditions") or []
    synced: Json = next((each for each in conditions if each.get("type") == "Synced"), {})
    return bool(synced.get("observedGeneration") != resource["metadata"].get("generation", 0))


def with_status(resource: Json, outcome: Outcome, wall: float, *, wrote: bool) -> Json | None:
    """The resource with the status that tells `outcome`; None if it tells that already. `wrote`: the mesh was changed just now."""
    status = resource.get("status") or {}
    conditions = status.get("conditions") or []
    before: Json = next((each for each in conditions if each.get("type") == "Synced"), {})
    now = datetime.fromtimestamp(int(wall), UTC).isoformat().replace("+00:00", "Z")
    generation = resource["metadata"].get("generation", 0)
    state = "True" if outcome.synced else "False"
    turned = before.get("status") != state
    condition = {
        "type": "Synced",
        "status": state,
        "reason": outcome.reason,
        "message": outcome.message,
        "observedGeneration": generation,
        "lastTransitionTime": now if turned else before.get("lastTransitionTime", now),
    }
    synced_at = now if outcome.synced and (wrote or turned) else status.get("lastSyncedTime")
    told = {**status, "conditions": [*(each for each in conditions if each is not before), condition]}
    if synced_at:
        told["lastSyncedTime"] = synced_at
    return None if told == status else {**resource, "status": told}
