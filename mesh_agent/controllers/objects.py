"""Objects of Kubernetes as JSON: names, annotations, who owns what, and the steps that change them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

PREFIX = "mesh.openmesh.io/"
CONSUL_PREFIX = "consul.hashicorp.com/"
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "mesh-controller"
"""Value of the label `app.kubernetes.io/managed-by` on everything that controllers make."""

_YES = ("true", "yes", "on", "1", "enabled")
_NO = ("false", "no", "off", "0", "disabled")


@dataclass(frozen=True, slots=True)
class Create:
    """Make an object in a collection; one that exists already is no error, the next look decides."""

    path: str
    body: Json


@dataclass(frozen=True, slots=True)
class Replace:
    """Change an object from the version that was looked at."""

    path: str
    body: Json


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete exactly the object that was looked at, not one of the same name that came since."""

    path: str
    uid: str
    version: str


Step = Create | Replace | Delete


def name_of(found: Json) -> str:
    """metadata.name."""
    return str(found["metadata"]["name"])


def namespace_of(found: Json) -> str:
    """metadata.namespace; empty for objects of the whole cluster."""
    return str(found["metadata"].get("namespace", ""))


def labels_of(found: Json) -> Mapping[str, str]:
    """metadata.labels."""
    return found["metadata"].get("labels") or {}


def annotations_of(found: Json) -> Mapping[str, str]:
    """metadata.annotations."""
    return found["metadata"].get("annotations") or {}


def said(values: Mapping[str, str], name: str, consul: str = "") -> str:
    """A label or annotation of ours, or Consul's of the same meaning; empty if neither is there."""
    found = values.get(PREFIX + name)
    return (values.get(CONSUL_PREFIX + (consul or name), "") if found is None else found).strip()


def switch(value: str, default: bool) -> bool:
    """A yes or no; `default` for what is empty or neither."""
    folded = value.lower()
    return True if folded in _YES else False if folded in _NO else default


def is_leaving(found: Json) -> bool:
    """Whether its deletion was asked for."""
    return bool(found["metadata"].get("deletionTimestamp"))


def is_ours(found: Json) -> bool:
    """Whether controllers made it."""
    return labels_of(found).get(MANAGED_BY) == MANAGER


def without_history(found: Json) -> Json:
    """The object without metadata.managedFields, often its largest part; a write without them leaves them as they are."""
    metadata = {key: value for key, value in found["metadata"].items() if key != "managedFields"}
    return {**found, "metadata": metadata}


def address_of(found: Json) -> Json:
    """The object's name and namespace alone."""
    return {"metadata": {key: found["metadata"].get(key, "") for key in ("name", "namespace")}}


def deletion(path: str, found: Json) -> Delete:
    """The step that deletes this very object."""
    meta = found["metadata"]
    return Delete(path, str(meta.get("uid", "")), str(meta.get("resourceVersion", "")))


def changed(found: Json, **parts: Any) -> Json:  # parts of an object
    """The object with some top-level parts replaced; its resourceVersion stays, so the replacement cannot overwrite another's."""
    return {**found, **parts}
