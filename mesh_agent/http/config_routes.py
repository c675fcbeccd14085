"""`/v1/config`: config entries. They are the same in every datacenter. Pure."""

from collections.abc import Awaitable, Callable
from typing import Any

from mesh_agent.catalog import config_entries
from mesh_agent.catalog.config_entries import Changes
from mesh_agent.catalog.view import View
from mesh_agent.errors import InvalidRequest, NotFound, StoreConflict
from mesh_agent.http import config_json
from mesh_agent.http.blocking import Reads
from mesh_agent.http.deps import Deps, Writer
from mesh_agent.http.message import Answer, Request, Response
from mesh_agent.http.routing import Routes
from mesh_agent.http.scope import Scope
from mesh_agent.model import Topic

_ATTEMPTS = 5
_PATIENCE_S = 0.5
"""How long a write waits for the View to show what it collided with."""

Plan = Callable[[View], tuple[Changes, dict[str, int]]]


class ConfigRoutes:
    """Routes of config entries."""

    def __init__(self, deps: Deps, reads: Reads, scope: Scope) -> None:
        self._deps, self._reads, self._scope = deps, reads, scope
        self._federated = Topic(deps.own, "federated")

    def add(self, routes: Routes) -> None:
        """Fill the table."""
        routes.add("PUT", "/v1/config", self.put)
        routes.add("GET", "/v1/config/", lambda request: self.list(request, ""))
        routes.add("GET", "/v1/config/{}", self.list)
        routes.add("GET", "/v1/config/{}/{}", self.get)
        routes.add("DELETE", "/v1/config/{}/{}", self.delete)

    def list(self, request: Request, kind: str) -> Answer | Awaitable[Answer]:
        """Every entry of a kind, or of all kinds if the path names none."""
        kinds = [config_json.known_kind(kind)] if kind else config_entries.KINDS
        return self._read(
            request,
            lambda view: [config_json.render(found) for each in kinds for found in config_entries.find_all(view, each)],
        )

    def get(self, request: Request, kind: str, name: str) -> Answer | Awaitable[Answer]:
        """One entry."""
        config_json.known_kind(kind)

        def rendered(view: View) -> Any:
            found = config_entries.find(view, kind, name)
            if found is None:
                raise NotFound(f'Config entry not found for "{kind}" / "{name}"')
            return config_json.render(found)

        return self._read(request, rendered)

    def _read(self, request: Request, rendered: Callable[[View], Any]) -> Answer | Awaitable[Answer]:
        datacenter = self._scope.datacenter(request)
        if datacenter != self._deps.own:
            return self._scope.forward(request, datacenter)
        return self._reads.read(request, self._federated, rendered)

    async def put(self, request: Request) -> Answer:
        """Write an entry; with `?cas=` only if its ModifyIndex is that one (0: if there is none)."""
        given = config_json.parse(request.body, self._deps.clock.wall())
        kind, name = given.entry.kind, given.entry.name
        cas = _cas(request)
        writer = self._writer(request)
        if writer is None:
            return await self._scope.forward(request, self._scope.datacenter(request))
        done = await self._write(
            writer, kind, name, cas, lambda view: config_entries.put(view, given.entry, given.sources)
        )
        return Response.json(done)

    async def delete(self, request: Request, kind: str, name: str) -> Answer:
        """Forget an entry; an unknown one is no error. With `?cas=` only if its ModifyIndex is that one."""
        config_json.known_kind(kind)
        cas = _cas(request)
        writer = self._writer(request)
        if writer is None:
            return await self._scope.forward(request, self._scope.datacenter(request))
        done = await self._write(writer, kind, name, cas, lambda view: config_entries.delete(view, kind, name))
        return Response.json({} if cas is None else done)

    def _writer(self, request: Request) -> Writer | None:
        """Who writes here; None if a server, or another datacenter, has to."""
        return self._deps.writer if self._scope.is_here(self._scope.datacenter(request)) else None

    async def _write(self, writer: Writer, kind: str, name: str, cas: int | None, plan: Plan) -> bool:
        """Plan and write until nobody interferes; False when `cas` is not what the entry is at."""
        view = await self._deps.catalog.ensure(self._federated)
        for attempt in range(1, _ATTEMPTS + 1):
            found = config_entries.find(view, kind, name)
            if cas is not None and cas != (found.modified if found else 0):
                return False
            changes, expect = plan(view)
            try:
                if changes:
                    await writer.change_federated(changes, expect)
                return True
            except StoreConflict:
                if cas is not None:
                    return False
                if attempt == _ATTEMPTS:
                    raise
            await self._reads.changed(lambda wake: view.listen(self._federated, lambda _: wake()), _PATIENCE_S)
        raise AssertionError("the last attempt returns or raises")


def _cas(request: Request) -> int | None:
    text = request.first("cas")
    if "cas" not in request.query:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise InvalidRequest("Invalid cas: it must be the ModifyIndex of the entry, or 0")
    return int(text)
