"""Snapshots: everything one proxy shall have, by type and name, each resource serialized once. Pure.

The version of a resource is a hash of its deterministic serialization: every agent, and the same agent after a restart, gives equal content the
equal version, so that a proxy that comes back is sent nothing it has.
"""

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from mesh_agent.errors import LocalProtocolError

_VERSION_BYTES = 8


class Resource(NamedTuple):
    """A resource, ready to be concatenated into a DeltaDiscoveryResponse (`entry` is its `resources` field, tag and length included)."""

    name: str
    version: str
    entry: bytes


class Change(NamedTuple):
    """What differs between two tables."""

    changed: tuple[str, ...]
    removed: tuple[str, ...]


def version_of(serialized: bytes) -> str:
    """Content hash of a deterministic serialization, as hex."""
    return blake2b(serialized, digest_size=_VERSION_BYTES).hexdigest()


class Table:
    """The resources of one type. Immutable; equal tables should be one object, so that `is` answers whether anything changed."""

    __slots__ = ("__weakref__", "_change", "_previous", "resources")

    def __init__(self, resources: Iterable[Resource] = ()) -> None:
        self.resources: Mapping[str, Resource] = {each.name: each for each in resources}
        self._previous: weakref.ref[Table] | None = None  # weak, or every table that ever was would be kept
        self._change = Change((), ())

    def since(self, previous: "Table") -> Change:
        """The difference to `previous`, worked out once for all streams that come from there."""
        if self._previous is None or self._previous() is not previous:
            old = previous.resources
            changed = tuple(
                name for name, each in self.resources.items() if name not in old or old[name].version != each.version
            )
            self._change = Change(changed, tuple(name for name in old if name not in self.resources))
            self._previous = weakref.ref(previous)
        return self._change

    def versions(self) -> dict[str, str]:
        """Version by name."""
        return {name: each.version for name, each in self.resources.items()}


EMPTY = Table()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a proxy shall have; `references` are the (type, name) pairs that its resources name."""

    tables: Mapping[str, Table]
    references: frozenset[tuple[str, str]] = frozenset()

    def table(self, type_url: str) -> Table:
        """The resources of a type; empty if there are none."""
        return self.tables.get(type_url, EMPTY)

    def check(self) -> None:
        """LocalProtocolError if a resource names another one that is not there: Envoy would wait for it for ever."""
        missing = [(kind, name) for kind, name in sorted(self.references) if name not in self.table(kind).resources]
        if missing:
            raise LocalProtocolError(f"a snapshot refers to resources that it does not hold: {missing}")


def merged(previous: Table, resources: Iterable[Resource]) -> Table:
    """A table of `resources`; the previous object if they are the same."""
    fresh = Table(resources)
    change = fresh.since(previous)
    if not change.changed and not change.removed:
        return previous
    return fresh
