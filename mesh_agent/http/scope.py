"""Where a request is answered: here, by a server of the own datacenter, or by one of another. Pure."""

from mesh_agent.errors import InvalidRequest, NoPathToDatacenter, NoServers
from mesh_agent.http.blocking import parse_wait
from mesh_agent.http.deps import Deps
from mesh_agent.http.message import Request, Response

FORWARDED = "x-mesh-forwarded"
"""How often a request was forwarded: once to a server of the own datacenter, once more to another datacenter, never further."""
_HOPS = ("0", "1")
_PASSED_ON = ("content-type", "x-consul-", "allow")
_READ_S = 10.0
_REMOTE_READ_S = 1.8
_WRITE_S = 8.0


class Scope:
    """Decides and forwards."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps

    def datacenter(self, request: Request) -> str:
        """The datacenter that is asked; NoPathToDatacenter for one that this server does not know (a client agent leaves that to its servers)."""
        asked = request.first("dc").lower() or self._deps.own
        known = self._deps.writer is None or asked in self._deps.catalog.datacenters()
        if asked != self._deps.own and not known:
            raise NoPathToDatacenter("No path to datacenter")
        return asked

    def is_here(self, datacenter: str) -> bool:
        """Whether this agent holds all of that datacenter."""
        return datacenter == self._deps.own and self._deps.writer is not None

    async def forward(self, request: Request, datacenter: str) -> Response:
        """Let a server of `datacenter` answer the same request."""
        hops = request.headers.get(FORWARDED, "0")
        if hops not in _HOPS:
            raise InvalidRequest(f"the request was forwarded {hops} times already; is {FORWARDED} set by hand?")
        if datacenter == self._deps.own and int(hops) and self._deps.writer is None:
            raise NoServers("a request was forwarded to an agent that is not a server")
        read = request.method in ("GET", "HEAD")
        timeout_s = _WRITE_S
        if read and "index" in request.query:
            timeout_s = parse_wait(request) * 17 / 16 + _READ_S
        elif read:
            timeout_s = _REMOTE_READ_S if self._deps.writer is not None else _READ_S
        response = await self._deps.forward(
            datacenter,
            request.method,
            request.target,
            request.body,
            timeout_s=timeout_s,
            repeatable=request.method != "POST",
            hops=int(hops) + 1,
        )
        kept = [(name, value) for name, value in response.headers if name.lower().startswith(_PASSED_ON)]
        return Response(response.status, response.body, kept)
