"""Defaults and argument specifications of every role say the same."""

from pathlib import Path
from typing import Any

import pytest
import yaml

TOP = Path(__file__).resolve().parents[3]
ROLES = sorted(path.parent.parent.name for path in (TOP / "roles").glob("*/meta/argument_specs.yml"))


def _read(*parts: str) -> Any:
    return yaml.safe_load(Path(TOP, "roles", *parts).read_text(encoding="utf-8"))


def test_every_role_has_a_specification_and_a_readme() -> None:
    found = sorted(path.name for path in (TOP / "roles").iterdir() if path.is_dir())
    assert found == ROLES
    assert [role for role in ROLES if not (TOP / "roles" / role / "README.md").exists()] == []


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_specification_agree(role: str) -> None:
    options = _read(role, "meta", "argument_specs.yml")["argument_specs"]["main"]["options"]
    defaults = _read(role, "defaults", "main.yml") or {}
    specified = {name: option["default"] for name, option in options.items() if "default" in option}
    assert defaults == specified
    assert [name for name, option in options.items() if not option.get("description")] == []
    assert [name for name, option in options.items() if not option.get("required") and name not in defaults] == []


@pytest.mark.parametrize("role", ROLES)
def test_variables_carry_the_name_of_their_role(role: str) -> None:
    options = _read(role, "meta", "argument_specs.yml")["argument_specs"]["main"]["options"]
    shared = {"mesh_artifacts_dir"}
    assert [name for name in options if not name.startswith(f"{role}_") and name not in shared] == []
