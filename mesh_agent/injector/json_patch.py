"""The difference of two JSON values as a JSON patch (RFC 6902). Pure.

Maps are compared key by key, so that a label is added beside those of others. Lists of named things (containers, volumes, environment) are matched by name.
"""

from collections.abc import Iterator
from typing import Any

JsonPatchOp = dict[str, Any]  # op, path and, but for removals, value: any JSON


def diff(old: Any, new: Any, path: str = "") -> list[JsonPatchOp]:  # any JSON
    """Operations that turn `old` into `new`, to be applied in order."""
    return list(_diff(old, new, path))


def _diff(old: Any, new: Any, path: str) -> Iterator[JsonPatchOp]:
    if isinstance(old, dict) and isinstance(new, dict):
        yield from _diff_maps(old, new, path)
    elif isinstance(old, list) and isinstance(new, list) and _insertions_only(old, new):
        yield from _diff_lists(old, new, path)
    elif old != new:
        yield {"op": "replace", "path": path, "value": new}


def _diff_maps(old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[JsonPatchOp]:
    for key in old:
        if key not in new:
            yield {"op": "remove", "path": f"{path}/{_escape(key)}"}
    for key, value in new.items():
        if key in old:
            yield from _diff(old[key], value, f"{path}/{_escape(key)}")
        else:
            yield {"op": "add", "path": f"{path}/{_escape(key)}", "value": value}


def _diff_lists(old: list[Any], new: list[Any], path: str) -> Iterator[JsonPatchOp]:
    rest = list(old)
    for index, value in enumerate(new):
        if rest and _name(rest[0]) == _name(value):
            yield from _diff(rest.pop(0), value, f"{path}/{index}")
        else:
            yield {"op": "add", "path": f"{path}/{index}", "value": value}


def _insertions_only(old: list[Any], new: list[Any]) -> bool:
    """Whether both hold named things, and the old ones come in the same order in the new list."""
    names = [_name(value) for value in new]
    if None in names or any(_name(value) is None for value in old) or len(set(names)) != len(names):
        return False
    kept = {_name(value) for value in old}
    return [_name(value) for value in old] == [name for name in names if name in kept]


def _name(value: Any) -> str | None:
    name = value.get("name") if isinstance(value, dict) else None
    return name if isinstance(name, str) else None


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
