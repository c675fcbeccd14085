"""Fixtures: what all scenarios share, and the clusters."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "shared"))

from clusters import dc1, dc2, image
from support import mesh, pytest_runtest_makereport, pytest_terminal_summary, wan

__all__ = ["dc1", "dc2", "image", "mesh", "pytest_runtest_makereport", "pytest_terminal_summary", "wan"]
