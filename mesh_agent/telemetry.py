"""Logs and metrics. Logs go to standard error, one line each: JSON where a program reads them (journald), plain text on a terminal."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping

Labels = tuple[tuple[str, str], ...]
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (RFC 3339, UTC), level, logger, message, and the fields given as `extra`."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """The line, with journald's priority prefix (sd-daemon(3)) where the journal reads it."""
        fields: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name.removeprefix("mesh_agent."),
            "message": record.getMessage(),
        }
        fields |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        line = json.dumps(fields, default=str, ensure_ascii=False)
        return f"<{_PRIORITY.get(record.levelno, 6)}>{line}" if self._journal else line


def configure_logging(level: str, log_format: str) -> None:
    """Set up the root logger once; `auto` means text on a terminal and JSON elsewhere."""
    journal = "JOURNAL_STREAM" in os.environ
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json" or (log_format == "auto" and not sys.stderr.isatty()):
        handler.setFormatter(JsonFormatter(journal=journal))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class Metrics:
    """Counters and gauges of one agent; rendered as Prometheus text or as the JSON of Consul's /v1/agent/metrics.

    Counting costs a dict update, so hot paths may count. Gauges may be functions that are asked when someone looks.
    """

    def __init__(self) -> None:
        self._counters: dict[str, dict[Labels, float]] = {}
        self._gauges: dict[str, dict[Labels, float]] = {}
        self._sources: list[Callable[[], Iterable[tuple[str, Mapping[str, str], float]]]] = []
        self._help: dict[str, str] = {}

    def describe(self, name: str, text: str) -> None:
        """The HELP line of a metric."""
        self._help[name] = text

    def count(self, name: str, by: float = 1.0, **labels: str) -> None:
        """Add to a counter; `name` ends in `_total`."""
        series = self._counters.setdefault(name, {})
        key = tuple(sorted(labels.items()))
        series[key] = series.get(key, 0.0) + by

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._gauges.setdefault(name, {})[tuple(sorted(labels.items()))] = value

    def collect(self, source: Callable[[], Iterable[tuple[str, Mapping[str, str], float]]]) -> None:
        """Ask `source()` for (name, labels, value) of gauges whenever metrics are read."""
        self._sources.append(source)

    def _all_gauges(self) -> dict[str, dict[Labels, float]]:
        gauges = {name: dict(series) for name, series in self._gauges.items()}
        for source in self._sources:
            for name, labels, value in source():
                gauges.setdefault(name, {})[tuple(sorted(labels.items()))] = value
        return gauges

    def prometheus(self) -> str:
        """Prometheus text exposition format 0.0.4."""
        lines: list[str] = []
        for kind, families in (("counter", self._counters), ("gauge", self._all_gauges())):
            for name in sorted(families):
                lines.append(f"# HELP {name} {self._help.get(name, name.replace('_', ' '))}")
                lines.append(f"# TYPE {name} {kind}")
                lines += [f"{name}{_render(labels)} {value:g}" for labels, value in sorted(families[name].items())]
        return "\n".join(lines) + "\n"

    def consul(self, wall: float) -> dict[str, object]:
        """The JSON of /v1/agent/metrics: Gauges and Counters with Name, Value or Count, Labels."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime(wall))
        gauges = [
            {"Name": name, "Value": value, "Labels": dict(labels)}
            for name, series in sorted(self._all_gauges().items())
            for labels, value in sorted(series.items())
        ]
        counters = [
            {"Name": name, "Count": int(value), "Sum": value, "Labels": dict(labels)}
            for name, series in sorted(self._counters.items())
            for labels, value in sorted(series.items())
        ]
        return {"Timestamp": stamp, "Gauges": gauges, "Points": [], "Counters": counters, "Samples": []}


def _render(labels: Labels) -> str:
    if not labels:
        return ""
    escaped = (f'{key}="{_escape(value)}"' for key, value in labels)
    return "{" + ",".join(escaped) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
