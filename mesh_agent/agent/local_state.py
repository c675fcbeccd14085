"""What this node wants the catalog to hold: its services, and its checks with their current results. Pure.

A service registers with its checks and, if it asks for one, its sidecar (`<id>-sidecar-proxy`, with a port of the configured range that it keeps); they go
together with it. Maintenance mode is a critical check that says why. Everything came either from the API (and is kept on disk) or from a file (and is
read from there again).

A change is made on a `copy` that then replaces the original, so a registration that is refused half-way changes nothing. Copies share `CheckState`s:
results belong to a check, however the set of checks changes around it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum

import msgspec

from mesh_agent.agent import durations
from mesh_agent.agent.definition import CheckDefinition, ServiceDefinition
from mesh_agent.agent.sidecars import ports_in_use, with_default_checks, with_proxy
from mesh_agent.errors import InvalidRequest, NotFound
from mesh_agent.model import SERF_HEALTH, SERVERS, Check, Service, Status

NODE_MAINTENANCE = "_node_maintenance"
SERVICE_MAINTENANCE = "_service_maintenance:"
_STATED = ("maintenance", "kubernetes-readiness")
"""Kinds of checks whose definition says their status."""
_REASON = "Maintenance mode is enabled for this {what}, but no reason was provided. This is a default message."


class Source(StrEnum):
    """Where a registration came from."""

    API = "api"
    FILE = "file"
    POD = "pod"


@dataclass(slots=True)
class CheckState:
    """A check and its last result. `passing`, `failing`: how many runs in a row said so."""

    definition: CheckDefinition
    source: Source
    status: Status
    output: str = ""
    synced_output: str = ""
    """What the catalog is told: follows `output` at once when the status changes, else at leisure."""
    told_at: float = float("-inf")
    saved_at: float = float("-inf")
    passing: int = 0
    failing: int = 0
    critical_since: float | None = None


@dataclass(frozen=True, slots=True)
class Registered:
    """A service as registered. `parent` is the service whose sidecar it is, if it is one."""

    definition: ServiceDefinition
    source: Source
    check_ids: tuple[str, ...] = ()
    sidecar_id: str = ""
    parent: str = ""


Kept = dict[tuple[str, str], ServiceDefinition | CheckDefinition]
"""What belongs on disk: (`services`, `pods` or `checks`, id) -> definition."""
_KEPT_AS = {Source.API: "services", Source.POD: "pods"}


@dataclass(slots=True)
class LocalState:
    """Services by id, checks by id. `sidecar_ports` is the range that sidecars without a port take theirs from, `ports` what they have got."""

    sidecar_ports: tuple[int, int] = (21000, 21255)
    services: dict[str, Registered] = field(default_factory=dict)
    checks: dict[str, CheckState] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    def copy(self) -> "LocalState":
        """A state that changes by itself."""
        return replace(self, services=dict(self.services), checks=dict(self.checks), ports=dict(self.ports))

    # services

    def register(
        self, definition: ServiceDefinition, source: Source, *, replace_existing_checks: bool = False
    ) -> ServiceDefinition:
        """Add or replace a service; returns it with its sidecar completed. Checks of it that the new definition does not name stay, unless told otherwise."""
        service_id = definition.service_id
        old = self.services.get(service_id)
        if old is not None and old.parent:
            raise InvalidRequest(
                f"{service_id!r} is the sidecar of {old.parent!r}: change it by registering that again"
            )
        if definition.sidecar is not None:
            definition = msgspec.structs.replace(definition, sidecar=self._completed(definition, definition.sidecar))
        self._put(definition, source, replace_existing_checks)
        sidecar = definition.sidecar
        if old is not None and old.sidecar_id and (sidecar is None or sidecar.service_id != old.sidecar_id):
            self._drop(old.sidecar_id)
        if sidecar is not None:
            whole = with_default_checks(sidecar, service_id)
            self._put(whole, source, replace_existing_checks=True, parent=service_id)
        return definition

    def _put(
        self, definition: ServiceDefinition, source: Source, replace_existing_checks: bool, parent: str = ""
    ) -> None:
        service_id = definition.service_id
        if service_id.lower() == SERVERS or definition.name.lower() == SERVERS:
            raise InvalidRequest(
                f"the service {SERVERS!r} is what the servers themselves are; choose another name and id"
            )
        old = self.services.get(service_id)
        wanted = _checks_of(definition, service_id)
        self._refuse_taken(wanted, service_id)
        gone: set[str] = set()
        if replace_existing_checks:
            gone = {cid for cid in self.check_ids(service_id) if not cid.startswith(SERVICE_MAINTENANCE)}
        elif old is not None and Source.FILE in (source, old.source):
            gone = set(old.check_ids)
        for check_id in gone - {each.id for each in wanted}:
            self.checks.pop(check_id, None)
        for each in wanted:
            self._put_check(each, source)
        sidecar_id = definition.sidecar.service_id if definition.sidecar is not None else ""
        ids = tuple(each.id for each in wanted)
        self.services[service_id] = Registered(definition, source, ids, sidecar_id, parent)

    def _refuse_taken(self, wanted: list[CheckDefinition], service_id: str) -> None:
        seen: set[str] = set()
        for each in wanted:
            _refuse_reserved(each.id)
            if each.id in seen:
                raise InvalidRequest(f"two checks of service {service_id!r} have the id {each.id!r}")
            seen.add(each.id)
            known = self.checks.get(each.id)
            if known is not None and known.definition.service_id != service_id:
                whose = known.definition.service_id
                of = f"belongs to service {whose!r}" if whose else "is a check of the node"
                raise InvalidRequest(f"check id {each.id!r} {of} already; ids of checks are unique on a node")

    def deregister(self, service_id: str) -> None:
        """Take a service away with its checks and its sidecar; NotFound for an unknown one. A sidecar may go alone."""
        registered = self._registered(service_id)
        self._drop(service_id)
        self.ports.pop(registered.sidecar_id, None)
        parent = self.services.get(registered.parent)
        if parent is not None:
            alone = msgspec.structs.replace(parent.definition, sidecar=None)
            self.services[registered.parent] = replace(parent, definition=alone, sidecar_id="")
            self.ports.pop(service_id, None)

    def _drop(self, service_id: str) -> None:
        registered = self.services.pop(service_id, None)
        for check_id in self.check_ids(service_id):
            del self.checks[check_id]
        if registered is not None and registered.sidecar_id:
            self._drop(registered.sidecar_id)

    def _registered(self, service_id: str) -> Registered:
        found = self.services.get(service_id)
        if found is None:
            raise NotFound(
                f'Unknown service ID "{service_id}". Ensure that the service ID is passed, not the service name.'
            )
        return found

    def _completed(self, parent: ServiceDefinition, sidecar: ServiceDefinition) -> ServiceDefinition:
        sidecar_id = sidecar.service_id
        known = self.services.get(sidecar_id)
        if sidecar_id == parent.service_id or (known is not None and known.parent != parent.service_id):
            raise InvalidRequest(f"the sidecar's id {sidecar_id!r} is taken by another service of this node")
        port = sidecar.port or (known.definition.port if known is not None else 0) or self._free_port(sidecar_id)
        self.ports[sidecar_id] = port
        return msgspec.structs.replace(with_proxy(parent, sidecar), port=port)

    def _free_port(self, sidecar_id: str) -> int:
        first, last = self.sidecar_ports
        others = {sid: registered.definition for sid, registered in self.services.items() if sid != sidecar_id}
        taken = ports_in_use(others.values())
        mine = self.ports.get(sidecar_id, 0)
        if first <= mine <= last and mine not in taken:
            return mine
        # Ports of sidecars that are not here now (their file was not read yet) are the last to be given away.
        kept = set(self.ports.values())
        free = [port for port in range(first, last + 1) if port not in taken]
        if not free:
            raise InvalidRequest(f"no port of {first}-{last} is left for a sidecar; widen ports.sidecar_min/max")
        return next((port for port in free if port not in kept), free[0])

    # checks

    def register_check(self, definition: CheckDefinition, source: Source) -> str:
        """Add or replace a check; returns its id. InvalidRequest if its service is unknown."""
        if definition.service_id and definition.service_id not in self.services:
            raise InvalidRequest(f'ServiceID "{definition.service_id}" does not exist')
        check_id = definition.id or definition.name
        if not definition.maintenance:
            _refuse_reserved(check_id)
        self._put_check(msgspec.structs.replace(definition, id=check_id, name=definition.name or check_id), source)
        return check_id

    def _put_check(self, definition: CheckDefinition, source: Source) -> None:
        """Add or replace; a check that is of the same kind as before keeps its result, so that registering again is no outage."""
        old = self.checks.get(definition.id)
        if old is not None and old.definition == definition:
            if old.source is not source:
                self.checks[definition.id] = replace(old, source=source)
            return
        stated = definition.kind in _STATED
        text = definition.notes if definition.pod else ""
        fresh = CheckState(definition, source, definition.status, text, text)
        if old is not None and old.definition.kind == definition.kind and not stated:
            fresh.status, fresh.output, fresh.synced_output = old.status, old.output, old.synced_output
            fresh.critical_since = old.critical_since
        self.checks[definition.id] = fresh

    def deregister_check(self, check_id: str) -> None:
        """Take a check away; NotFound for an unknown one."""
        state = self.check(check_id)
        del self.checks[check_id]
        owner = self.services.get(state.definition.service_id)
        if owner is not None and check_id in owner.check_ids:
            self.services[state.definition.service_id] = _without(owner, check_id)

    def check(self, check_id: str) -> CheckState:
        """One check; NotFound for an unknown one."""
        found = self.checks.get(check_id)
        if found is None:
            raise NotFound(f'Unknown check ID "{check_id}". Ensure that the check ID is passed, not the check name.')
        return found

    def check_ids(self, service_id: str) -> list[str]:
        """Ids of the checks of a service; with an empty id of the node's own."""
        return [check_id for check_id, state in self.checks.items() if state.definition.service_id == service_id]

    # maintenance

    def node_maintenance(self, *, enable: bool, reason: str) -> None:
        """Take all services of the node out of service, or back."""
        self._maintenance(NODE_MAINTENANCE, "Node Maintenance Mode", "", "node", enable, reason)

    def service_maintenance(self, service_id: str, *, enable: bool, reason: str) -> None:
        """Take one service out of service, or back; NotFound for an unknown one."""
        self._registered(service_id)
        check_id = SERVICE_MAINTENANCE + service_id
        self._maintenance(check_id, "Service Maintenance Mode", service_id, "service", enable, reason)

    def _maintenance(self, check_id: str, name: str, service_id: str, what: str, enable: bool, reason: str) -> None:
        if not enable:
            self.checks.pop(check_id, None)
            return
        notes = reason or _REASON.format(what=what)
        definition = CheckDefinition(id=check_id, name=name, notes=notes, service_id=service_id, maintenance=True)
        self._put_check(definition, Source.API)

    # files of definitions

    def load(self, services: Iterable[ServiceDefinition], checks: Iterable[CheckDefinition]) -> None:
        """Make these what came from files: what an earlier load brought and is missing now goes, the rest stays as it is."""
        services, checks = list(services), list(checks)
        wanted = {each.service_id for each in services}
        named = {each.id or each.name for each in checks}
        for service_id, registered in tuple(self.services.items()):
            if registered.source is Source.FILE and not registered.parent and service_id not in wanted:
                self._drop(service_id)
        owned = self._owned()
        for check_id, state in tuple(self.checks.items()):
            if state.source is Source.FILE and check_id not in owned and check_id not in named:
                del self.checks[check_id]
        for service in services:
            self.register(service, Source.FILE)
        for check in checks:
            self.register_check(check, Source.FILE)

    def follow_pods(self, services: Iterable[ServiceDefinition]) -> dict[str, str]:
        """Make these the services of this node's pods, and no others; what did not change is left alone.

        Returns why some could not be registered, by id: another registration has what they need.
        """
        wanted = {each.service_id: each for each in services}
        for service_id, registered in tuple(self.services.items()):
            if registered.source is Source.POD and not registered.parent and service_id not in wanted:
                self.deregister(service_id)
        refused: dict[str, str] = {}
        for service_id, definition in wanted.items():
            try:
                self._follow_pod(definition)
            except InvalidRequest as error:
                refused[service_id] = str(error)
        return refused

    def _follow_pod(self, definition: ServiceDefinition) -> None:
        known = self.services.get(definition.service_id)
        if known is not None and known.source is not Source.POD:
            raise InvalidRequest(f"the id {definition.service_id!r} is taken by a service that was registered by hand")
        if definition.sidecar is not None:
            definition = msgspec.structs.replace(definition, sidecar=self._completed(definition, definition.sidecar))
        if known is None or known.definition != definition:
            self.register(definition, Source.POD, replace_existing_checks=True)

    def _owned(self) -> set[str]:
        return {check_id for registered in self.services.values() for check_id in registered.check_ids}

    def kept(self) -> Kept:
        """What came from the API, and pods. A service carries its own checks and its sidecar."""
        owned = self._owned()
        found: Kept = {
            (_KEPT_AS[registered.source], service_id): registered.definition
            for service_id, registered in self.services.items()
            if registered.source in _KEPT_AS and not registered.parent
        }
        for check_id, state in self.checks.items():
            if state.source is Source.API and check_id not in owned:
                found["checks", check_id] = state.definition
        return found

    # what the catalog should hold

    def health(self, service_id: str) -> tuple[Status, list[CheckState]]:
        """The worst status of a service's and the node's checks, and those checks."""
        states = [state for state in self.checks.values() if state.definition.service_id in ("", service_id)]
        worst = max((state.status for state in states), key=lambda status: status.severity, default=Status.PASSING)
        return worst, states

    def check_models(self, node: str) -> list[Check]:
        """Checks as the catalog knows them."""
        return [self.check_model(state, node) for _, state in sorted(self.checks.items())]

    def check_model(self, state: CheckState, node: str, *, output: str | None = None) -> Check:
        """One check as the catalog knows it."""
        definition = state.definition
        registered = self.services.get(definition.service_id)
        return Check(
            id=definition.id,
            node=node,
            name=definition.name,
            status=state.status,
            notes=definition.notes,
            output=state.output if output is None else output,
            service_id=definition.service_id,
            service_name=registered.definition.name if registered else "",
            service_tags=registered.definition.tags if registered else (),
            kind=definition.kind,
            interval=durations.render(definition.interval_s) if definition.interval_s else "",
            timeout=durations.render(definition.timeout_s) if definition.interval_s else "",
        )


