"""Registration and policy in, Envoy's configuration out: read the diff of the expected files as an operator would."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mesh_agent.model import Instance, Intention, Node, Service, Status
from mesh_agent.xds.build import Builder
from mesh_agent.xds.inputs import Destination
from tests.support.xds import as_text, inputs, instance

HERE = Path(__file__).parent
CASES = sorted(path.name.removesuffix(".input.json") for path in HERE.glob("*.input.json"))


@pytest.mark.parametrize("case", CASES)
def test_the_snapshot_is_as_expected(case: str, golden: Callable[[Path, str], None]) -> None:
    given = json.loads((HERE / f"{case}.input.json").read_text())
    endpoints = {
        Destination(*name.split("/")): tuple(
            instance(name.split("/")[1], number, Status(status)) for number, status in enumerate(statuses, 1)
        )
        for name, statuses in given["endpoints"].items()
    }
    sidecar = msgspec.convert(given["proxy"], Service)
    intentions = tuple(msgspec.convert(given["intentions"], list[Intention]))
    found = dataclasses.replace(
        inputs(sidecar, intentions=intentions, endpoints=endpoints),
        reach=tuple(Destination(*name.split("/")) for name in given.get("reach", ())),
        instances={
            Destination(*name.split("/")): tuple(
                Instance(Node(name=each.node), each, (), 1, 1) for each in msgspec.convert(listed, list[Service])
            )
            for name, listed in given.get("instances", {}).items()
        },
    )
    snapshot = Builder().build(found)
    golden(HERE / f"{case}.expected.json", as_text(snapshot))
