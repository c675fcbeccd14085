"""JSON that is nested more deeply than a decoder can follow: a user may write it into any object that keeps unknown fields. Pure."""

import re

_LEVELS = 200
"""More than anything that means something to anybody has, and far fewer than stop a decoder."""
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


def pruned(text: bytes, levels: int = _LEVELS) -> bytes:
    """The same JSON with null for every object and array below that many levels."""
    found: list[bytes] = []
    depth = done = 0
    for token in _TOKEN.finditer(text):
        if token[0] in b"{[":
            depth += 1
            if depth == levels + 1:
                found += [text[done : token.start()], b"null"]
        elif token[0] in b"}]":
            depth -= 1
            if depth == levels:
                done = token.end()
    return b"".join([*found, text[done:]])
