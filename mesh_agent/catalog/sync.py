"""What a server accepts from an agent: records of the agent's own node and nothing else. Pure."""

from collections.abc import Iterable, Mapping

import msgspec

from mesh_agent.catalog import keys
from mesh_agent.catalog.view import View
from mesh_agent.errors import InvalidRequest, PermissionDenied
from mesh_agent.model import SERF_HEALTH, Check, Node, Service

_TYPES: dict[str, type[Node] | type[Service] | type[Check]] = {
    keys.NODES: Node,
    keys.SERVICES: Service,
    keys.CHECKS: Check,
}


def accepted(
    view: View, node: str, puts: Mapping[str, bytes], deletes: Iterable[str]
) -> tuple[dict[str, bytes], list[str]]:
    """The part of a sync that changes something. PermissionDenied for another node's records, InvalidRequest for junk."""
    fresh: dict[str, bytes] = {}
    for key, value in puts.items():
        _check(key, node)
        _check_value(key, value, node)
        record = view.record(key)
        if record is None or record.value != value:
            fresh[key] = value
    gone = []
    for key in deletes:
        _check(key, node)
        if view.record(key) is not None:
            gone.append(key)
    return fresh, gone


def _check(key: str, node: str) -> None:
    if not key.startswith(tuple(_TYPES)) or keys.owner(key) != node:
        raise PermissionDenied(f"the agent of node {node!r} may not write {key!r}")
    if key == keys.check(node, SERF_HEALTH):
        raise PermissionDenied(f"check {SERF_HEALTH!r} belongs to the servers")


def _check_value(key: str, value: bytes, node: str) -> None:
    kind = next(kind for prefix, kind in _TYPES.items() if key.startswith(prefix))
    try:
        decoded = msgspec.json.decode(value, type=kind)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"{key}: {error}") from error
    owner = decoded.name if isinstance(decoded, Node) else decoded.node
    right = {
        Node: lambda: keys.node(owner),
        Service: lambda: keys.service(owner, decoded.id),
        Check: lambda: keys.check(owner, decoded.id),
    }
    if owner != node or right[kind]() != key:
        raise InvalidRequest(f"{key}: the record is of another node or name")
