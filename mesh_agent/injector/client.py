"""Whom the injector asks: its node's agent for a certificate, and the API server about the one webhook configuration that is its own.

Tokens and roots are files that the kubelet replaces: each is read again for every request.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from mesh_agent.ca.spiffe_id import agent_of
from mesh_agent.errors import ConfigError, InvalidRequest, MeshError, NotFound, PermissionDenied, Unreachable
from mesh_agent.http.client import HttpClient, Verify
from mesh_agent.http.message import Response
from mesh_agent.rpc.client import peer_spiffe_id

_KINDS: dict[int, type[MeshError]] = {
    400: InvalidRequest,
    401: PermissionDenied,
    403: PermissionDenied,
    404: NotFound,
    422: InvalidRequest,
}
_CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that is verified by the roots of a file, and believes the token of another."""

    target: str
    ca_file: Path
    token_file: Path


class _Caller:
    """JSON over HTTPS with a bearer token."""

    def __init__(self, peer: Peer, *, by_name: bool, verify: Verify | None = None) -> None:
        """`by_name`: verify the host's name too (what is of the mesh has a SPIFFE ID instead, which `verify` checks)."""
        self._peer = peer
        self._by_name = by_name
        self._verify = verify
        self._roots = ""
        self._client: HttpClient | None = None

    async def call(self, method: str, path: str, value: Any, headers: Mapping[str, str] | None = None) -> Any:  # JSON
        """One request; error statuses become the errors that they stand for."""
        token = read(self._peer.token_file).strip()
        sent = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", **(headers or {})}
        body = b"" if value is None else msgspec.json.encode(value)
        client = await self._fresh_client()
        response = await client.request(method, self._peer.target, path, headers=sent, body=body)
        if response.status >= 400:
            kind = _KINDS.get(response.status, Unreachable)
            raise kind(f"{self._peer.target}{path} answered {response.status}: {_text(response)}")
        return msgspec.json.decode(response.body) if response.body else None

    async def _fresh_client(self) -> HttpClient:
        roots = read(self._peer.ca_file)
        if self._client is not None and roots == self._roots:
            return self._client
        await self.close()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self._by_name
        try:
            context.load_verify_locations(cadata=roots)
        except ssl.SSLError as error:
            raise ConfigError(f"{self._peer.ca_file} holds no PEM certificates: {error}") from error
        self._roots, self._client = roots, HttpClient(context, verify=self._verify)
        return self._client

    async def close(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            await self._client.close()
        self._client = None


class NodeAgent:
    """The agent of the node that this pod runs on, at its port for pods and controllers."""

    def __init__(self, peer: Peer) -> None:
        self._caller = _Caller(peer, by_name=False, verify=_is_agent)

    async def webhook_certificate(self, dns_names: tuple[str, ...], csr_pem: str) -> str:
        """A certificate (PEM) for the webhook, from the mesh's CA."""
        body = {"DNSNames": list(dns_names), "CSR": csr_pem}
        answer = await self._caller.call("PUT", "/v1/kubernetes/webhook-certificate", body)
        return str(answer["CertPEM"])

    async def close(self) -> None:
        """Let go of the connections."""
        await self._caller.close()


class WebhookConfiguration:
    """One MutatingWebhookConfiguration of the cluster."""

    def __init__(self, peer: Peer, name: str) -> None:
        self._caller = _Caller(peer, by_name=True)
        self._path = _CONFIGURATIONS + quote(name, safe="")

    async def bundles(self) -> dict[str, str]:
        """The `caBundle` (base64) of each of its webhooks, '' where there is none."""
        found = await self._caller.call("GET", self._path, None)
        return {each["name"]: each["clientConfig"].get("caBundle") or "" for each in found.get("webhooks") or ()}

    async def publish(self, bundle: str, webhooks: list[str]) -> None:
        """Set the `caBundle` of these webhooks; whatever else they say stays."""
        changes = {"webhooks": [{"name": name, "clientConfig": {"caBundle": bundle}} for name in webhooks]}
        merge = {"Content-Type": "application/strategic-merge-patch+json"}
        await self._caller.call("PATCH", f"{self._path}?fieldManager=mesh-injector", changes, merge)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._caller.close()


def read(path: Path) -> str:
    """A file as text; ConfigError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; is the volume of the injector's pod there?") from error


def _is_agent(connection: ssl.SSLObject) -> None:
    found = peer_spiffe_id(connection)
    if found is None or agent_of(found) is None:
        raise Unreachable(f"the peer is {found or 'nobody of the mesh'}, not an agent")


def _text(response: Response) -> str:
    """What an error says: the API server's Status, or the agent's text."""
    text = response.body.decode("utf-8", "replace").strip()
    try:
        return str(msgspec.json.decode(text)["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return text
