"""The public HTTP API: every route of it. Pure."""

from collections.abc import Awaitable

from mesh_agent.http.agent_routes import AgentRoutes
from mesh_agent.http.blocking import Reads
from mesh_agent.http.catalog_routes import CatalogRoutes
from mesh_agent.http.config_routes import ConfigRoutes
from mesh_agent.http.connect_routes import ConnectRoutes
from mesh_agent.http.deps import Deps
from mesh_agent.http.message import Answer, Request, Response
from mesh_agent.http.routing import Routes
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
        return self._routes.dispatch(request)
