"""Fixtures: what all scenarios share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))

from support import (
    Datacenters,
    Node,
    crashed,
    measured,
    mesh,
    pytest_runtest_makereport,
    pytest_terminal_summary,
    until,
    wan,
)

__all__ = [
    "Datacenters",
    "Node",
    "crashed",
    "measured",
    "mesh",
    "pytest_runtest_makereport",
    "pytest_terminal_summary",
    "until",
    "wan",
]
