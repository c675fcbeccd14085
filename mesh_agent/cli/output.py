"""How the CLI speaks: tables for people, JSON and YAML for programs, errors on standard error."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

_COLOURS = {
    "alive": "green",
    "passing": "green",
    "allow": "green",
    "failed": "red",
    "critical": "red",
    "deny": "red",
    "leaving": "yellow",
    "warning": "yellow",
    "left": "dim",
}


class Format(StrEnum):
    """Output formats."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def console(*, stderr: bool = False) -> Console:
    """A console that honours NO_COLOR and never wraps what is piped."""
    target = sys.stderr if stderr else sys.stdout
    width = None if target.isatty() else 4096
    return Console(file=target, no_color="NO_COLOR" in os.environ, highlight=False, soft_wrap=True, width=width)


def show(rows: Sequence[Mapping[str, object]], columns: Iterable[str], output: Format, raw: object = None) -> None:
    """Print `rows` as a table of `columns`, or `raw` (default: the rows) as JSON or YAML."""
    if output is not Format.TABLE:
        dump(raw if raw is not None else [dict(row) for row in rows], output)
        return
    names = list(columns)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row.get(name, "")) for name in names))
    console().print(table)


def dump(value: object, output: Format) -> None:
    """Print a value as YAML, or as JSON for every other format."""
    as_yaml = output is Format.YAML
    sys.stdout.write(_yaml(value) if as_yaml else json.dumps(value, indent=2, ensure_ascii=False) + "\n")


class _Dumper(yaml.SafeDumper):
    """Certificates and the like as blocks: several lines are written as several lines."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _yaml(value: object) -> str:
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def say(text: str) -> None:
    """One line of result."""
    sys.stdout.write(text + "\n")


def complain(text: str) -> None:
    """One error on standard error."""
    console(stderr=True).print(Text.assemble(("Error: ", "bold red"), text))


def _cell(value: object) -> Text:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return Text(text, style=_COLOURS.get(text, ""))
