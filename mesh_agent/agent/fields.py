"""Strict reading of JSON objects as Consul's clients write them: names in any case, with or without underscores. Pure."""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from mesh_agent.agent import durations
from mesh_agent.errors import InvalidRequest

T = TypeVar("T")

_MAX_NAME = 255


def decode_object(body: bytes, what: str = "request body") -> dict[str, Any]:
    """The JSON object of a body; InvalidRequest if it is none."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"Request decode failed: {what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"Request decode failed: {what} must be a JSON object")
    return value


class Fields:
    """Takes known fields out of an object and refuses what is left over."""

    def __init__(self, value: Any, path: str = "") -> None:  # decoded JSON
        if not isinstance(value, dict):
            raise InvalidRequest(f"Request decode failed: {path or 'the body'} must be an object")
        self.path = path
        self._left = {_fold(key): (key, found) for key, found in value.items()}

    def take(self, name: str, kind: Callable[[Any, str], T], default: T) -> T:
        """The value of `name`, or `default` if it is missing or null."""
        _, value = self._left.pop(_fold(name), (name, None))
        if value is None:
            return default
        return kind(value, f"{self.path}.{name}" if self.path else name)

    def ignore(self, *names: str) -> None:
        """Accept fields that mean nothing here."""
        for name in names:
            self._left.pop(_fold(name), None)

    def done(self) -> None:
        """InvalidRequest if a field is left."""
        for key, _ in self._left.values():
            inside = f" in {self.path}" if self.path else ""
            raise InvalidRequest(f'Request decode failed: json: unknown field "{key}"{inside}')


def _fold(name: str) -> str:
    return name.replace("_", "").lower()


def text(value: Any, path: str) -> str:
    """A string."""
    return _typed(value, str, path, "a string")


def name(value: Any, path: str) -> str:
    """A name or an id: one line of a reasonable length."""
    found = text(value, path)
    if len(found) > _MAX_NAME:
        raise InvalidRequest(f"{path}: {len(found)} characters are too long; at most {_MAX_NAME}")
    if not found.isprintable():
        raise InvalidRequest(f"{path}: {found!r} has characters that cannot be printed")
    return found


def flag(value: Any, path: str) -> bool:
    """A boolean."""
    return _typed(value, bool, path, "true or false")


def number(value: Any, path: str) -> int:
    """An integer."""
    if isinstance(value, bool):
        raise _wrong(path, "a number")
    return _typed(value, int, path, "a number")


def port(value: Any, path: str) -> int:
    """A port."""
    found = number(value, path)
    if not 0 <= found <= 65535:
        raise InvalidRequest(f"{path}: {found} is not a port (0 to 65535)")
    return found


def texts(value: Any, path: str) -> tuple[str, ...]:
    """A list of strings."""
    return tuple(text(each, f"{path}[{at}]") for at, each in enumerate(_typed(value, list, path, "a list")))


def mapping(value: Any, path: str) -> dict[str, str]:
    """An object of strings."""
    return {key: text(each, f"{path}.{key}") for key, each in _typed(value, dict, path, "an object").items()}


def anything(value: Any, path: str) -> dict[str, Any]:
    """An object of anything."""
    return _typed(value, dict, path, "an object")


def items(value: Any, path: str) -> list[Any]:
    """A list of anything."""
    return _typed(value, list, path, "a list")


def duration(value: Any, path: str) -> float:
    """Seconds from a Go duration, or from a number of nanoseconds as Go encodes one."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) > durations.LONGEST_NS:
            raise InvalidRequest(f"{path}: too long a duration; a number is nanoseconds, write it like 10s")
        return value / 1e9
    try:
        return durations.parse(text(value, path))
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}: {error}") from error


def _typed(value: Any, kind: type[T], path: str, expected: str) -> T:
    if not isinstance(value, kind):
        raise _wrong(path, expected)
    return value


def _wrong(path: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"Request decode failed: {path} must be {expected}")
