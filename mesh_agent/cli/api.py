"""The CLI's road to an agent: one HTTP call per command, and errors as a person wants to read them.

Address and credentials come from flags, then `MESH_*`, then Consul's own variables (`CONSUL_HTTP_ADDR`, `CONSUL_HTTP_TOKEN`, `CONSUL_CACERT`,
`CONSUL_CLIENT_CERT`, `CONSUL_CLIENT_KEY`, `CONSUL_HTTP_SSL`, `CONSUL_HTTP_SSL_VERIFY`).
"""

import asyncio
import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from mesh_agent.errors import ConfigError, MeshError, Unreachable
from mesh_agent.http.client import HttpClient


class ApiError(MeshError):
    """The agent answered with an error status; the text is its own."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text or f"the agent answered {status}")
        self.status = status


@dataclass(frozen=True)
class Connection:
    """Where the agent is and how to speak to it."""

    address: str
    datacenter: str = ""
    token: str = ""
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    verify: bool = True

    @classmethod
    def resolve(cls, environ: Mapping[str, str], *, address: str = "", datacenter: str = "") -> "Connection":
        """From flags and the environment."""

        def setting(name: str) -> str:
            return environ.get(f"MESH_{name}") or environ.get(f"CONSUL_{name}") or ""

        chosen = address or setting("HTTP_ADDR") or "127.0.0.1:8500"
        if "://" not in chosen:
            secure = setting("HTTP_SSL").lower() in ("1", "true", "yes")
            chosen = f"{'https' if secure else 'http'}://{chosen}"
        _check_address(chosen)
        return cls(
            address=chosen.rstrip("/"),
            datacenter=datacenter,
            token=setting("HTTP_TOKEN"),
            ca_file=setting("CACERT"),
            certificate_file=setting("CLIENT_CERT"),
            key_file=setting("CLIENT_KEY"),
            verify=setting("HTTP_SSL_VERIFY").lower() not in ("0", "false", "no"),
        )


def _check_address(address: str) -> None:
    try:
        parts = urlsplit(address)
        is_good = parts.scheme == "unix" or (parts.scheme in ("http", "https") and parts.hostname and parts.port != 0)
    except ValueError:  # a port that is no number, brackets that do not match
        is_good = False
    if not is_good:
        raise ConfigError(
            f"{address!r} is not the address of an agent; write it like 127.0.0.1:8500, https://host:8501 or unix:///run/mesh/api.sock"
        )


class AgentApi:
    """Calls the HTTP API of one agent and returns decoded JSON."""

    def __init__(self, connection: Connection, *, timeout_s: float = 15.0) -> None:
        self.connection = connection
        self._timeout_s = timeout_s

    def get(self, path: str, **query: str) -> Any:  # JSON of any shape
        """GET; returns the decoded body."""
        return self.call("GET", path, None, query)

    def put(self, path: str, body: object = None, **query: str) -> Any:  # JSON of any shape
        """PUT with a JSON body."""
        return self.call("PUT", path, body, query)

    def post(self, path: str, body: object = None, **query: str) -> Any:  # JSON of any shape
        """POST with a JSON body."""
        return self.call("POST", path, body, query)

    def delete(self, path: str, body: object = None, **query: str) -> Any:  # JSON of any shape
        """DELETE."""
        return self.call("DELETE", path, body, query)

    def call(self, method: str, path: str, body: object, query: Mapping[str, str]) -> Any:  # JSON of any shape
        """One request; ApiError for an error status, Unreachable when nobody answers."""
        status, payload = asyncio.run(self._request(method, path, body, query))
        text = payload.decode("utf-8", "replace")
        if status >= 400:
            raise ApiError(status, text.strip())
        try:
            return json.loads(text) if text.strip() else None
        except ValueError:
            return text

    async def _request(self, method: str, path: str, body: object, query: Mapping[str, str]) -> tuple[int, bytes]:
        wanted = {key: value for key, value in query.items() if value}
        if self.connection.datacenter:
            wanted.setdefault("dc", self.connection.datacenter)
        target = f"{path}?{urlencode(wanted)}" if wanted else path
        headers = {"X-Consul-Token": self.connection.token} if self.connection.token else {}
        payload = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        client = HttpClient(self._ssl())
        try:
            response = await client.request(
                method, self.connection.address, target, headers=headers, body=payload, timeout_s=self._timeout_s
            )
        except Unreachable as error:
            reason = str(error).removeprefix(f"{self.connection.address}: ")
            raise Unreachable(
                f"no agent answers at {self.connection.address}: {reason}\n"
                "Is it running (`systemctl status mesh`)? Another address: --http-addr or MESH_HTTP_ADDR."
            ) from error
        finally:
            await client.close()
        return response.status, response.body

    def _ssl(self) -> ssl.SSLContext | None:
        connection = self.connection
        if not connection.address.startswith("https://"):
            return None
        try:
            context = ssl.create_default_context(cafile=connection.ca_file or None)
            if connection.certificate_file:
                context.load_cert_chain(connection.certificate_file, connection.key_file or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"the TLS files of the environment cannot be used: {error}") from error
        context.check_hostname = False  # certificates of the mesh name a SPIFFE ID, not a host
        if not connection.verify:
            context.verify_mode = ssl.CERT_NONE
        return context


def connection_from_environment(address: str = "", datacenter: str = "") -> Connection:
    """The connection that flags and this process's environment ask for."""
    return Connection.resolve(os.environ, address=address, datacenter=datacenter)
