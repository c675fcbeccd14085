"""Applies a JSON patch (add, remove, replace of RFC 6902), as the API server does with what the injector answers."""

import copy
from typing import Any


def apply(document: Any, operations: list[dict[str, Any]]) -> Any:
    """A copy of `document` after all operations, in order. A path that is not there is a KeyError or IndexError."""
    document = copy.deepcopy(document)
    for operation in operations:
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        place = document
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        _apply_at(place, last, operation)
    return document


def _apply_at(place: Any, last: str, operation: dict[str, Any]) -> None:
    kind = operation["op"]
    if isinstance(place, list):
        index = len(place) if last == "-" else int(last)
        if index > len(place) - (kind != "add"):
            raise IndexError(operation["path"])
        if kind == "add":
            place.insert(index, operation["value"])
        elif kind == "replace":
            place[index] = operation["value"]
        else:
            del place[index]
        return
    if kind != "add" and last not in place:
        raise KeyError(operation["path"])
    if kind == "remove":
        del place[last]
    else:
        place[last] = operation["value"]
