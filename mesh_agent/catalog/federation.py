"""Federated objects: which of two versions wins. Pure.

Every datacenter stores every intention, config entry and root in an envelope with a hybrid logical timestamp. The newest timestamp wins everywhere,
so merging is commutative, associative and idempotent, and every exchange order converges to the same state. A deletion is an envelope without a value
(a tombstone). When a concurrent change is overwritten, the envelope that wins keeps the other value as `conflict`, for people to see; the next change
clears it.
"""

import msgspec

from mesh_agent.hlc import HybridClock, Timestamp
from mesh_agent.model import Federated, FederatedValue, Record

_ENVELOPE = msgspec.json.Decoder(Federated)
_SORTED = msgspec.json.Encoder(order="sorted")
CONCURRENT_MS = 10_000
"""Changes of different origin within this time of each other are called concurrent: neither author can be expected to have seen the other's."""


def stamp_of(record: Record) -> Timestamp:
    """When the object was changed."""
    return Timestamp(*_ENVELOPE.decode(record.value).stamp)


def merge(local: Record | None, remote: Record) -> bytes | None:
    """The bytes to store when `remote` is newer than what is stored here, or None when the local version stands."""
    theirs = _ENVELOPE.decode(remote.value)
    if local is None:
        return remote.value
    ours = _ENVELOPE.decode(local.value)
    if _order(theirs) <= _order(ours):
        return None
    if theirs.conflict is None and _concurrent(ours, theirs) and ours.value is not None and ours.value != theirs.value:
        theirs = msgspec.structs.replace(theirs, conflict=ours.value)
    return msgspec.json.encode(theirs)


def _order(envelope: Federated) -> tuple[tuple[int, int, str], bytes, bytes]:
    """Timestamps decide; equal ones (a broken clock, or a conflict noted on one side) are decided by content, so that all sides agree."""
    return envelope.stamp, _SORTED.encode(envelope.value), _SORTED.encode(envelope.conflict)


def _concurrent(ours: Federated, theirs: Federated) -> bool:
    return ours.stamp[2] != theirs.stamp[2] and abs(theirs.stamp[0] - ours.stamp[0]) < CONCURRENT_MS


def put(value: FederatedValue, clock: HybridClock, wall: float) -> bytes:
    """The envelope of a local change; `wall` is seconds since the epoch."""
    return msgspec.json.encode(Federated(stamp=clock.tick(wall), value=msgspec.to_builtins(value)))


def tombstone(clock: HybridClock, wall: float) -> bytes:
    """The envelope of a local deletion."""
    return msgspec.json.encode(Federated(stamp=clock.tick(wall)))
