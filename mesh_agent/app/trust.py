"""Whom this agent trusts and how it came by its own certificate.

A server signs its own certificate with its datacenter's authority. A client agent takes the roots that gossip vouches for from a server, sends the join
token and a CSR over a connection that those roots verify, and renews over mutual TLS from then on. A server that meets another datacenter takes that
datacenter's roots the same way, until the federated bundle brings them.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Iterable

import msgspec

from mesh_agent.app.roots import fetch_roots, vouches
from mesh_agent.ca.issue import fingerprint
from mesh_agent.ca.runner import AgentIdentity, CertificateAuthority
from mesh_agent.ca.spiffe_id import server_datacenter
from mesh_agent.catalog.view import View
from mesh_agent.errors import MeshError, PermissionDenied, Unreachable
from mesh_agent.http.client import HttpClient
from mesh_agent.model import Root
from mesh_agent.rpc.client import Rpc, peer_spiffe_id, raise_for_status
from mesh_agent.rpc.router import ServerAddress, server_of

log = logging.getLogger(__name__)
_RETRY_S = (0.5, 10.0)


class Trust:
    """The trust bundle in use: what the federated bundle says, and what gossip has vouched for and the bundle does not say yet."""

    def __init__(self, datacenter: str, identity: AgentIdentity) -> None:
        self._datacenter = datacenter
        self.identity = identity
        self._bundle: tuple[str, ...] = ()
        self._met: dict[str, list[str]] = {}

    def bundle(self) -> list[str]:
        """Every root, PEM."""
        return list(self.identity.roots)

    def follow(self, view: View) -> None:
        """Take over the federated bundle."""
        self._bundle = tuple(root.certificate_pem for root in view.roots() if root.active)
        self._apply()

    def _apply(self) -> None:
        met = [pem for pems in self._met.values() for pem in pems]
        if self._bundle:
            self.identity.set_roots([*self._bundle, *met])

    async def meet(self, servers: Iterable[ServerAddress]) -> None:
        """Before a datacenter is spoken to: take roots that gossip vouches for and that are not known yet."""
        known = {fingerprint(pem) for pem in self.identity.roots}
        for server in servers:
            if not server.roots or any(vouches(server, each) for each in known):
                continue
            with contextlib.suppress(Unreachable):
                self._met[server.datacenter] = await fetch_roots(server, timeout_s=2.0)
                log.info("took the roots of datacenter %s that gossip vouches for", server.datacenter)
                met = [pem for pems in self._met.values() for pem in pems]
                self.identity.set_roots([*self.identity.roots, *met])

    # certificates

    def sign_own(self, ca: CertificateAuthority, node: str) -> None:
        """A server's certificate, from its own authority."""
        key, csr = self.identity.request()
        self.identity.adopt(ca.sign_agent(csr, node, server=True), key, [ca.root_pem])

    async def enrol(self, rpc: Rpc, node: str, token: str) -> None:
        """A client agent's first certificate; tries until a server gives it one."""
        wait_s, last_s = _RETRY_S
        failing = False
        while True:
            try:
                await self._enrol(rpc.servers(self._datacenter), node, token)
                return
            except MeshError as error:
                log.log(logging.DEBUG if failing else logging.WARNING, "no certificate yet, trying again: %s", error)
                failing = not isinstance(error, PermissionDenied)
            await asyncio.sleep(wait_s)
            wait_s = min(last_s, wait_s * 1.5)

    async def _enrol(self, servers: list[ServerAddress], node: str, token: str) -> None:
        roots = await fetch_roots(servers[0], timeout_s=3.0)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata="".join(roots))
        client = HttpClient(context, verify=self._is_server)
        key, csr = self.identity.request()
        body = msgspec.json.encode({"token": token, "node": node, "csr": csr})
        try:
            response = await client.request("POST", servers[0].target, "/v1/internal/join", body=body, timeout_s=5.0)
        finally:
            await client.close()
        raise_for_status(response)
        answer = msgspec.json.decode(response.body)
        self.identity.adopt(answer["certificate"], key, [*roots, *answer["roots"]])
        log.info("joined the mesh as %s", self.identity.spiffe_id)

    def _is_server(self, connection: ssl.SSLObject) -> None:
        found = peer_spiffe_id(connection)
        if (
            found is None
            or server_datacenter(found) != self._datacenter
            or found.trust_domain != self.identity.trust_domain
        ):
            raise Unreachable(f"the peer is {found or 'nobody of the mesh'}, not a server of {self._datacenter!r}")


def vouched_by(members: Callable[[], Iterable[object]]) -> Callable[[Root], bool]:
    """Whether a living server's gossip tag names a root of its datacenter."""

    def vouched(root: Root) -> bool:
        servers = [server_of(member) for member in members()]  # type: ignore[arg-type]
        return any(s is not None and s.datacenter == root.datacenter and vouches(s, root.fingerprint) for s in servers)

    return vouched
