"""Calls to servers over mutual TLS: of the own datacenter (a client agent) or of another one (a server).

A server is believed when its certificate chains to the trust bundle and carries the SPIFFE ID of a server of the datacenter that was asked for.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from mesh_agent.ca.spiffe_id import SpiffeId, server_datacenter
from mesh_agent.errors import (
    InvalidRequest,
    MeshError,
    NoPathToDatacenter,
    NoServers,
    NotFound,
    PermissionDenied,
    Unreachable,
)
from mesh_agent.http.client import HttpClient
from mesh_agent.http.message import Response
from mesh_agent.http.server import FrameStream
from mesh_agent.rpc.router import MemberLike, Router, ServerAddress

log = logging.getLogger(__name__)
_TRIES = 3


class Identity(Protocol):
    """The agent's own certificate and the bundle it trusts, as TLS contexts."""

    trust_domain: str

    def client_context(self) -> ssl.SSLContext:
        """The context to connect with; another object after every change of certificate or bundle."""
        ...


class Rpc:
    """Finds a server, speaks to it, and goes on to the next one when it does not answer."""

    def __init__(
        self,
        datacenter: str,
        identity: Identity,
        members: Callable[[str], Iterable[MemberLike]],
        router: Router,
        *,
        connect_timeout_s: float = 1.0,
    ) -> None:
        self._datacenter = datacenter
        self._identity = identity
        self._members = members
        self._router = router
        self._connect_timeout_s = connect_timeout_s
        self._clients: dict[str, tuple[ssl.SSLContext, HttpClient]] = {}

    def servers(self, datacenter: str) -> list[ServerAddress]:
        """Live servers of a datacenter in the order to try; NoServers or NoPathToDatacenter if there is none."""
        found = self._router.servers(self._members(datacenter), datacenter)
        if found:
            return found
        if datacenter == self._datacenter:
            raise NoServers(
                f"no server of datacenter {datacenter!r} is alive in gossip; check retry_join and `mesh members`"
            )
        raise NoPathToDatacenter(f"No path to datacenter {datacenter!r}: none of its servers is alive in the WAN pool")

    async def request(
        self,
        datacenter: str,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 10.0,
        repeatable: bool = True,
    ) -> Response:
        """One request to a server of `datacenter`; the next server is tried when one does not answer and the request is repeatable."""
        failure: Unreachable | None = None
        for server in self.servers(datacenter)[:_TRIES]:
            try:
                client = self._client(datacenter)
                return await client.request(
                    method, server.target, target, headers=dict(headers or {}), body=body, timeout_s=timeout_s
                )
            except Unreachable as error:
                log.info("server %s does not answer: %s", server.name, error)
                self._router.failed(server)
                failure = error
                if not repeatable:
                    break
        raise self._gone(datacenter, failure)

    async def call(self, path: str, body: Mapping[str, Any], *, timeout_s: float = 10.0) -> Any:  # JSON of any shape
        """POST JSON to an internal route of the own datacenter's servers; error statuses become the errors that they stand for."""
        response = await self.request(
            self._datacenter, "POST", path, body=msgspec.json.encode(body), timeout_s=timeout_s
        )
        raise_for_status(response)
        return msgspec.json.decode(response.body) if response.body else None

    async def open_stream(self, datacenter: str, path: str, protocol: str) -> FrameStream:
        """Upgrade a connection to a server of `datacenter` to a stream of frames."""
        failure: Unreachable | None = None
        for server in self.servers(datacenter)[:_TRIES]:
            try:
                return await self._client(datacenter).upgrade(
                    server.target, path, protocol, timeout_s=3 * self._connect_timeout_s
                )
            except Unreachable as error:
                self._router.failed(server)
                failure = error
        raise self._gone(datacenter, failure)

    async def close(self) -> None:
        """Close every pooled connection."""
        clients = [client for _, client in self._clients.values()]
        self._clients.clear()
        await asyncio.gather(*(client.close() for client in clients))

    def _client(self, datacenter: str) -> HttpClient:
        context = self._identity.client_context()
        known = self._clients.get(datacenter)
        if known is not None and known[0] is context:
            return known[1]
        client = HttpClient(context, verify=self._verifier(datacenter), connect_timeout_s=self._connect_timeout_s)
        self._clients[datacenter] = (context, client)
        if known is not None:
            asyncio.get_running_loop().create_task(known[1].close())
        return client

    def _verifier(self, datacenter: str) -> Callable[[ssl.SSLObject], None]:
        def verify(connection: ssl.SSLObject) -> None:
            found = peer_spiffe_id(connection)
            if (
                found is None
                or found.trust_domain != self._identity.trust_domain
                or server_datacenter(found) != datacenter
            ):
                raise Unreachable(
                    f"the peer is {found or 'nobody of the mesh'}, not a server of datacenter {datacenter!r}"
                )

        return verify

    def _gone(self, datacenter: str, failure: MeshError | None) -> Unreachable:
        if datacenter == self._datacenter:
            return NoServers(f"no server of datacenter {datacenter!r} answers: {failure}")
        return NoPathToDatacenter(f"No path to datacenter {datacenter!r}: {failure}")


def peer_spiffe_id(connection: ssl.SSLObject) -> SpiffeId | None:
    """The SPIFFE ID of the verified peer certificate; None without one."""
    certificate = connection.getpeercert() or {}
    names: Any = certificate.get("subjectAltName", ())  # the ssl module types this loosely
    uris = [value for kind, value in names if kind == "URI"]
    return SpiffeId.parse(uris[0]) if len(uris) == 1 else None


def raise_for_status(response: Response) -> None:
    """Turn an error response into the error that it stands for."""
    if response.status < 400:
        return
    text = response.body.decode("utf-8", "replace").strip() or f"status {response.status}"
    kinds: dict[int, type[MeshError]] = {400: InvalidRequest, 403: PermissionDenied, 404: NotFound}
    raise kinds.get(response.status, Unreachable)(text)
