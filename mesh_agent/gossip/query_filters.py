"""Whom a query is for: filters by name and by tag, as serf writes them. Pure. A filter is a stranger's bytes, and its expression a stranger's regex."""

import re

import msgpack

from mesh_agent.gossip.fields import pack, text, unpack

_FILTER_NODES, _FILTER_TAG = 0, 1
_MAX_REGEX_STEPS = 10**7


def node_filter(names: list[str]) -> bytes:
    """Only these nodes answer."""
    packed: bytes = msgpack.packb(names, use_bin_type=False)
    return bytes([_FILTER_NODES]) + packed


def tag_filter(tag: str, expression: str) -> bytes:
    """Only nodes whose tag matches answer."""
    return bytes([_FILTER_TAG]) + pack({"Tag": tag, "Expr": expression})


def matches(filters: tuple[bytes, ...], name: str, tags: dict[str, str]) -> bool:
    """Whether a query is for a node of that name and tags; a filter that cannot be read matches nobody."""
    return all(_matches(each, name, tags) for each in filters)


def _matches(each: bytes, name: str, tags: dict[str, str]) -> bool:
    try:
        if each[:1] == bytes([_FILTER_NODES]):
            return name.encode() in msgpack.unpackb(each[1:], raw=True)
        fields = unpack(each[1:])
        expression, value = text(fields, "Expr"), tags.get(text(fields, "Tag"), "")
        return _is_cheap(expression, value) and re.search(expression, value) is not None
    except Exception:  # junk of a stranger
        return False


_REPEATED_GROUP = re.compile(r"\)[*+{]")


def _is_cheap(expression: str, value: str) -> bool:
    """Whether an expression of a stranger cannot take us long: what it may try grows with each repetition and each choice."""
    repeats = sum(expression.count(sign) for sign in "*+{")
    choices = expression.count("|") + expression.count("?")
    return not _REPEATED_GROUP.search(expression) and (len(value) + 1) ** (repeats + 1) << choices <= _MAX_REGEX_STEPS
