"""What this node wants the catalog to hold: its services, and its checks with their current results. Pure.

A service registers with its checks and, if it asks for one, its sidecar (`<id>-sidecar-proxy`, with a port of the configured range that it keeps); they go
together with it. Maintenance mode is a critical check that says why. Everything came either from the API (and is kept on disk) or from a file (and is
read from there again).
"""

from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from mesh_agent.agent.definition import CheckDefinition, ServiceDefinition
from mesh_agent.catalog import keys
from mesh_agent.errors import InvalidRequest, NotFound
from mesh_agent.model import Check, Node, Proxy, Service, Status

NODE_MAINTENANCE = "_node_maintenance"
SERVICE_MAINTENANCE = "_service_maintenance:"
_REASON = "Maintenance mode is enabled for this {what}, but no reason was provided. This is a default message."


class Source(StrEnum):
    """Where a registration came from."""

    API = "api"
    FILE = "file"


@dataclass(slots=True)
class CheckState:
    """A check and its last result."""

    definition: CheckDefinition
    source: Source
    status: Status
    output: str = ""
    synced_output: str = ""
    """What the catalog is told: follows `output` at once when the status changes, else at leisure."""

    def set(self, status: Status, output: str, *, tell: bool) -> bool:
        """Take a result; whether the catalog should hear of it. `tell`: also of a new output alone."""
        changed = status is not self.status
        self.status, self.output = status, output
        if changed or tell:
            changed = changed or self.synced_output != output
            self.synced_output = output
        return changed


@dataclass(slots=True)
class Registered:
    """A service as registered, with the ids of what came with it."""

    definition: ServiceDefinition
    source: Source
    check_ids: tuple[str, ...] = ()
    sidecar_id: str = ""


