"""`/v1/catalog`, `/v1/health`, `/v1/status`: what everybody knows. Pure."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from mesh_agent.agent import consul_json
from mesh_agent.agent import fields as f
from mesh_agent.agent.fields import Fields
from mesh_agent.agent.local_state import service_model
from mesh_agent.catalog import keys
from mesh_agent.catalog.view import View
from mesh_agent.errors import InvalidRequest
from mesh_agent.http import render
from mesh_agent.http.blocking import Reads
from mesh_agent.http.deps import Deps
from mesh_agent.http.message import Answer, Request, Response
from mesh_agent.http.routing import Routes
from mesh_agent.http.scope import Scope
from mesh_agent.model import Check, Instance, Node, Service, Status, Topic

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
Render = Callable[[View], Any]


class CatalogRoutes:
    """Routes of the catalog."""

    def __init__(self, deps: Deps, reads: Reads, scope: Scope) -> None:
        self._deps, self._reads, self._scope = deps, reads, scope

    def add(self, routes: Routes) -> None:
        """Fill the table."""
        routes.add("GET", "/v1/catalog/datacenters", self.datacenters)
        routes.add("GET", "/v1/catalog/nodes", self.nodes)
        routes.add("GET", "/v1/catalog/services", self.services)
        routes.add("GET", "/v1/catalog/service/{}", self.service)
        routes.add("GET", "/v1/catalog/connect/{}", lambda r, name: self.service(r, name, connect=True))
        routes.add("GET", "/v1/catalog/node/{}", self.node)
        routes.add("GET", "/v1/catalog/node-services/{}", self.node_services)
        routes.add("PUT", "/v1/catalog/register", self.register)
        routes.add("PUT", "/v1/catalog/deregister", self.deregister)
        routes.add("GET", "/v1/health/service/{}", self.health)
        routes.add("GET", "/v1/health/connect/{}", lambda r, name: self.health(r, name, connect=True))
        routes.add("GET", "/v1/health/checks/{}", self.checks)
        routes.add("GET", "/v1/health/node/{}", self.node_checks)
        routes.add("GET", "/v1/health/state/{}", self.state)
        routes.add("GET", "/v1/status/leader", self.leader)
        routes.add("GET", "/v1/status/peers", self.peers)

    # reads of one topic

    def _read(
        self, request: Request, kind: str, name: str, rendered: Callable[[View, str], Any]
    ) -> Answer | Awaitable[Answer]:
        datacenter = self._scope.datacenter(request)
        return self._reads.read(request, Topic(datacenter, kind, name), lambda view: rendered(view, datacenter))

    def service(self, request: Request, name: str, *, connect: bool = False) -> Answer | Awaitable[Answer]:
        """Instances of a service, healthy or not."""
        keep = _selection(request)
        return self._read(
            request,
            "connect" if connect else "service",
            name,
            lambda view, dc: [
                render.catalog_service(each, dc, view) for each in view.instances(name, connect=connect) if keep(each)
            ],
        )

    def health(self, request: Request, name: str, *, connect: bool = False) -> Answer | Awaitable[Answer]:
        """Instances of a service with their checks."""
        known = self._hot(request, name, connect)
        if known is not None:
            return known
        keep = _selection(request)
        passing = _passing(request)
        return self._read(
            request,
            "connect" if connect else "service",
            name,
            lambda view, dc: [
                render.health(each, dc, view)
                for each in view.instances(name, connect=connect)
                if keep(each) and (not passing or each.status is Status.PASSING)
            ],
        )

    def _hot(self, request: Request, name: str, connect: bool) -> Response | None:
        """The hot path: the same question again, and nothing changed."""
        if "index" in request.query:
            return None
        datacenter = request.first("dc") or self._deps.own
        return self._reads.cached(request.target, Topic(datacenter, "connect" if connect else "service", name))

    def checks(self, request: Request, name: str) -> Answer | Awaitable[Answer]:
        """Checks of a service's instances."""
        keep = _selection(request)
        return self._read(
            request,
            "service",
            name,
            lambda view, _: [
                render.check(check, view)
                for each in view.instances(name)
                if keep(each)
                for check in each.checks
                if check.service_id == each.service.id
            ],
        )

    def node(self, request: Request, name: str) -> Answer | Awaitable[Answer]:
        """A node with its services."""
        return self._read(request, "node", name, lambda view, dc: _node(view, dc, name, as_list=False))

    def node_services(self, request: Request, name: str) -> Answer | Awaitable[Answer]:
        """A node with its services, as a list."""
        return self._read(request, "node", name, lambda view, dc: _node(view, dc, name, as_list=True))

    def node_checks(self, request: Request, name: str) -> Answer | Awaitable[Answer]:
        """Checks of a node and of its services."""

        def rendered(view: View, _: str) -> Any:
            found = view.node(name)
            checks = [] if found is None else sorted(view.checks_of(found.name).items())
            return [render.check(check, view) for _, check in checks]

        return self._read(request, "node", name, rendered)

    # reads of a whole datacenter: only its servers can answer them

    def _read_all(self, request: Request, rendered: Callable[[View, str], Any]) -> Answer | Awaitable[Answer]:
        datacenter = self._scope.datacenter(request)
        if not self._scope.is_here(datacenter):
            return self._scope.forward(request, datacenter)
        return self._reads.read(request, Topic(datacenter, "all"), lambda view: rendered(view, datacenter))

    def nodes(self, request: Request) -> Answer | Awaitable[Answer]:
        """Every node."""
        meta = _meta(request)
        return self._read_all(
            request,
            lambda view, dc: [
                render.node(each, dc, view) for each in view.nodes() if meta.items() <= each.meta.items()
            ],
        )

    def services(self, request: Request) -> Answer | Awaitable[Answer]:
        """Every service name with its tags."""
        meta = _meta(request)
        return self._read_all(request, lambda view, _: view.service_tags(meta))

    def state(self, request: Request, state: str) -> Answer | Awaitable[Answer]:
        """Checks with a status."""
        if state not in ("any", *(status.value for status in Status)):
            raise InvalidRequest(f"{state!r} is not any, passing, warning or critical")
        meta = _meta(request)
        return self._read_all(
            request,
            lambda view, _: [
                render.check(check, view)
                for check in view.checks()
                if state in ("any", check.status.value) and (not meta or view.has_meta(check.node, meta))
            ],
        )

    def datacenters(self, request: Request) -> Answer:
        """Every known datacenter, the own one first."""
        return Response.json(self._deps.catalog.datacenters())

    def leader(self, request: Request) -> Answer | Awaitable[Answer]:
        """A server that accepts writes. Any does: the first by name stands for them."""
        datacenter = self._scope.datacenter(request)
        if datacenter != self._deps.own:
            return self._scope.forward(request, datacenter)
        return Response.json(next(iter(self._servers()), ""))

    def peers(self, request: Request) -> Answer | Awaitable[Answer]:
        """Every live server."""
        datacenter = self._scope.datacenter(request)
        if datacenter != self._deps.own:
            return self._scope.forward(request, datacenter)
        return Response.json(self._servers())

    def _servers(self) -> list[str]:
        members = self._deps.lan.members
        return [
            f"{member.address}:{member.tags.get('port', '')}"
            for member in members
            if member.status == "alive" and member.tags.get("role") == "consul"
        ]

    # writes for things without an agent

    def register(self, request: Request) -> Awaitable[Answer]:
        """Enter a node, a service or checks directly; the body's Datacenter counts."""
        fields = Fields(f.decode_object(request.body))
        datacenter = fields.take("Datacenter", f.text, "") or self._deps.own
        return self._elsewhere(request, datacenter) or self._register(fields)

    def deregister(self, request: Request) -> Awaitable[Answer]:
        """Take a node, a service or a check away; unknown ones are no error."""
        fields = Fields(f.decode_object(request.body))
        datacenter = fields.take("Datacenter", f.text, "") or self._deps.own
        return self._elsewhere(request, datacenter) or self._deregister(fields)

    def _elsewhere(self, request: Request, datacenter: str) -> Awaitable[Answer] | None:
        if self._scope.is_here(datacenter):
            return None
        if datacenter != self._deps.own:
            request.query["dc"] = [datacenter]
            self._scope.datacenter(request)
        return self._scope.forward(request, datacenter)

    async def _register(self, fields: Fields) -> Answer:
        skip_node = fields.take("SkipNodeUpdate", f.flag, False)
        node = _catalog_node(fields)
        name = node.name
        fields.ignore("Token", "WriteRequest", "EnterpriseMeta", "Namespace", "Partition")
        service = fields.take("Service", lambda value, _: value, None)
        found: list[Any] = [*fields.take("Checks", f.items, []), *fields.take("Check", lambda one, _: [one], [])]
        fields.done()
        view = self._all()
        is_known = view.node(name) is not None
        if not name:
            raise InvalidRequest("Must provide node")
        if not node.address and not (skip_node and is_known):
            raise InvalidRequest("Must provide address (without one: SkipNodeUpdate, for a node that is known)")
        puts = {} if skip_node and is_known else {keys.node(name): msgspec.json.encode(node)}
        services = view.services_of(name)
        if service is not None:
            entered = _catalog_service(service, name)
            services[entered.id] = entered
            puts[keys.service(name, entered.id)] = msgspec.json.encode(entered)
        for at, each in enumerate(found):
            check = _catalog_check(each, f"Checks[{at}]", name, services)
            puts[keys.check(name, check.id)] = msgspec.json.encode(check)
        await self._write(puts, [])
        return Response.json(True)

    async def _deregister(self, fields: Fields) -> Answer:
        name = fields.take("Node", f.text, "")
        service_id = fields.take("ServiceID", f.text, "")
        check_id = fields.take("CheckID", f.text, "")
        fields.ignore("Token", "WriteRequest", "EnterpriseMeta", "Namespace", "Partition", "Address")
        fields.done()
        if not name:
            raise InvalidRequest("Must provide node")
        view = self._all()
        checks = view.checks_of(name)
        if check_id:
            gone = [keys.check(name, check_id)]
        elif service_id:
            of_service = [keys.check(name, each.id) for each in checks.values() if each.service_id == service_id]
            gone = [keys.service(name, service_id), *of_service]
        else:
            gone = [keys.node(name), *(keys.service(name, each) for each in view.services_of(name))]
            gone += [keys.check(name, each) for each in checks]
        await self._write({}, [key for key in gone if view.record(key) is not None])
        return Response.json(True)

    def _all(self) -> View:
        view = self._deps.catalog.view(Topic(self._deps.own, "all"))
        if view is None:
            raise InvalidRequest("this agent is not a server")
        return view

    async def _write(self, puts: dict[str, bytes], deletes: list[str]) -> None:
        if self._deps.writer is None:
            raise InvalidRequest("this agent is not a server")
        if puts or deletes:
            await self._deps.writer.commit(puts, deletes)


