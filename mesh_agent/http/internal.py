"""The internal RPC on 8300: what agents ask of servers, and requests that were forwarded. Pure.

Who may call what is decided by the SPIFFE ID of the verified client certificate: an agent of this datacenter, or a server of any datacenter of the trust
domain. Only the roots and the first join need none.
"""

import base64
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from mesh_agent.agent import fields as f
from mesh_agent.agent.fields import Fields
from mesh_agent.ca.runner import CertificateAuthority
from mesh_agent.ca.spiffe_id import SpiffeId, agent_of, server_datacenter
from mesh_agent.catalog import sync
from mesh_agent.catalog.view import View
from mesh_agent.errors import InvalidRequest, PermissionDenied
from mesh_agent.http.deps import Writer
from mesh_agent.http.message import Answer, FrameStreamLike, Handler, Request, Response, Upgrade
from mesh_agent.http.routing import Routes, error_response
from mesh_agent.http.scope import FORWARDED

SUBSCRIBE = "mesh-subscribe/1"


@dataclass(frozen=True)
class InternalDeps:
    """What the internal routes use."""

    datacenter: str
    trust_domain: str
    join_token: str
    view: View
    ca: CertificateAuthority
    writer: Writer
    publish: Callable[[FrameStreamLike, bool], Awaitable[None]]
    """Serve a stream of topics; the flag: to an agent of the own datacenter."""
    roots: Callable[[], list[str]]
    """Every root of the trust bundle, PEM."""
    public: Handler
    """The public API, for forwarded requests."""


class Internal:
    """Answers requests on the RPC port."""

    def __init__(self, deps: InternalDeps) -> None:
        self._deps = deps
        self._routes = Routes()
        self._routes.add("GET", "/v1/internal/ca/roots", self.roots)
        self._routes.add("POST", "/v1/internal/join", self.join)
        self._routes.add("POST", "/v1/internal/ca/sign", self.sign)
        self._routes.add("POST", "/v1/internal/sync", self.sync)
        self._routes.add("GET", "/v1/internal/subscribe", self.subscribe)

    def handle(self, request: Request) -> Answer | Awaitable[Answer]:
        """Answer one request."""
        if request.path.startswith("/v1/internal/"):
            return self._routes.dispatch(request)
        try:
            self._agent(request)
        except PermissionDenied as error:
            return error_response(error)
        if FORWARDED not in request.headers or request.path.startswith(("/v1/agent/", "/v1/operator/")):
            return error_response(PermissionDenied("only forwarded requests are answered here, and none of one agent"))
        return self._deps.public(request)

    def _agent(self, request: Request, *, own: bool = False) -> tuple[SpiffeId, str, str, bool]:
        """(identity, datacenter, node, server) of the caller; PermissionDenied if it may not be here."""
        uri = request.peer.spiffe_id
        if uri is None:
            raise PermissionDenied("this route needs the certificate of an agent; join first")
        identity = SpiffeId.parse(uri)
        agent = agent_of(identity)
        if agent is None or identity.trust_domain != self._deps.trust_domain:
            raise PermissionDenied(f"{uri} is not an agent of trust domain {self._deps.trust_domain!r}")
        datacenter, node = agent
        server = server_datacenter(identity) is not None
        if datacenter != self._deps.datacenter and (own or not server):
            raise PermissionDenied(f"{uri} is of another datacenter")
        return identity, datacenter, node, server

    def roots(self, request: Request) -> Answer:
        """The trust bundle; the caller checks it against gossip."""
        return Response.json({"trust_domain": self._deps.trust_domain, "roots": self._deps.roots()})

    def join(self, request: Request) -> Answer:
        """A new client agent's first certificate, for the join token. Servers hold the authority and need no token."""
        fields = Fields(f.decode_object(request.body))
        token, node = fields.take("token", f.text, ""), fields.take("node", f.text, "")
        csr = fields.take("csr", f.text, "")
        fields.done()
        if not self._deps.join_token or not hmac.compare_digest(token.encode(), self._deps.join_token.encode()):
            raise PermissionDenied(
                "the join token is wrong; join_token must be the same on every agent of a datacenter"
            )
        certificate = self._deps.ca.sign_agent(csr, node, server=False)
        return Response.json({"certificate": certificate, "roots": self._deps.roots()})

    def sign(self, request: Request) -> Answer:
        """A certificate for a service of the caller's node, the caller's own anew, or one for a webhook of its cluster."""
        _, _, node, server = self._agent(request, own=True)
        fields = Fields(f.decode_object(request.body))
        csr, kind = fields.take("csr", f.text, ""), fields.take("kind", f.text, "service")
        dns_names: tuple[str, ...] = fields.take("dns_names", f.texts, ())
        fields.done()
        if kind == "agent":
            certificate = self._deps.ca.sign_agent(csr, node, server=server)
        elif kind == "webhook":
            certificate = self._deps.ca.sign_webhook(csr, dns_names)
        else:
            running = {service.name for service in self._deps.view.services_of(node).values()}
            certificate = self._deps.ca.sign_service(csr, running.__contains__)
        return Response.json({"certificate": certificate, "roots": self._deps.roots()})

    async def sync(self, request: Request) -> Answer:
        """Records of the caller's node; values are base64 of their bytes."""
        _, _, node, _ = self._agent(request, own=True)
        fields = Fields(f.decode_object(request.body))
        given = fields.take("node", f.text, "")
        encoded: dict[str, str] = fields.take("puts", f.mapping, {})
        deletes: tuple[str, ...] = fields.take("deletes", f.texts, ())
        fields.done()
        if given != node:
            raise PermissionDenied(f"the agent of node {node!r} may not write for node {given!r}")
        puts = {key: _bytes(value, key) for key, value in encoded.items()}
        fresh, gone = sync.accepted(self._deps.view, node, puts, deletes)
        if fresh or gone:
            await self._deps.writer.commit(fresh, gone)
        return Response.json({"index": self._deps.view.index})

    def subscribe(self, request: Request) -> Answer:
        """The stream of topics."""
        _, datacenter, _, _ = self._agent(request)
        own = datacenter == self._deps.datacenter
        return Upgrade(SUBSCRIBE, lambda stream: self._deps.publish(stream, own))


def _bytes(value: Any, key: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:
        raise InvalidRequest(f"puts.{key}: not base64") from error