@dataclass(slots=True)
class LocalState:
    """Services by id, checks by id. `sidecar_ports` is the range that sidecars without a port take theirs from."""

    sidecar_ports: tuple[int, int] = (21000, 21255)
    services: dict[str, Registered] = field(default_factory=dict)
    checks: dict[str, CheckState] = field(default_factory=dict)

    # services

    def register(
        self, definition: ServiceDefinition, source: Source, *, replace_existing_checks: bool = False
    ) -> ServiceDefinition:
        """Add or replace a service; returns it with its sidecar's port filled in. InvalidRequest changes nothing."""
        service_id = definition.service_id
        sidecar = definition.sidecar
        if sidecar is not None:
            port = sidecar.port or self._sidecar_port(sidecar.service_id)
            sidecar = msgspec.structs.replace(sidecar, port=port, proxy=_completed(definition, sidecar))
            definition = msgspec.structs.replace(definition, sidecar=sidecar)
        old = self.services.get(service_id)
        wanted = _checks_of(definition, service_id)
        if old is not None:
            dropped = set(old.check_ids) - {each.id for each in wanted}
            if replace_existing_checks:
                dropped |= {
                    check_id for check_id, state in self.checks.items() if state.definition.service_id == service_id
                } - {each.id for each in wanted}
            for check_id in dropped:
                self.checks.pop(check_id, None)
            if old.sidecar_id and (sidecar is None or sidecar.service_id != old.sidecar_id):
                self._drop(old.sidecar_id)
        for each in wanted:
            self.put_check(each, source)
        registered = Registered(definition, source, tuple(each.id for each in wanted))
        self.services[service_id] = registered
        if sidecar is not None:
            self.register(_with_default_checks(sidecar, service_id), source)
            registered.sidecar_id = sidecar.service_id
        return definition

    def deregister(self, service_id: str) -> None:
        """Take a service away with its checks and its sidecar; NotFound for an unknown one."""
        if service_id not in self.services:
            raise NotFound(
                f'Unknown service ID "{service_id}". Ensure that the service ID is passed, not the service name.'
            )
        self._drop(service_id)

    def _drop(self, service_id: str) -> None:
        registered = self.services.pop(service_id, None)
        for check_id in [cid for cid, state in self.checks.items() if state.definition.service_id == service_id]:
            del self.checks[check_id]
        if registered is not None and registered.sidecar_id:
            self._drop(registered.sidecar_id)

    def _sidecar_port(self, sidecar_id: str) -> int:
        known = self.services.get(sidecar_id)
        if known is not None and known.definition.port:
            return known.definition.port
        taken = {registered.definition.port for registered in self.services.values()}
        first, last = self.sidecar_ports
        port = next((port for port in range(first, last + 1) if port not in taken), None)
        if port is None:
            raise InvalidRequest(f"no port of {first}-{last} is left for a sidecar; widen ports.sidecar_min/max")
        return port

    # checks

    def register_check(self, definition: CheckDefinition, source: Source) -> str:
        """Add or replace a check; returns its id. InvalidRequest if its service is unknown."""
        if definition.service_id and definition.service_id not in self.services:
            raise InvalidRequest(f'ServiceID "{definition.service_id}" does not exist')
        check_id = definition.id or definition.name
        self.put_check(msgspec.structs.replace(definition, id=check_id, name=definition.name or check_id), source)
        return check_id

    def put_check(self, definition: CheckDefinition, source: Source) -> None:
        """Add or replace; an unchanged check keeps its result."""
        old = self.checks.get(definition.id)
        if old is not None and old.definition == definition:
            old.source = source
            return
        self.checks[definition.id] = CheckState(definition, source, definition.status)

    def deregister_check(self, check_id: str) -> None:
        """Take a check away; NotFound for an unknown one."""
        if self.checks.pop(check_id, None) is None:
            raise NotFound(f'Unknown check ID "{check_id}". Ensure that the check ID is passed, not the check name.')

    def check(self, check_id: str) -> CheckState:
        """One check; NotFound for an unknown one."""
        found = self.checks.get(check_id)
        if found is None:
            raise NotFound(f'Unknown check ID "{check_id}". Ensure that the check ID is passed, not the check name.')
        return found

    # maintenance

    def node_maintenance(self, *, enable: bool, reason: str) -> None:
        """Take all services of the node out of service, or back."""
        self._maintenance(NODE_MAINTENANCE, "Node Maintenance Mode", "", "node", enable, reason)

    def service_maintenance(self, service_id: str, *, enable: bool, reason: str) -> None:
        """Take one service out of service, or back; NotFound for an unknown one."""
        if service_id not in self.services:
            raise NotFound(
                f'Unknown service ID "{service_id}". Ensure that the service ID is passed, not the service name.'
            )
        check_id = SERVICE_MAINTENANCE + service_id
        self._maintenance(check_id, "Service Maintenance Mode", service_id, "service", enable, reason)

    def _maintenance(self, check_id: str, name: str, service_id: str, what: str, enable: bool, reason: str) -> None:
        if not enable:
            self.checks.pop(check_id, None)
            return
        notes = reason or _REASON.format(what=what)
        definition = CheckDefinition(id=check_id, name=name, notes=notes, service_id=service_id, maintenance=True)
        self.put_check(definition, Source.API)

    # what the catalog should hold

    def health(self, service_id: str) -> tuple[Status, list[CheckState]]:
        """The worst status of a service's and the node's checks, and those checks."""
        states = [state for state in self.checks.values() if state.definition.service_id in ("", service_id)]
        worst = max((state.status for state in states), key=lambda status: status.severity, default=Status.PASSING)
        return worst, states

    def service_models(self, node: str) -> list[Service]:
        """Services as the catalog knows them."""
        return [service_model(registered.definition, node) for _, registered in sorted(self.services.items())]

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
        )

    def records(self, node: Node) -> dict[str, bytes]:
        """Everything the catalog should hold of this node, by key."""
        found = {keys.node(node.name): msgspec.json.encode(node)}
        for service in self.service_models(node.name):
            found[keys.service(node.name, service.id)] = msgspec.json.encode(service)
        for check_id, state in self.checks.items():
            check = self.check_model(state, node.name, output=state.synced_output)
            found[keys.check(node.name, check_id)] = msgspec.json.encode(check)
        return found

    def ids_of(self, source: Source) -> tuple[list[str], list[str]]:
        """Ids of the services and of the checks of their own that came from `source`."""
        owned = {check_id for registered in self.services.values() for check_id in registered.check_ids}
        services = [service_id for service_id, registered in self.services.items() if registered.source is source]
        checks = [cid for cid, state in self.checks.items() if state.source is source and cid not in owned]
        return services, checks


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


def _completed(definition: ServiceDefinition, sidecar: ServiceDefinition) -> Proxy:
    proxy = sidecar.proxy or Proxy(destination_service=definition.name)
    return msgspec.structs.replace(
        proxy,
        destination_service=definition.name,
        destination_id=definition.service_id,
        local_port=proxy.local_port or definition.port,
    )


def _with_default_checks(sidecar: ServiceDefinition, parent_id: str) -> ServiceDefinition:
    if sidecar.checks:
        return sidecar
    listening = CheckDefinition(
        name="Connect Sidecar Listening", tcp=f"{sidecar.address or '127.0.0.1'}:{sidecar.port}", interval_s=10.0
    )
    alias = CheckDefinition(name=f"Connect Sidecar Aliasing {parent_id}", alias_service=parent_id)
    return msgspec.structs.replace(sidecar, checks=(listening, alias))
