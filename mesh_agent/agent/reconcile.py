"""Anti-entropy: what has to change in the catalog so that it says of this node what this node says of itself. Pure."""

from collections.abc import Iterator, Mapping

import msgspec

from mesh_agent.catalog import keys
from mesh_agent.model import SERF_HEALTH, SERVERS, Record, Service

_MAX_RECORDS = 512
_MAX_BYTES = 256 * 1024

_SERVICE = msgspec.json.Decoder(Service)

Part = tuple[dict[str, bytes], list[str]]


def diff(desired: Mapping[str, bytes], held: Mapping[str, bytes], node: str) -> tuple[dict[str, bytes], list[str]]:
    """(puts, deletes) that make `held` (the catalog's records of this node) equal to `desired`; what the servers keep themselves is left alone.

    Deleted services come before deleted checks: a service must not look healthy for having lost its checks first.
    """
    theirs = (keys.check(node, SERF_HEALTH), keys.service(node, SERVERS))
    puts: dict[str, bytes] = {}
    for key, value in desired.items():
        known = held.get(key)
        if known == value or key in theirs:
            continue
        if known is not None and key.startswith(keys.SERVICES):
            value = _with_overridden_tags(value, known)
            if value == known:
                continue
        puts[key] = value
    gone = [key for key in held if key not in desired and key not in theirs and keys.owner(key) == node]
    return puts, sorted(gone, key=lambda key: (key.startswith(keys.CHECKS), key))


def _with_overridden_tags(value: bytes, known: bytes) -> bytes:
    """A service with EnableTagOverride leaves its tags to whoever changed them in the catalog."""
    service = _SERVICE.decode(value)
    if not service.enable_tag_override:
        return value
    return msgspec.json.encode(msgspec.structs.replace(service, tags=_SERVICE.decode(known).tags))


def parts(puts: Mapping[str, bytes], deletes: list[str]) -> Iterator[Part]:
    """A change in pieces that fit into a request and a commit. Puts go first, in their order."""
    piece: dict[str, bytes] = {}
    size = 0
    for key, value in puts.items():
        if piece and (len(piece) >= _MAX_RECORDS or size + len(value) > _MAX_BYTES):
            yield piece, []
            piece, size = {}, 0
        piece[key] = value
        size += len(value) + len(key)
    room = _MAX_RECORDS - len(piece)
    if piece or deletes:
        yield piece, deletes[:room]
    for at in range(room, len(deletes), _MAX_RECORDS):
        yield {}, deletes[at : at + _MAX_RECORDS]


def halves(part: Part) -> list[Part]:
    """A piece that was refused, in two; empty if it cannot be divided."""
    puts, deletes = part
    if len(puts) + len(deletes) < 2:
        return []
    if not puts or not deletes:
        wanted, unwanted = list(puts.items()), deletes
        at, to = len(wanted) // 2, len(unwanted) // 2
        return [(dict(wanted[:at]), unwanted[:to]), (dict(wanted[at:]), unwanted[to:])]
    return [(puts, []), ({}, deletes)]


class Written:
    """What was written and has not come back through the catalog yet.

    A registration that is taken back before the View has heard of it must still be deleted: the View alone would say that there is nothing to do.
    A write counts as long as the View has its record as it was before; once that has moved on, the View is right, also if it does not say what was
    written: a server may have written after us (a node that it holds for dead has failing checks), and that must be put right. What does not move
    within `patience_s` is forgotten.
    """

    def __init__(self, patience_s: float = 10.0) -> None:
        self._patience_s = patience_s
        self._pending: dict[str, tuple[bytes | None, int, float]] = {}

    def add(self, part: Part, before: Mapping[str, int], now: float) -> None:
        """A write that succeeded; `before`: the revisions that the View had when it was decided."""
        puts, deletes = part
        for key in deletes:
            self._pending[key] = (None, before.get(key, 0), now)
        for key, value in puts.items():
            self._pending[key] = (value, before.get(key, 0), now)

    def over(self, held: Mapping[str, Record], now: float) -> dict[str, bytes]:
        """What the catalog holds, as far as is known: `held` with what is on its way."""
        result = {key: record.value for key, record in held.items()}
        for key, (value, before, at) in tuple(self._pending.items()):
            revision = held[key].revision if key in held else 0
            if result.get(key) == value or revision != before or now - at > self._patience_s:
                del self._pending[key]
            elif value is None:
                result.pop(key, None)
            else:
                result[key] = value
        return result
