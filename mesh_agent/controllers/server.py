"""Health and metrics of the controllers, plain HTTP for the kubelet and for Prometheus."""

from collections.abc import Callable

from mesh_agent.http.message import Request, Response
from mesh_agent.http.routing import Routes
from mesh_agent.http.server import HttpServer
from mesh_agent.telemetry import Metrics


class Operations:
    """`/healthz` (the process lives), `/readyz` (it works, or waits for the lease), `/metrics`."""

    def __init__(self, missing: Callable[[], list[str]], metrics: Metrics) -> None:
        self._missing, self._metrics = missing, metrics
        routes = Routes()
        routes.add("GET", "/healthz", lambda request: Response.text(200, "ok"))
        routes.add("GET", "/readyz", self._ready)
        routes.add("GET", "/metrics", self._render)
        self._server = HttpServer(routes.dispatch)

    async def start(self, port: int, host: str = "") -> int:
        """Listen; returns the port."""
        return await self._server.start(host, port)

    async def stop(self) -> None:
        """Close."""
        await self._server.stop()

    def _ready(self, request: Request) -> Response:
        missing = self._missing()
        return Response.text(503, "\n".join(missing)) if missing else Response.text(200, "ok")

    def _render(self, request: Request) -> Response:
        text = self._metrics.prometheus().encode()
        return Response(200, text, [("Content-Type", "text/plain; version=0.0.4; charset=utf-8")])
