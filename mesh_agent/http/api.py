"""The public HTTP API: every route of it. Pure."""

from collections.abc import Awaitable

from mesh_agent.errors import InvalidRequest
from mesh_agent.http.agent_routes import AgentRoutes
from mesh_agent.http.blocking import Reads
from mesh_agent.http.catalog_routes import CatalogRoutes
from mesh_agent.http.config_routes import ConfigRoutes
from mesh_agent.http.connect_routes import ConnectRoutes
from mesh_agent.http.deps import Deps
from mesh_agent.http.message import Answer, Request, Response, Upgrade, indented
from mesh_agent.http.routing import Routes, error_response
from mesh_agent.http.scope import Scope


class Api:
    """Answers requests of the public API."""

    def __init__(self, deps: Deps) -> None:
        reads, scope = Reads(deps), Scope(deps)
        self._routes = Routes()
        self._routes.add("GET", "/", lambda request: Response.text(200, "Mesh Agent"))
        AgentRoutes(deps, reads).add(self._routes)
        CatalogRoutes(deps, reads, scope).add(self._routes)
        ConnectRoutes(deps, reads, scope).add(self._routes)
        ConfigRoutes(deps, reads, scope).add(self._routes)

    def handle(self, request: Request) -> Answer | Awaitable[Answer]:
        """Answer one request."""
        query = request.query
        if "filter" in query and request.first("filter"):
            return error_response(InvalidRequest(_NO_FILTERS))
        answer = self._routes.dispatch(request)
        return _pretty(answer) if "pretty" in query and request.flag("pretty") else answer


_NO_FILTERS = "?filter= expressions are not supported; use ?tag=, ?node-meta= or filter the answer"


def _pretty(answer: Answer | Awaitable[Answer]) -> Answer | Awaitable[Answer]:
    if isinstance(answer, Response | Upgrade):
        return indented(answer) if isinstance(answer, Response) else answer
    return _pretty_later(answer)


async def _pretty_later(pending: Awaitable[Answer]) -> Answer:
    answer = await pending
    return indented(answer) if isinstance(answer, Response) else answer
