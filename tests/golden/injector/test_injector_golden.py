"""A pod in, the operations that inject it out: read the diff of the expected files as an operator would."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mesh_agent.injector.patch import patch
from mesh_agent.injector.settings import InjectorSettings
from tests.support.json_patch import apply

HERE = Path(__file__).parent
CASES = sorted(path.name.removesuffix(".input.yaml") for path in HERE.glob("*.input.yaml"))
SETTINGS = InjectorSettings(image="mesh:1.2.3", version="1.2.3")


@pytest.mark.parametrize("case", CASES)
def test_the_patch_is_as_expected(case: str, golden: Callable[[Path, str], None]) -> None:
    pod = yaml.safe_load((HERE / f"{case}.input.yaml").read_text())
    operations = patch(pod, SETTINGS)
    golden(HERE / f"{case}.expected.json", json.dumps(operations, indent=2) + "\n")
    assert patch(apply(pod, operations), SETTINGS) == [], "a second pass changes nothing"
