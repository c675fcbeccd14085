"""`/v1/connect`, `/v1/agent/connect`: roots, leafs, intentions, authorization. Pure."""

from collections.abc import Awaitable
from typing import Any

from mesh_agent.agent import fields as f
from mesh_agent.agent.fields import Fields
from mesh_agent.ca.spiffe_id import SpiffeId, service_of
from mesh_agent.catalog import config_entries, keys
from mesh_agent.catalog.intentions import decide, matching, ordered
from mesh_agent.catalog.view import View
from mesh_agent.errors import InvalidRequest, NotFound
from mesh_agent.http import render
from mesh_agent.http.blocking import Reads, parse_index, parse_wait
from mesh_agent.http.deps import Deps
from mesh_agent.http.message import Answer, Request, Response
from mesh_agent.http.routing import Route, Routes
from mesh_agent.http.scope import Scope
from mesh_agent.model import Action, Intention, Topic


class ConnectRoutes:
    """Routes of identities and policy. Intentions are the same in every datacenter."""

    def __init__(self, deps: Deps, reads: Reads, scope: Scope) -> None:
        self._deps, self._reads, self._scope = deps, reads, scope
        self._federated = Topic(deps.own, "federated")

    def add(self, routes: Routes) -> None:
        """Fill the table."""
        routes.add("GET", "/v1/connect/ca/roots", self.roots)
        routes.add("GET", "/v1/agent/connect/ca/roots", self.roots)
        routes.add("GET", "/v1/agent/connect/ca/leaf/{}", self.leaf)
        routes.add("POST", "/v1/agent/connect/authorize", self.authorize)
        for method, path, route in (
            ("GET", "/v1/connect/intentions", self.list),
            ("POST", "/v1/connect/intentions", self.create),
            ("GET", "/v1/connect/intentions/exact", self.exact),
            ("PUT", "/v1/connect/intentions/exact", self.put),
            ("DELETE", "/v1/connect/intentions/exact", self.delete),
            ("GET", "/v1/connect/intentions/match", self.match),
            ("GET", "/v1/connect/intentions/check", self.check),
            ("GET", "/v1/connect/intentions/{}", self.by_id),
            ("PUT", "/v1/connect/intentions/{}", self.put_by_id),
            ("DELETE", "/v1/connect/intentions/{}", self.delete_by_id),
        ):
            routes.add(method, path, self._of_a_datacenter(route))

    def _of_a_datacenter(self, route: Route) -> Route:
        """Intentions are the same everywhere; what is asked of a datacenter that does not exist is a mistake all the same."""

        def checked(request: Request, *caught: str) -> Answer | Awaitable[Answer]:
            self._scope.datacenter(request)
            return route(request, *caught)

        return checked

    # identities

    def roots(self, request: Request) -> Answer | Awaitable[Answer]:
        """The trust bundle; `?pem` as one PEM file."""
        if request.flag("pem"):
            return self._pem(request)
        trust_domain = self._deps.config.trust_domain
        return self._reads.read(
            request, self._federated, lambda view: render.roots(view.roots(), self._deps.own, trust_domain, view)
        )

    async def _pem(self, request: Request) -> Answer:
        view = await self._deps.catalog.ensure(self._federated)
        text = "".join(root.certificate_pem for root in view.roots())
        return Response(200, text.encode(), [("Content-Type", "application/pem-certificate-chain")])

    async def leaf(self, request: Request, service: str) -> Answer:
        """The leaf of a service of this node; a blocking query waits for the next one."""
        leafs = self._deps.leafs
        found = await leafs.leaf(service)
        seen = parse_index(request)
        if seen and seen == found.index:
            wait_s = parse_wait(request)
            await self._reads.changed(lambda wake: leafs.listen(service, lambda _: wake()), wait_s)
            found = await leafs.leaf(service)
        return Response.json(render.leaf(found), headers=self._reads.headers(found.index))

    async def authorize(self, request: Request) -> Answer:
        """May the holder of a certificate talk to a service of this node?"""
        fields = Fields(f.decode_object(request.body))
        target = fields.take("Target", f.text, "")
        uri = fields.take("ClientCertURI", f.text, "")
        fields.take("ClientCertSerial", f.text, "")
        fields.ignore("Namespace", "Partition")
        fields.done()
        if not target or not uri:
            raise InvalidRequest("Target service and ClientCertURI must be specified")
        source = SpiffeId.parse(uri)
        service = service_of(source)
        if service is None:
            raise InvalidRequest(f"{uri} is not the identity of a service")
        if source.trust_domain != self._deps.config.trust_domain:
            return Response.json({"Authorized": False, "Reason": f"{source.trust_domain} is a foreign trust domain"})
        view = await self._deps.catalog.ensure(self._federated)
        decision = decide(view.intentions(), service[1], target, default_allow=self._default_allow)
        reason = "Default behavior configured by default_intention"
        if decision.intention is not None:
            matched = decision.intention
            reason = f"Matched intention: {matched.source} => {matched.destination} ({matched.action.value})"
        return Response.json({"Authorized": decision.allowed, "Reason": reason})

    @property
    def _default_allow(self) -> bool:
        return self._deps.config.default_intention == "allow"

    # intentions

    def list(self, request: Request) -> Answer | Awaitable[Answer]:
        """Every intention, the most specific first."""
        return self._reads.read(
            request,
            self._federated,
            lambda view: [render.intention(each, view) for each in ordered(view.intentions())],
        )

    def match(self, request: Request) -> Answer | Awaitable[Answer]:
        """Intentions that bear on a service as source or destination."""
        by, names = request.first("by"), request.query.get("name", [])
        if by not in ("source", "destination") or not names:
            raise InvalidRequest("required query parameters: by=source or by=destination, and name")

        def rendered(view: View) -> Any:
            found = {name: matching(view.intentions(), **{by: name}) for name in names}
            return {name: [render.intention(each, view) for each in several] for name, several in found.items()}

        return self._reads.read(request, self._federated, rendered)

    def check(self, request: Request) -> Answer | Awaitable[Answer]:
        """Would a connection be allowed?"""
        source, destination = _pair(request)
        allow = self._default_allow
        return self._reads.read(
            request,
            self._federated,
            lambda view: {"Allowed": decide(view.intentions(), source, destination, default_allow=allow).allowed},
        )

    async def exact(self, request: Request) -> Answer:
        """One intention by its pair."""
        return await self._one(*_pair(request))

    async def by_id(self, request: Request, intention_id: str) -> Answer:
        """One intention by its id."""
        return await self._one(*await self._pair_of(intention_id))

    async def _one(self, source: str, destination: str) -> Answer:
        view = await self._deps.catalog.ensure(self._federated)
        return Response.json(render.intention(_find(view, source, destination), view))

    async def _pair_of(self, intention_id: str) -> tuple[str, str]:
        view = await self._deps.catalog.ensure(self._federated)
        for each in view.intentions():
            if render.intention_id(each.source, each.destination) == intention_id:
                return each.source, each.destination
        raise NotFound("Intention not found")

    async def create(self, request: Request) -> Answer:
        """Add an intention; its pair must not have one."""
        given = _Given(request)
        if self._deps.writer is None:
            return await self._scope.forward(request, self._deps.own)
        view = await self._deps.catalog.ensure(self._federated)
        source, destination = given.source, given.destination
        if view.record(keys.intention(source, destination)) and _known(view, source, destination) is not None:
            raise InvalidRequest("duplicate intention found: use PUT /v1/connect/intentions/exact to change it")
        await self._write(given.intention(self._deps.clock.wall(), None))
        return Response.json({"ID": render.intention_id(source, destination)})

    async def put(self, request: Request) -> Answer:
        """Add or change the intention of a pair."""
        given = _Given(request)
        if self._deps.writer is None:
            return await self._scope.forward(request, self._deps.own)
        view = await self._deps.catalog.ensure(self._federated)
        await self._write(given.intention(self._deps.clock.wall(), _known(view, given.source, given.destination)))
        return Response.json(True)

    async def put_by_id(self, request: Request, intention_id: str) -> Answer:
        """Change an intention by its id; the id stands for its pair, which stays."""
        if self._deps.writer is None:
            return await self._scope.forward(request, self._deps.own)
        source, destination = await self._pair_of(intention_id)
        given = _Given(request)
        if (given.source, given.destination) != (source, destination):
            raise InvalidRequest(
                f"this is the intention of {source} => {destination}; another pair is another intention: PUT it to /v1/connect/intentions/exact"
            )
        await self.put(request)
        return Response.json({"ID": intention_id})

    async def delete(self, request: Request) -> Answer:
        """Forget the intention of a pair; an unknown pair is no error."""
        return await self._delete(request, *_pair(request))

    async def delete_by_id(self, request: Request, intention_id: str) -> Answer:
        """Forget an intention by its id."""
        return await self._delete(request, *await self._pair_of(intention_id))

    async def _delete(self, request: Request, source: str, destination: str) -> Answer:
        if self._deps.writer is None:
            return await self._scope.forward(request, self._deps.own)
        view = await self._deps.catalog.ensure(self._federated)
        if _known(view, source, destination) is not None:
            await self._deps.writer.change_federated(config_entries.without_intention(view, source, destination))
        return Response.json(True)

    async def _write(self, intention: Intention) -> None:
        if self._deps.writer is None:
            raise InvalidRequest("this agent is not a server")
        await self._deps.writer.put_federated(keys.intention(intention.source, intention.destination), intention)


