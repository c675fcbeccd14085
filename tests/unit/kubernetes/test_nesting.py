"""Deep nesting costs what is nested, and nothing beside it."""

import json
from typing import Any

import pytest

from mesh_agent.kubernetes.nesting import pruned

PRUNED: list[tuple[Any, Any]] = [
    ({"a": 1}, {"a": 1}),
    ({"a": {"b": [1, {"c": []}]}, "d": [[]]}, {"a": {"b": None}, "d": [None]}),
    ({"a": {"b": [], "c": 'x"]}\\', "]{": {"z": 0}, "d": 5}}, {"a": {"b": None, "c": 'x"]}\\', "]{": None, "d": 5}}),
    ([[[[]]], 1, [[[]], 2]], [[None], 1, [None, 2]]),
]


@pytest.mark.parametrize(("value", "wanted"), PRUNED)
def test_what_is_too_deep_is_null(value: Any, wanted: Any) -> None:
    assert json.loads(pruned(json.dumps(value).encode(), 2)) == wanted


def test_the_objects_beside_are_as_they_were() -> None:
    deep = b"[" * 50_000 + b"]" * 50_000
    text = b'{"items":[{"name":"a","spec":{"x":1}},{"name":"b","spec":{"x":' + deep + b'}},{"name":"c"}]}'
    first, second, third = json.loads(pruned(text))["items"]
    assert (first, second["name"], third) == ({"name": "a", "spec": {"x": 1}}, "b", {"name": "c"})


@pytest.mark.parametrize("text", [b"", b"]]]", b"[[[[", b'"'])
def test_what_is_no_json_is_none_afterwards(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        json.loads(pruned(text, 1))
