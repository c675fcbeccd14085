"""How an agent comes to trust servers it has never met: the roots that encrypted gossip vouches for.

A server's gossip tag `roots` names the fingerprints of its datacenter's active roots. Whoever can read encrypted gossip holds the pool's key, and so takes
the roots from any server of that datacenter over a connection that proves nothing yet, and believes those whose fingerprint gossip named.
"""

import logging
import ssl

import msgspec

from mesh_agent.ca.issue import fingerprint
from mesh_agent.errors import MeshError, Unreachable
from mesh_agent.http.client import HttpClient
from mesh_agent.rpc.client import raise_for_status
from mesh_agent.rpc.router import ServerAddress

log = logging.getLogger(__name__)

ROOTS_PATH = "/v1/internal/ca/roots"
TAG_LENGTH = 32
"""Hex digits of a fingerprint in the tag (128 bits): gossip metadata is limited to 512 bytes."""


def tag_of(fingerprints: list[str]) -> str:
    """The value of the tag `roots`."""
    return ",".join(sorted(each[:TAG_LENGTH] for each in fingerprints))


def vouches(server: ServerAddress, full_fingerprint: str) -> bool:
    """Whether a server's tag names that root."""
    return full_fingerprint[:TAG_LENGTH] in server.roots


async def fetch_roots(server: ServerAddress, *, timeout_s: float = 5.0) -> list[str]:
    """The PEM roots of a server that its gossip tag vouches for; Unreachable if there is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # what comes back is checked against the fingerprints of encrypted gossip
    client = HttpClient(context)
    try:
        response = await client.request("GET", server.target, ROOTS_PATH, timeout_s=timeout_s)
    finally:
        await client.close()
    raise_for_status(response)
    offered: list[str] = msgspec.json.decode(response.body)["roots"]
    believed = [pem for pem in offered if _vouched(server, pem)]
    if not believed:
        raise Unreachable(
            f"server {server.name} offers no root that its gossip tag vouches for; is something between us?"
        )
    return believed


def _vouched(server: ServerAddress, pem: str) -> bool:
    try:
        return vouches(server, fingerprint(pem))
    except (MeshError, ValueError) as error:
        log.warning("server %s offers a root that cannot be read: %s", server.name, error)
        return False
