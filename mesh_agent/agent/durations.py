"""Durations as Go writes them: `10s`, `1h30m0s`, `500ms`. Pure. Source: Go's time.ParseDuration and Duration.String."""

import re

from mesh_agent.errors import InvalidRequest

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
LONGEST_NS = 2**63 - 1
"""Go counts nanoseconds in 64 bits: a little over 292 years."""
_LONGEST_S = LONGEST_NS / 1e9


def parse(text: str) -> float:
    """Seconds; InvalidRequest for anything that is not a duration, or one too long for Go."""
    body = text.strip()
    sign = -1.0 if body.startswith("-") else 1.0
    body = body[1:] if body.startswith(("-", "+")) else body
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
    if total > _LONGEST_S:
        raise InvalidRequest(f"{text!r} is too long a duration; at most 2562047h")
    return sign * total


def render(seconds: float) -> str:
    """As Go prints it, to the nanosecond: `0s`, `500ms`, `1.5s`, `1m0s`, `1h30m0s`."""
    nanos = round(abs(seconds) * 1e9)
    sign = "-" if seconds < 0 and nanos else ""
    for unit, size in (("ns", 1), ("µs", 10**3), ("ms", 10**6)):
        if 0 < nanos < size * 1000:
            return sign + _decimal(nanos, size) + unit
    minutes, rest = divmod(nanos, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    shown = _decimal(rest, 10**9) + "s"
    if hours or minutes:
        shown = f"{minutes}m{shown}"
    return sign + (f"{hours}h{shown}" if hours else shown)


def _decimal(count: int, size: int) -> str:
    whole, rest = divmod(count, size)
    fraction = str(rest).rjust(len(str(size)) - 1, "0").rstrip("0") if rest else ""
    return f"{whole}.{fraction}" if fraction else str(whole)
