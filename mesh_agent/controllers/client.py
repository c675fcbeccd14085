"""The mesh as controllers see it: the HTTP API of their node's agent, at its port for pods, with a service account token. Shell.

Token and roots are files that the kubelet replaces; both are read again for every request. The peer must be an agent by its SPIFFE ID.
"""

import asyncio
import logging
import random
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec

from mesh_agent.ca.spiffe_id import agent_of
from mesh_agent.errors import ConfigError, MeshError, Unreachable
from mesh_agent.http.client import HttpClient
from mesh_agent.rpc.client import peer_spiffe_id, raise_for_status

log = logging.getLogger(__name__)
_TIMEOUT_S = 10.0
_WAIT_S = 60.0
_RETRY_S = (0.2, 10.0)


class Answer(NamedTuple):
    """A decoded answer and its X-Consul-Index (`at`; 0 without one)."""

    value: Any  # JSON
    at: int


class Mesh:
    """One agent's HTTP API."""

    def __init__(self, target: str, ca_file: Path | None = None, token_file: Path | None = None) -> None:
        self._target = target.rstrip("/")
        self._ca_file, self._token_file = ca_file, token_file
        self._roots = ""
        self._client: HttpClient | None = None

    async def get(self, path: str, **query: str) -> Any:  # JSON
        """GET; NotFound, PermissionDenied, InvalidRequest or Unreachable with the agent's own words."""
        return (await self.ask("GET", path, query)).value

    async def put(self, path: str, value: object = None, **query: str) -> Any:  # JSON
        """PUT; errors as `get`."""
        return (await self.ask("PUT", path, query, msgspec.json.encode(value))).value

    async def delete(self, path: str, **query: str) -> Any:  # JSON
        """DELETE; errors as `get`."""
        return (await self.ask("DELETE", path, query)).value

    async def ask(
        self, method: str, path: str, query: Mapping[str, str], body: bytes = b"", *, timeout_s: float = _TIMEOUT_S
    ) -> Answer:
        """One request."""
        client = await self._fresh_client()
        target = f"{path}?{urlencode(query)}" if query else path
        response = await client.request(
            method, self._target, target, headers=self._headers(), body=body, timeout_s=timeout_s
        )
        raise_for_status(response)
        index = response.header("X-Consul-Index")
        try:
            value = msgspec.json.decode(response.body) if response.body else None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unreachable(f"{self._target}{path} does not answer with JSON: {error}") from error
        return Answer(value, int(index) if index.isdecimal() else 0)

    def _headers(self) -> dict[str, str]:
        found = {"Content-Type": "application/json"}
        if self._token_file is not None:
            found["Authorization"] = f"Bearer {_read(self._token_file).strip()}"
        return found

    async def _fresh_client(self) -> HttpClient:
        roots = "" if self._ca_file is None else _read(self._ca_file)
        if self._client is not None and roots == self._roots:
            return self._client
        await self.close()
        context = None
        if self._ca_file is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False  # agents are known by their SPIFFE ID
            try:
                context.load_verify_locations(cadata=roots)
            except ssl.SSLError as error:
                raise ConfigError(f"{self._ca_file} holds no PEM certificates: {error}") from error
        self._roots = roots
        self._client = HttpClient(context, verify=_is_agent if context else None)
        return self._client

    async def close(self) -> None:
        """Let go of the connections."""
        if self._client is not None:
            await self._client.close()
        self._client = None


class Followed:
    """The newest answer of one blocking query. While it cannot be asked, what was answered last stays."""

    def __init__(self, mesh: Mesh, path: str, on_change: Callable[[], None], rng: random.Random, **query: str) -> None:
        self.value: Any = None  # JSON
        self.ready = False
        self.path = path
        self._mesh, self._query = mesh, query
        self._on_change = on_change
        self._rng = rng
        self._complaint = ""

    async def run(self) -> None:
        """Ask again and again, for ever."""
        index, pause_s = 0, _RETRY_S[0]
        while True:
            try:
                index = await self._ask(index)
                pause_s = _RETRY_S[0]
                continue
            except MeshError as error:
                if not self._complaint:
                    log.warning("%s cannot be followed; what is known counts until it can be: %s", self.path, error)
                self._complaint, index = str(error), 0
            await asyncio.sleep(pause_s * (0.5 + self._rng.random()))
            pause_s = min(_RETRY_S[1], pause_s * 2)

    async def _ask(self, index: int) -> int:
        waiting = {"index": str(index), "wait": f"{_WAIT_S:g}s"} if index else {}
        answer = await self._mesh.ask(
            "GET", self.path, {**self._query, **waiting}, timeout_s=_TIMEOUT_S + (_WAIT_S * 17 / 16 if index else 0)
        )
        if self._complaint:
            log.info("%s is followed again", self.path)
            self._complaint = ""
        if not self.ready or answer.value != self.value:
            self.value, self.ready = answer.value, True
            self._on_change()
        if not answer.at:
            raise Unreachable(f"{self.path} was answered without an index")
        return 0 if answer.at < index else answer.at


def _is_agent(connection: ssl.SSLObject) -> None:
    found = peer_spiffe_id(connection)
    if found is None or agent_of(found) is None:
        raise Unreachable(f"the peer is {found or 'nobody of the mesh'}, not an agent")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; is the volume of the controllers' pod there?") from error
