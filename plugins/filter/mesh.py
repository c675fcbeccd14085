"""Filters of the mesh collection."""

from __future__ import annotations

import json
from typing import Any


def to_toml(settings: dict[str, Any]) -> str:
    """Settings as TOML: scalars and lists first, then one table for each dictionary. JSON's strings, numbers, booleans and lists are TOML's."""
    lines = [f"{key} = {_value(value)}" for key, value in sorted(settings.items()) if not isinstance(value, dict)]
    for key, table in sorted(settings.items()):
        if isinstance(table, dict):
            lines += ["", f"[{key}]", *(f"{_key(name)} = {_value(value)}" for name, value in sorted(table.items()))]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() else json.dumps(name)


class FilterModule:
    """Ansible finds filters here."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {"to_toml": to_toml}