def _catalog_node(fields: Fields) -> Node:
    node_id = fields.take("ID", f.text, "")
    if node_id and not _UUID.fullmatch(node_id):
        raise InvalidRequest(f"ID: {node_id!r} is not a UUID; leave it out if the node has none")
    return Node(
        name=fields.take("Node", f.name, ""),
        id=node_id,
        address=fields.take("Address", f.name, ""),
        tagged_addresses=fields.take("TaggedAddresses", f.mapping, {}),
        meta=fields.take("NodeMeta", f.mapping, {}),
    )


def _catalog_service(value: Any, node: str) -> Service:  # decoded JSON
    renamed = value
    if isinstance(value, dict):  # the catalog calls the name `Service`
        renamed = {"Name" if key.lower() == "service" else key: each for key, each in value.items()}
    return service_model(consul_json.service(renamed, "Service"), node)


def _catalog_check(value: Any, path: str, node: str, services: dict[str, Service]) -> Check:  # decoded JSON
    fields = Fields(value, path)
    name = fields.take("Name", f.text, "")
    status = fields.take("Status", f.text, "critical")
    if status not in {each.value for each in Status}:
        raise InvalidRequest(f"{path}.Status: {status!r} is not passing, warning or critical")
    service_id = fields.take("ServiceID", f.text, "")
    service = services.get(service_id)
    if service_id and service is None:
        raise InvalidRequest(f"{path}: Missing service registration: node {node!r} has no service {service_id!r}")
    found = Check(
        id=fields.take("CheckID", f.text, "") or name,
        node=fields.take("Node", f.text, node) or node,
        name=name,
        status=Status(status),
        notes=fields.take("Notes", f.text, ""),
        output=fields.take("Output", f.text, ""),
        service_id=service_id,
        service_name=fields.take("ServiceName", f.text, "") or (service.name if service else ""),
        service_tags=service.tags if service else (),
        kind=fields.take("Type", f.text, ""),
    )
    fields.ignore("Definition", "ServiceTags", "Namespace", "Partition", "CreateIndex", "ModifyIndex")
    fields.done()
    if not found.id:
        raise InvalidRequest(f"{path}: a check needs a CheckID or a Name")
    if found.node != node:
        raise InvalidRequest(f"{path}: the check is of node {found.node!r}, not {node!r}")
    return found


