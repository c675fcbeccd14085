"""The controllers' pod: its settings and arguments are those that the program knows."""

import pytest

from mesh_agent.cli.main import app
from mesh_agent.controllers.settings import load
from tests.support.charts import CASES, case


@pytest.mark.parametrize("name", CASES)
def test_the_program_takes_the_settings_that_the_chart_gives(name: str) -> None:
    for deployment in case(name).of("Deployment"):
        if not deployment["metadata"]["name"].endswith("-controllers"):
            continue
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        environment = {each["name"]: each.get("value", "") for each in container["env"]}
        found = load(environment["MESH_CONTROLLERS_SETTINGS"], cluster="", namespace="mesh-system", identity="a")
        assert found.to_mesh.enabled
        assert container["args"][0] == "controllers"
        known = {option for each in _command("controllers").params for option in each.opts}
        given = {each.partition("=")[0] for each in container["args"][1:]}
        assert given <= known


def _command(name: str):  # type: ignore[no-untyped-def]
    import typer.main

    return typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
