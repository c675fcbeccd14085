"""Which route answers, what holes catch, and what refusals look like."""

from collections.abc import Awaitable

import pytest

from mesh_agent.errors import (
    InvalidRequest,
    JoinFailed,
    MeshError,
    NoPathToDatacenter,
    NotFound,
    PermissionDenied,
    RemoteProtocolError,
    StoreConflict,
    StoreUnavailable,
)
from mesh_agent.http.message import Answer, Request, Response
from mesh_agent.http.routing import Routes, error_response


def echo(request: Request, *caught: str) -> Response:
    return Response.json([request.method, *caught])


def table() -> Routes:
    routes = Routes()
    routes.add("GET", "/v1/fixed", echo)
    routes.add("GET", "/v1/service/{}", echo)
    routes.add("PUT", "/v1/service/register", echo)
    routes.add("PUT", "/v1/service/deregister/{}", echo)
    routes.add("GET", "/v1/pair/{}/{}", echo)
    routes.add("PUT", "/v1/several", echo)
    routes.add("DELETE", "/v1/several", echo)
    return routes


def answer(method: str, path: str, routes: Routes | None = None) -> Response:
    found = (routes or table()).dispatch(Request(method=method, path=path))
    assert isinstance(found, Response)
    return found


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/fixed", b'["GET"]'),
        ("GET", "/v1/service/web", b'["GET","web"]'),
        ("PUT", "/v1/service/register", b'["PUT"]'),
        ("PUT", "/v1/service/deregister/web", b'["PUT","web"]'),
        ("GET", "/v1/pair/one/two", b'["GET","one","two"]'),
        ("GET", "/v1/service/a%2Fb", b'["GET","a/b"]'),
        ("GET", "/v1/service/a%20b", b'["GET","a b"]'),
        ("GET", "/v1/service/a+b", b'["GET","a+b"]'),
        ("GET", "/v1/service/%C3%A9", '["GET","é"]'.encode()),
        ("GET", "/v1/service/%7B%7D", b'["GET","{}"]'),
        ("GET", "/v1/service/100%", b'["GET","100%"]'),
        ("GET", "/v1/service/web/more", b'["GET","web/more"]'),
        ("GET", "/v1/service//web", b'["GET","/web"]'),
        ("PUT", "/v1/service/deregister/a/b/", b'["PUT","a/b/"]'),
        ("GET", "/v1/pair/one/two/three", b'["GET","one","two/three"]'),
    ],
)
def test_a_hole_catches_one_decoded_part_and_the_last_one_all_that_is_left(method: str, path: str, body: bytes) -> None:
    assert answer(method, path).body == body


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/v1",
        "/v1/unknown",
        "/v1/fixed/",
        "/v1/fixed/more",
        "/v1/service",
        "/v1/pair/one",
        "//v1/fixed",
        "/v1/{}",
    ],
)
def test_an_unknown_path_is_an_empty_404(path: str) -> None:
    found = answer("GET", path)
    assert (found.status, found.body) == (404, b"")


@pytest.mark.parametrize("path", ["/v1/service/", "/v1/pair/one/", "/v1/pair//two"])
def test_a_name_must_not_be_missing(path: str) -> None:
    found = answer("GET", path)
    assert (found.status, found.body) == (400, f"Missing name in {path}".encode())


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/v1/fixed", "GET,OPTIONS"),
        ("HEAD", "/v1/fixed", "GET,OPTIONS"),
        ("POST", "/v1/service/web", "GET,OPTIONS"),
        ("GET", "/v1/service/register", "OPTIONS,PUT"),
        ("GET", "/v1/several", "DELETE,OPTIONS,PUT"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(method: str, path: str, allow: str) -> None:
    refused = answer(method, path)
    assert (refused.status, refused.header("allow")) == (405, allow)
    assert refused.body == f"method {method} not allowed".encode()
    asked = answer("OPTIONS", path)
    assert (asked.status, asked.header("allow"), asked.body) == (200, allow, b"")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequest("x"), 400),
        (RemoteProtocolError("x"), 400),
        (PermissionDenied("x"), 403),
        (NotFound("x"), 404),
        (StoreConflict("x"), 409),
        (StoreUnavailable("x"), 500),
        (NoPathToDatacenter("x"), 500),
        (JoinFailed("x"), 500),
        (MeshError("x"), 500),
    ],
)
async def test_errors_become_texts(error: MeshError, status: int) -> None:
    assert (error_response(error).status, error_response(error).body) == (status, b"x")

    def at_once(request: Request) -> Answer:
        raise error

    async def later(request: Request) -> Answer:
        raise error

    routes = Routes()
    routes.add("GET", "/at-once", at_once)
    routes.add("GET", "/later", later)
    assert answer("GET", "/at-once", routes).status == status
    pending = routes.dispatch(Request(method="GET", path="/later"))
    assert isinstance(pending, Awaitable)
    found = await pending
    assert isinstance(found, Response)
    assert (found.status, found.body) == (status, b"x")


def test_a_bug_is_not_hidden() -> None:
    def broken(request: Request) -> Answer:
        raise KeyError("bug")

    routes = Routes()
    routes.add("GET", "/", broken)
    with pytest.raises(KeyError):
        answer("GET", "/", routes)
