"""Which handler answers a request, and what an error looks like. Pure.

A route is a path of fixed parts and `{}` holes; a hole takes one part, decoded, and one that ends its path all that is left of it: many clients send ids
with slashes as they are. Texts and statuses of errors are Consul's.
"""

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

from mesh_agent.errors import (
    InvalidRequest,
    JoinFailed,
    MeshError,
    NotFound,
    PermissionDenied,
    RemoteProtocolError,
    StoreConflict,
    StoreUnavailable,
    Unreachable,
)
from mesh_agent.http.message import Answer, Request, Response

Route = Callable[..., Answer | Awaitable[Answer]]
"""Takes the request and what the holes of its path caught."""

_STATUS: dict[type[MeshError], int] = {
    InvalidRequest: 400,
    RemoteProtocolError: 400,
    PermissionDenied: 403,
    NotFound: 404,
    StoreConflict: 409,
    StoreUnavailable: 500,
    Unreachable: 500,
    JoinFailed: 500,
}


def status_of(error: MeshError) -> int:
    """The HTTP status of an error."""
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)


def error_response(error: MeshError) -> Response:
    """An error as text."""
    return Response.text(status_of(error), str(error))


class Routes:
    """A table of routes by path and method."""

    def __init__(self) -> None:
        self._fixed: dict[str, dict[str, Route]] = {}
        self._holes: dict[Any, Any] = {}  # a tree: part or None (a hole) -> subtree; "" -> methods

    def add(self, method: str, path: str, route: Route) -> None:
        """Answer `method path` with `route`."""
        if "{}" not in path:
            self._fixed.setdefault(path, {})[method] = route
            return
        tree = self._holes
        for part in path.split("/")[1:]:
            tree = tree.setdefault(None if part == "{}" else part, {})
        tree.setdefault("", {})[method] = route

    def find(self, path: str) -> tuple[dict[str, Route], list[str]] | None:
        """The methods of a path with what its holes caught; None for an unknown path."""
        methods = self._fixed.get(path)
        if methods is not None:
            return methods, []
        tree, caught = self._holes, []
        parts = path.split("/")[1:]
        for at, part in enumerate(parts):
            if part in tree and part:
                tree = tree[part]
            elif None not in tree:
                return None
            else:
                tree = tree[None]
                is_last = tree.keys() == {""}
                caught.append(unquote("/".join(parts[at:]) if is_last else part))
                if is_last:
                    break
        methods = tree.get("")
        return None if methods is None else (methods, caught)

    def dispatch(self, request: Request) -> Answer | Awaitable[Answer]:
        """Answer a request; errors of synchronous routes become responses."""
        found = self.find(request.path)
        if found is None:
            return Response(404)
        methods, caught = found
        route = methods.get(request.method)
        if route is None:
            return _no_such_method(request.method, methods)
        if "" in caught:
            return error_response(InvalidRequest(f"Missing name in {request.path}"))
        try:
            answer = route(request, *caught)
        except MeshError as error:
            return error_response(error)
        return answer if isinstance(answer, Response) or not hasattr(answer, "__await__") else _guarded(answer)


async def _guarded(pending: Awaitable[Answer]) -> Answer:
    try:
        return await pending
    except MeshError as error:
        return error_response(error)


def _no_such_method(method: str, methods: dict[str, Route]) -> Response:
    allow = ("Allow", ",".join(sorted({*methods, "OPTIONS"})))
    if method == "OPTIONS":
        return Response(200, b"", [allow])
    refusal = Response.text(405, f"method {method} not allowed")
    refusal.headers.append(allow)
    return refusal
