"""What the catalog should hold of this node, as records. Pure."""

import msgspec

from mesh_agent.agent.local_state import LocalState, service_model
from mesh_agent.catalog import keys
from mesh_agent.model import Node

Inputs = tuple[object, ...]
"""What a record was made from."""


class Records:
    """Encodes a state; what has not changed since the last time is not encoded again, for one check changes much more often than a thousand."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._known: dict[str, tuple[Inputs, bytes]] = {}

    def of(self, state: LocalState) -> dict[str, bytes]:
        """Every record by key; checks come before the service that they guard."""
        name = self._node.name
        fresh: dict[str, tuple[Inputs, bytes]] = {}
        for check_id, check in state.checks.items():
            registered = state.services.get(check.definition.service_id)
            service = None if registered is None else registered.definition
            made_from: Inputs = (check.definition, service, check.status, check.synced_output)
            at = keys.check(name, check_id)
            fresh[at] = self._unchanged(at, made_from) or (
                made_from,
                msgspec.json.encode(state.check_model(check, name, output=check.synced_output)),
            )
        for service_id, registered in state.services.items():
            at, made_from = keys.service(name, service_id), (registered.definition,)
            fresh[at] = self._unchanged(at, made_from) or (
                made_from,
                msgspec.json.encode(service_model(registered.definition, name)),
            )
        self._known = fresh
        return {keys.node(name): msgspec.json.encode(self._node), **{at: value for at, (_, value) in fresh.items()}}

    def _unchanged(self, at: str, made_from: Inputs) -> tuple[Inputs, bytes] | None:
        known = self._known.get(at)
        if known is None or len(known[0]) != len(made_from):
            return None
        return known if all(map(_same, known[0], made_from)) else None


def _same(one: object, other: object) -> bool:
    """Definitions are replaced, never changed: the same object is enough, and comparing them is not worth it."""
    return one is other or (isinstance(one, str) and one == other)
