"""What gossip means for the catalog: a server keeps each node's `serfHealth` check true, and removes nodes that have left. Pure.

Any server may do it, as often as it likes: the plan is empty once the catalog agrees. A node that gossip does not know (its agent died while no server was
there to see it) is declared critical only after a grace period, so that a server that starts does not fail everybody before they have joined it.

With a node its other checks fail, once: what they said last is not true of a host that has lost its power, and when gossip finds it alive again, its agent
writes what is. Else calls would go to services that have not started yet.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from mesh_agent.catalog import keys
from mesh_agent.catalog.view import View
from mesh_agent.model import SERF_HEALTH, SERVERS, Check, Node, Service, Status

_ALIVE_OUTPUT = "Agent alive and reachable"
_FAILED_OUTPUT = "Agent not live or unreachable"
_NAME = "Serf Health Status"


@dataclass(frozen=True, slots=True)
class Liveness:
    """What gossip says of one node."""

    name: str
    address: str
    id: str
    alive: bool
    left: bool = False
    server_port: int = 0
    """RPC port of a server, 0 of a client agent."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One commit."""

    puts: dict[str, bytes]
    deletes: list[str]

    def __bool__(self) -> bool:
        return bool(self.puts or self.deletes)


def plan(view: View, found: Iterable[Liveness], *, settled: bool) -> Plan:
    """What has to change; `settled`: long enough since start for every living agent to have joined."""
    puts: dict[str, bytes] = {}
    deletes: list[str] = []
    known = {each.name: each for each in found}
    for each in known.values():
        if each.left:
            deletes += _of_node(view, each.name)
        else:
            puts |= _kept(view, each)
    for node in view.nodes() if settled else ():
        health = view.checks_of(node.name).get(SERF_HEALTH)
        if (
            node.name not in known
            and not _is_external(node)
            and health is not None
            and health.status is not Status.CRITICAL
        ):
            puts |= _failed(view, node.name)
    return Plan(puts, deletes)


def _of_node(view: View, name: str) -> list[str]:
    node = view.node(name)
    if node is None or node.name != name or _is_external(node):
        return []
    services = [keys.service(name, service_id) for service_id in view.services_of(name)]
    checks = [keys.check(name, check_id) for check_id in view.checks_of(name)]
    return [keys.node(name), *services, *checks]


def _is_external(node: Node) -> bool:
    """A node that stands for things without an agent (`external-node`, as in Consul): gossip has nothing to say of it."""
    return node.meta.get("external-node") == "true"


def _kept(view: View, each: Liveness) -> dict[str, bytes]:
    puts: dict[str, bytes] = {}
    if view.record(keys.node(each.name)) is None:
        if not each.alive:
            return {}
        node = Node(name=each.name, address=each.address, id=each.id)
        puts[keys.node(each.name)] = msgspec.json.encode(node)
    if each.server_port:
        service = Service(id=SERVERS, name=SERVERS, node=each.name, port=each.server_port)
        encoded = msgspec.json.encode(service)
        record = view.record(keys.service(each.name, SERVERS))
        if record is None or record.value != encoded:
            puts[keys.service(each.name, SERVERS)] = encoded
    health = view.checks_of(each.name).get(SERF_HEALTH)
    wanted = Status.PASSING if each.alive else Status.CRITICAL
    if health is None or health.status is not wanted:
        puts |= _health(each.name, alive=True) if each.alive else _failed(view, each.name)
    return puts


def _failed(view: View, node: str) -> dict[str, bytes]:
    others = (check for check in view.checks_of(node).values() if check.id != SERF_HEALTH)
    puts = {
        keys.check(node, check.id): msgspec.json.encode(
            msgspec.structs.replace(check, status=Status.CRITICAL, output=_FAILED_OUTPUT)
        )
        for check in others
        if check.status is not Status.CRITICAL
    }
    return puts | _health(node, alive=False)


def _health(node: str, *, alive: bool) -> dict[str, bytes]:
    check = Check(
        id=SERF_HEALTH,
        node=node,
        name=_NAME,
        status=Status.PASSING if alive else Status.CRITICAL,
        output=_ALIVE_OUTPUT if alive else _FAILED_OUTPUT,
    )
    return {keys.check(node, SERF_HEALTH): msgspec.json.encode(check)}