def _without(registered: Registered, check_id: str) -> Registered:
    """A service without one of its checks: it must not come back from disk."""
    kept = [at for at, known in enumerate(registered.check_ids) if known != check_id]
    named = _checks_of(registered.definition, registered.definition.service_id)
    definition = msgspec.structs.replace(registered.definition, checks=tuple(named[at] for at in kept))
    return replace(registered, definition=definition, check_ids=tuple(registered.check_ids[at] for at in kept))


def _refuse_reserved(check_id: str) -> None:
    if check_id in (SERF_HEALTH, NODE_MAINTENANCE) or check_id.startswith(SERVICE_MAINTENANCE):
        raise InvalidRequest(f"the check id {check_id!r} is reserved; choose another one")


def service_model(definition: ServiceDefinition, node: str) -> Service:
    """A service as the catalog knows it."""
    return Service(
        id=definition.service_id,
        name=definition.name,
        node=node,
        address=definition.address,
        port=definition.port,
        tags=definition.tags,
        meta=definition.meta,
        kind=definition.kind,
        proxy=definition.proxy,
        connect_native=definition.connect_native,
        weights=definition.weights,
        enable_tag_override=definition.enable_tag_override,
        tagged_addresses=definition.tagged_addresses,
    )


def _checks_of(definition: ServiceDefinition, service_id: str) -> list[CheckDefinition]:
    several = len(definition.checks) > 1
    return [
        msgspec.structs.replace(
            each,
            id=each.id or f"service:{service_id}" + (f":{at}" if several else ""),
            name=each.name or f"Service '{definition.name}' check",
            service_id=service_id,
        )
        for at, each in enumerate(definition.checks, 1)
    ]