class _Given:
    """An intention as a request gives it: names in the body, or in the query."""

    def __init__(self, request: Request) -> None:
        fields = Fields(f.decode_object(request.body))
        self.source = _named("SourceName", fields.take("SourceName", f.name, ""), request.first("source"))
        self.destination = _named(
            "DestinationName", fields.take("DestinationName", f.name, ""), request.first("destination")
        )
        self._action = fields.take("Action", f.text, "")
        self._description = fields.take("Description", f.text, "")
        self._meta: dict[str, str] = fields.take("Meta", f.mapping, {})
        kind = fields.take("SourceType", f.text, "consul")
        fields.ignore("ID", "SourceNS", "DestinationNS", "Precedence", "CreatedAt", "UpdatedAt", "DefaultAddr")
        fields.ignore("CreateIndex", "ModifyIndex", "Hash", "DefaultPort", "SourcePartition", "DestinationPartition")
        if fields.take("Permissions", f.items, []):
            raise InvalidRequest("Permissions (rules for single paths) are not supported; use Action")
        fields.done()
        if not self.source or not self.destination:
            raise InvalidRequest("SourceName and DestinationName must be set")
        if self._action not in ("allow", "deny"):
            raise InvalidRequest("Action must be set to 'allow' or 'deny'")
        if kind != "consul":
            raise InvalidRequest("SourceType must be 'consul'")

    def intention(self, now: float, known: Intention | None) -> Intention:
        return Intention(
            source=self.source,
            destination=self.destination,
            action=Action(self._action),
            description=self._description,
            meta=self._meta,
            created_at=known.created_at if known else now,
            updated_at=now,
        )


def _named(what: str, name: str, asked: str) -> str:
    """The service that body and query agree on."""
    asked = asked.removeprefix("default/")
    if name and asked and name != asked:
        raise InvalidRequest(f"{what} is {name!r} in the body and {asked!r} in the query")
    found = name or asked
    if "*" in found and found != "*":
        raise InvalidRequest(f"{what}: {found!r} holds a wildcard; '*' stands for every service, alone, or not at all")
    return found


def _pair(request: Request) -> tuple[str, str]:
    source, destination = request.first("source"), request.first("destination")
    if not source or not destination:
        raise InvalidRequest("required query parameters: source and destination")
    return source.removeprefix("default/"), destination.removeprefix("default/")


def _known(view: View, source: str, destination: str) -> Intention | None:
    return next((i for i in view.intentions() if (i.source, i.destination) == (source, destination)), None)


def _find(view: View, source: str, destination: str) -> Intention:
    found = _known(view, source, destination)
    if found is None:
        raise NotFound("Intention not found")
    return found
