"""Targets, flags, responses and frames as values."""

import pytest

from mesh_agent.errors import RemoteProtocolError
from mesh_agent.http.frames import MAX_FRAME_BYTES, FrameDecoder, encode_frame
from mesh_agent.http.message import Request, Response, parse_target


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a", "/a", {}),
        ("/a?", "/a", {}),
        ("/a?passing", "/a", {"passing": [""]}),
        ("/a?passing&dc=dc2", "/a", {"passing": [""], "dc": ["dc2"]}),
        ("/a?tag=x&tag=y", "/a", {"tag": ["x", "y"]}),
        ("/a?reason=so%20it+is", "/a", {"reason": ["so it is"]}),
        ("/a?x=1=2", "/a", {"x": ["1=2"]}),
        ("/a%2Fb?x=%26", "/a%2Fb", {"x": ["&"]}),
        ("/a?x=%C3%A9", "/a", {"x": ["é"]}),
        ("/a?x=%zz", "/a", {"x": ["%zz"]}),
        ("/a?x=?", "/a", {"x": ["?"]}),
        ("http://mesh:8500/a/b?x=1", "/a/b", {"x": ["1"]}),
        ("https://mesh", "/", {}),
        ("/http://a", "/http://a", {}),
    ],
)
def test_targets(target: str, path: str, query: dict[str, list[str]]) -> None:
    assert parse_target(target) == (path, query)


@pytest.mark.parametrize(
    ("target", "flag"),
    [
        ("/", False),
        ("/?x", True),
        ("/?x=", True),
        ("/?x=true", True),
        ("/?x=1", True),
        ("/?x=false", False),
        ("/?x=False", False),
        ("/?x=0", False),
        ("/?y", False),
    ],
)
def test_flags(target: str, flag: bool) -> None:
    assert Request("GET", "/", parse_target(target)[1]).flag("x") is flag


def test_a_response_on_the_wire() -> None:
    response = Response.json({"a": 1}, headers=[("X-Consul-Index", "7")])
    head, _, body = response.encode(close=False).partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 200 OK",
        b"Content-Type: application/json",
        b"X-Consul-Index: 7",
        b"Content-Length: 7",
    ]
    assert body == b'{"a":1}'
    assert b"Connection: close" in response.encode(close=True)
    without = response.encode(close=False, head=True)
    assert without.endswith(b"Content-Length: 7\r\n\r\n")


def test_frames_arrive_however_they_are_cut() -> None:
    payloads = [b"", b"one", b"\0" * 300, b"last"]
    wire = b"".join(encode_frame(payload) for payload in payloads)
    for size in (1, 3, 7, len(wire)):
        decoder = FrameDecoder()
        found = [frame for at in range(0, len(wire), size) for frame in decoder.feed(wire[at : at + size])]
        assert found == payloads


def test_a_frame_that_is_too_large_is_neither_sent_nor_awaited() -> None:
    with pytest.raises(ValueError, match="larger"):
        encode_frame(bytes(MAX_FRAME_BYTES + 1))
    with pytest.raises(RemoteProtocolError, match="announced"):
        FrameDecoder().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
