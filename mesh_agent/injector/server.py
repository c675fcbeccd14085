"""The injector's two HTTP servers: the webhook (HTTPS, certificate changed while connections go on), and health with metrics (plain)."""

import logging
import os
import ssl

from mesh_agent.clock import Clock
from mesh_agent.errors import InvalidRequest, Unreachable
from mesh_agent.http.message import Request, Response
from mesh_agent.http.routing import Routes
from mesh_agent.http.server import HttpServer
from mesh_agent.injector.readiness import Readiness
from mesh_agent.injector.review import answer
from mesh_agent.injector.settings import InjectorSettings
from mesh_agent.telemetry import Metrics

log = logging.getLogger(__name__)

NAMESPACE_PATH = "/v1/inject/namespace"
"""Pods of a namespace that takes part: all are injected but those whose annotation says no."""
POD_PATH = "/v1/inject/pod"
"""Pods of other namespaces: those alone whose annotation says yes."""
_MAX_BODY_BYTES = 8 * 1024 * 1024


class Certificates:
    """The TLS context of the webhook: every handshake uses the newest certificate."""

    def __init__(self) -> None:
        self._newest: ssl.SSLContext | None = None

    def use(self, certificate_pem: str, key_pem: str) -> None:
        """Serve this certificate from now on. The key is on no disk."""
        self._newest = _context(certificate_pem, key_pem)

    def front(self) -> ssl.SSLContext:
        """The context to listen with, for the life of the process."""
        if self._newest is None:
            raise Unreachable("the webhook has no certificate yet")
        front = self._newest

        def newest(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            if self._newest is not None:
                connection.context = self._newest

        # The first context serves for ever as the front; what it held itself is replaced in each handshake.
        front.sni_callback = newest
        return front


def _context(certificate_pem: str, key_pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    memory = os.memfd_create("webhook")  # OpenSSL reads keys from files alone
    try:
        os.write(memory, (certificate_pem + key_pem).encode())
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)
    return context


class Webhook:
    """Answers the API server; its decisions are `review.answer`."""

    def __init__(self, settings: InjectorSettings, metrics: Metrics, clock: Clock) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        routes = Routes()
        routes.add("POST", NAMESPACE_PATH, lambda request: self._review(request, by_default=True))
        routes.add("POST", POD_PATH, lambda request: self._review(request, by_default=False))
        self._server = HttpServer(routes.dispatch, max_body_bytes=_MAX_BODY_BYTES)
        metrics.describe("mesh_injector_reviews_total", "Admission reviews by outcome.")
        metrics.describe("mesh_injector_review_seconds_total", "Time spent on admission reviews.")

    async def start(self, port: int, context: ssl.SSLContext, host: str = "") -> int:
        """Listen; returns the port."""
        return await self._server.start(host, port, context)

    async def stop(self) -> None:
        """Finish what is in flight and close."""
        await self._server.stop()

    def _review(self, request: Request, *, by_default: bool) -> Response:
        started = self._clock.now()
        try:
            verdict = answer(request.body, self._settings, by_default=by_default)
        except InvalidRequest:
            self._metrics.count("mesh_injector_reviews_total", outcome="malformed")
            raise
        self._metrics.count("mesh_injector_reviews_total", outcome=verdict.outcome)
        self._metrics.count("mesh_injector_review_seconds_total", self._clock.now() - started)
        reason = f": {verdict.reason}" if verdict.reason else ""
        log.info("%s %s%s", verdict.pod, verdict.outcome, reason, extra={"outcome": verdict.outcome})
        return Response.json(verdict.review)


class Operations:
    """`/healthz` (the process lives), `/readyz` (it can answer the API server), `/metrics`."""

    def __init__(self, readiness: Readiness, metrics: Metrics, clock: Clock) -> None:
        self._readiness = readiness
        self._metrics = metrics
        self._clock = clock
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
        missing = self._readiness.missing(self._clock.wall())
        return Response.text(503, missing) if missing else Response.text(200, "ok")

    def _render(self, request: Request) -> Response:
        return Response(
            200, self._metrics.prometheus().encode(), [("Content-Type", "text/plain; version=0.0.4; charset=utf-8")]
        )
