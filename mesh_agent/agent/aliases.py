"""Alias checks: as healthy as something else is. Pure.

An alias of a local service looks through aliases at the checks that look at something, so services that stand for each other in a circle cannot keep each other
critical for ever. Texts are Consul's.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from mesh_agent.agent.checks import Result
from mesh_agent.agent.definition import CheckDefinition
from mesh_agent.agent.local_state import LocalState
from mesh_agent.catalog.view import View
from mesh_agent.model import Status, Topic


class Finding(NamedTuple):
    """A check that an alias depends on."""

    name: str
    status: Status
    output: str


class LocalAliases:
    """The alias checks of one state of registrations; made anew when those change."""

    def __init__(self, state: LocalState, node: str) -> None:
        self._state, self._node = state, node
        self._checks_of: dict[str, list[str]] = {}
        self._aliases_of: dict[str, list[str]] = {}
        for check_id, check in state.checks.items():
            self._checks_of.setdefault(check.definition.service_id, []).append(check_id)
            if self.is_local(check.definition):
                self._aliases_of.setdefault(check.definition.alias_service, []).append(check_id)

    def is_local(self, definition: CheckDefinition) -> bool:
        """Whether a check stands for something of this node."""
        named = definition.alias_service or definition.alias_node
        return bool(named) and definition.kind == "alias" and definition.alias_node.lower() in ("", self._node.lower())

    def ids(self) -> list[str]:
        """Every local alias check."""
        return [check_id for ids in self._aliases_of.values() for check_id in ids]

    def affected(self, service_id: str) -> list[str]:
        """Alias checks to look at again after a check of `service_id` (empty: of the node) changed."""
        if not service_id:
            return self.ids()
        found: dict[str, None] = {}
        ahead = [service_id]
        while ahead:
            for check_id in self._aliases_of.get(ahead.pop(), ()):
                if check_id not in found:
                    found[check_id] = None
                    ahead.append(self._state.checks[check_id].definition.service_id)
        return list(found) if "" not in {self._service_of(each) for each in found} else self.ids()

    def _service_of(self, check_id: str) -> str:
        return self._state.checks[check_id].definition.service_id

    def result(self, definition: CheckDefinition) -> Result:
        """What a local alias check says now."""
        return summary(self._findings(definition.alias_service, {definition.alias_service}))

    def _findings(self, service_id: str, visited: set[str]) -> list[Finding]:
        if service_id and service_id not in self._state.services:
            text = f"Service {service_id} could not be found on node {self._node}"
            return [Finding("", Status.CRITICAL, text)]
        found: list[Finding] = []
        for check_id in self._checks_of.get("", []) + (self._checks_of.get(service_id, []) if service_id else []):
            state = self._state.checks[check_id]
            if not self.is_local(state.definition):
                found.append(Finding(state.definition.name, state.status, state.output or state.definition.notes))
            elif state.definition.alias_service not in visited:
                visited.add(state.definition.alias_service)
                found += self._findings(state.definition.alias_service, visited)
        return found


def of_node(view: View | None, definition: CheckDefinition) -> Result:
    """What the catalog says of another node, or of a service on it. Without a View nothing is known of it."""
    node = None if view is None else view.node(definition.alias_node)
    if view is None or node is None:
        return Result(Status.CRITICAL, f"Node {definition.alias_node} could not be found")
    service_id = definition.alias_service
    if service_id and service_id not in view.services_of(node.name):
        return Result(Status.CRITICAL, f"Service {service_id} could not be found on node {node.name}")
    relevant = [each for each in view.checks_of(node.name).values() if each.service_id in ("", service_id)]
    return summary(Finding(each.name, each.status, each.output) for each in relevant)


def summary(findings: Iterable[Finding]) -> Result:
    """The worst of several checks."""
    found = list(findings)
    if not found:
        return Result(Status.PASSING, "No checks found.")
    worst = max(found, key=lambda each: each.status.severity)
    if worst.status is Status.PASSING:
        return Result(Status.PASSING, "All checks passing.")
    if not worst.name:
        return Result(worst.status, worst.output)
    return Result(worst.status, f'Aliased check "{worst.name}" failing: {worst.output}')


class RemoteViews:
    """Views of other nodes that alias checks look at; `changed(topic)` is called when one of them changes."""

    def __init__(self, changed: Callable[[Topic], None]) -> None:
        self._changed = changed
        self._followed: dict[Topic, tuple[View, Callable[[], None]]] = {}

    def follow(self, topic: Topic, view: View) -> None:
        """Listen to a View; to a topic in one View at a time."""
        known = self._followed.get(topic)
        if known is not None and known[0] is view:
            return
        if known is not None:
            known[1]()
        self._followed[topic] = (view, view.listen(topic, self._changed))

    def keep_only(self, nodes: set[str]) -> None:
        """Stop following nodes that no check asks for."""
        for topic in [topic for topic in self._followed if topic.name not in nodes]:
            self._followed.pop(topic)[1]()
