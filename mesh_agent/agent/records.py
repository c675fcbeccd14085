"""What the catalog should hold of this node, as records. Pure."""

import msgspec

from mesh_agent.agent.definition import Definition, ServiceDefinition
from mesh_agent.agent.local_state import LocalState, service_model
from mesh_agent.catalog import keys
from mesh_agent.model import Node, Service

Inputs = tuple[Definition, Definition | None, str, str]
"""What a record was made from: a check's definition, its service's, its status and the output that is told; or a service's definition."""


class Records:
    """Encodes a state; what has not changed since the last time is not encoded again, for one check changes much more often than a thousand."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._checks: dict[str, tuple[Inputs, str, bytes]] = {}
        self._services: dict[str, tuple[Inputs, str, bytes]] = {}
        self._models: dict[str, tuple[ServiceDefinition, Service]] = {}

    def services(self, state: LocalState) -> list[Service]:
        """Services as the catalog knows them, by id. Asked after each registration: with a thousand of them only the new one is made."""
        fresh: dict[str, tuple[ServiceDefinition, Service]] = {}
        for service_id, registered in sorted(state.services.items()):
            definition, known = registered.definition, self._models.get(service_id)
            if known is None or known[0] is not definition:
                known = (definition, service_model(definition, self._node.name))
            fresh[service_id] = known
        self._models = fresh
        return [model for _, model in fresh.values()]

    def of(self, state: LocalState) -> dict[str, bytes]:
        """Every record by key; checks come before the service that they guard."""
        found = {keys.node(self._node.name): msgspec.json.encode(self._node)}
        for known in (self._encode_checks(state), self._encode_services(state)):
            for _, key, value in known.values():
                found[key] = value
        return found

    def _encode_checks(self, state: LocalState) -> dict[str, tuple[Inputs, str, bytes]]:
        name, before, fresh = self._node.name, self._checks, {}
        for check_id, check in state.checks.items():
            registered = state.services.get(check.definition.service_id)
            service = None if registered is None else registered.definition
            made_from = (check.definition, service, check.status, check.synced_output)
            known = before.get(check_id)
            if known is None or not _same(known[0], made_from):
                model = state.check_model(check, name, output=check.synced_output)
                known = (made_from, keys.check(name, check_id), msgspec.json.encode(model))
            fresh[check_id] = known
        self._checks = fresh
        return fresh

    def _encode_services(self, state: LocalState) -> dict[str, tuple[Inputs, str, bytes]]:
        name, before, fresh = self._node.name, self._services, {}
        for service_id, registered in state.services.items():
            made_from = (registered.definition, None, "", "")
            known = before.get(service_id)
            if known is None or not _same(known[0], made_from):
                model = service_model(registered.definition, name)
                known = (made_from, keys.service(name, service_id), msgspec.json.encode(model))
            fresh[service_id] = known
        self._services = fresh
        return fresh


def _same(known: Inputs, made_from: Inputs) -> bool:
    """Definitions are replaced, never changed: the same object is enough, and comparing them is not worth it."""
    return known[0] is made_from[0] and known[1] is made_from[1] and known[2:] == made_from[2:]
