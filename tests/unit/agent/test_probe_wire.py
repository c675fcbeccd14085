"""What probes send and understand."""

import pytest

from mesh_agent.agent.probes import wire
from mesh_agent.agent.probes.wire import Endpoint, HttpRequest
from mesh_agent.errors import InvalidRequest
from mesh_agent.model import Status


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:80", Endpoint("127.0.0.1", 80)),
        ("[::1]:80", Endpoint("::1", 80)),
        ("db.example.com:5432", Endpoint("db.example.com", 5432)),
    ],
)
def test_endpoints(text: str, found: Endpoint) -> None:
    assert wire.endpoint(text) == found


@pytest.mark.parametrize("text", ["", "a", ":1", "a:", "a:b", "a:0", "a:65536", "a:-1", "a b:1", "a:١"])
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(InvalidRequest, match="TCP: "):
        wire.endpoint(text, "TCP")


def test_an_http_request_as_consul_sends_it() -> None:
    request = HttpRequest(
        "GET", "http://u%40x:p@a.example:8080/h?x=1#part", {"X-A": ["1", "2"], "user-agent": ["me"]}, ""
    )
    assert request.encode().decode().split("\r\n") == [
        "GET /h?x=1 HTTP/1.1",
        "Host: a.example:8080",
        "Accept: text/plain, text/*, */*",
        "Connection: close",
        "Authorization: Basic dUB4OnA=",
        "X-A: 1",
        "X-A: 2",
        "user-agent: me",
        "",
        "",
    ]
    assert (
        HttpRequest("POST", "https://a?q", {"Host": ["b"]}, "é").encode().startswith(b"POST /?q HTTP/1.1\r\nUser-Agent")
    )
    assert HttpRequest("POST", "https://a", {}, "é").encode().endswith("Content-Length: 2\r\n\r\né".encode())
    assert wire.url("https://a").endpoint == Endpoint("a", 443)


@pytest.mark.parametrize(
    ("status", "location", "method", "url", "headers"),
    [
        (302, "/b", "GET", "http://a:1/b", {"Authorization": ["s"], "X": ["1"]}),
        (303, "http://a:1/c", "GET", "http://a:1/c", {"Authorization": ["s"], "X": ["1"]}),
        (307, "http://b:1/", "POST", "http://b:1/", {"X": ["1"]}),
    ],
)
def test_redirections(status: int, location: str, method: str, url: str, headers: dict[str, list[str]]) -> None:
    request = HttpRequest("POST", "http://a:1/x", {"Authorization": ["s"], "X": ["1"]}, "body")
    body = "" if method == "GET" else "body"
    assert request.redirected(status, location) == HttpRequest(method, url, headers, body)


def test_a_redirection_to_something_else_than_http_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        HttpRequest("GET", "http://a/", {}, "").redirected(302, "file:///etc/passwd")


def test_grpc_health_messages() -> None:
    assert wire.health_request("") == b""
    assert wire.health_request("web") == b"\x0a\x03web"
    assert wire.health_request("x" * 200) == b"\x0a\xc8\x01" + b"x" * 200
    for answer, status, text in (
        (b"\x08\x01", Status.PASSING, "success"),
        (b"\x08\x02", Status.CRITICAL, "NOT_SERVING"),
        (b"\x08\x03", Status.CRITICAL, "SERVICE_UNKNOWN"),
        (b"", Status.CRITICAL, "UNKNOWN"),
        (b"\x08\x09", Status.CRITICAL, "9"),
    ):
        result = wire.health_result(answer, "a:1")
        assert (result.status, result.output) == (status, f"gRPC check a:1: {text}")


@pytest.mark.parametrize(
    ("properties", "status", "text"),
    [
        ("LoadState=loaded\nActiveState=active\nSubState=running\nResult=success\n", Status.PASSING, "active (running)"),
        ("LoadState=loaded\nActiveState=active\nSubState=exited\nResult=success\n", Status.PASSING, "active (exited)"),
        ("LoadState=loaded\nActiveState=reloading\nSubState=reload\n", Status.PASSING, "reloading (reload)"),
        ("LoadState=loaded\nActiveState=activating\nSubState=auto-restart\nResult=exit-code\n", Status.CRITICAL, "(auto-restart): exit-code"),
        ("LoadState=loaded\nActiveState=failed\nSubState=failed\nResult=signal\n", Status.CRITICAL, "failed (failed): signal"),
        ("LoadState=loaded\nActiveState=inactive\nSubState=dead\nResult=success\n", Status.CRITICAL, "inactive (dead)"),
        ("LoadState=not-found\nActiveState=inactive\nSubState=dead\n", Status.CRITICAL, "could not be found"),
        ("", Status.CRITICAL, "could not be found"),
    ],
)  # fmt: skip
def test_what_systemd_says(properties: str, status: Status, text: str) -> None:
    result = wire.systemd_result("web.service", properties)
    assert result.status is status
    assert text in result.output


@pytest.mark.parametrize("name", ["", "-x", "a b", "*", "a/b", "x" * 256, "a;b"])
def test_what_is_no_unit(name: str) -> None:
    with pytest.raises(InvalidRequest):
        wire.unit(name)


@pytest.mark.parametrize(
    ("code", "status"), [(0, Status.PASSING), (1, Status.WARNING), (2, Status.CRITICAL), (-9, Status.CRITICAL)]
)
def test_exit_codes(code: int, status: Status) -> None:
    assert wire.script_result(code, "x").status is status