def _node(view: View, datacenter: str, name: str, *, as_list: bool) -> Any:
    found = view.node(name)
    if found is None:
        return {"Node": None, "Services": None} if as_list else None
    services = [render.health_service(each, view) for _, each in sorted(view.services_of(found.name).items())]
    return {
        "Node": render.node(found, datacenter, view),
        "Services": services if as_list else {each["ID"]: each for each in services},
    }


def _meta(request: Request) -> dict[str, str]:
    pairs = (pair.partition(":") for pair in request.query.get("node-meta", []))
    return {key: value for key, _, value in pairs}


def _selection(request: Request) -> Callable[[Instance], bool]:
    """`?tag=` (all of them, case folded as in Consul) and `?node-meta=key:value`."""
    tags = {tag.lower() for tag in request.query.get("tag", [])}
    meta = _meta(request)
    return lambda each: (
        tags <= {tag.lower() for tag in each.service.tags} and meta.items() <= each.node.meta.items()
        if tags or meta
        else True
    )


def _passing(request: Request) -> bool:
    values = request.query.get("passing")
    if values is None:
        return False
    if values[-1].lower() not in ("", "true", "false", "1", "0", "t", "f"):
        raise InvalidRequest("Invalid value for ?passing")
    return values[-1].lower() not in ("false", "0", "f")
