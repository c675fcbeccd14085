"""Whom the injector asks: its node's agent for a certificate, and the API server about the one webhook configuration that is its own."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from mesh_agent.controllers.client import Mesh
from mesh_agent.errors import ConfigError, RemoteProtocolError
from mesh_agent.kubernetes.client import KubernetesApi

_CERTIFICATE = "/v1/kubernetes/webhook-certificate"
_CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/"


class NodeAgent:
    """The agent of the node that this pod runs on, at its port for pods and controllers."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def webhook_certificate(self, dns_names: tuple[str, ...], csr_pem: str) -> str:
        """A certificate (PEM) for the webhook, from the mesh's CA."""
        answer = await self._mesh.put(_CERTIFICATE, {"DNSNames": list(dns_names), "CSR": csr_pem})
        try:
            return str(answer["Certificate"])
        except (KeyError, TypeError) as error:
            raise RemoteProtocolError("the agent's answer holds no certificate; is it of an older version?") from error


class WebhookConfiguration:
    """One MutatingWebhookConfiguration of the cluster."""

    def __init__(self, api: KubernetesApi, name: str) -> None:
        self._api = api
        self._path = _CONFIGURATIONS + quote(name, safe="")

    async def bundles(self) -> dict[str, str]:
        """The `caBundle` (base64) of each of its webhooks, '' where there is none."""
        found = await self._api.request("GET", self._path)
        return {each["name"]: each["clientConfig"].get("caBundle") or "" for each in found.get("webhooks") or ()}

    async def publish(self, bundles: Mapping[str, str]) -> None:
        """Set the `caBundle` of these webhooks; whatever else they say stays."""
        changes = {"webhooks": [{"name": name, "clientConfig": {"caBundle": each}} for name, each in bundles.items()]}
        await self._api.request(
            "PATCH",
            f"{self._path}?fieldManager=mesh-injector",
            changes,
            content_type="application/strategic-merge-patch+json",
        )


def read(path: Path) -> str:
    """A file as text; ConfigError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; is the volume of the injector's pod there?") from error
