"""Durations as Go writes them: `10s`, `1h30m`, `500ms`. Pure. Source: Go's time.ParseDuration."""

import re

from mesh_agent.errors import InvalidRequest

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")


def parse(text: str) -> float:
    """Seconds; InvalidRequest for anything that is not a duration."""
    body = text.strip()
    sign = -1.0 if body.startswith("-") else 1.0
    body = body.lstrip("+-")
    if body == "0":
        return 0.0
    total, end = 0.0, 0
    for match in _PART.finditer(body):
        if match.start() != end:
            break
        total += float(match.group(1)) * _UNITS_S[match.group(2)]
        end = match.end()
    if not body or end != len(body):
        raise InvalidRequest(f"{text!r} is not a duration; write it like 10s, 500ms or 1h30m")
    return sign * total


def render(seconds: float) -> str:
    """The shortest text that `parse` reads back (to the millisecond); '' for 0."""
    if seconds <= 0:
        return ""
    millis = round(seconds * 1000)
    if millis % 1000:
        return f"{millis}ms"
    left = millis // 1000
    parts = []
    for unit, size in (("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)
