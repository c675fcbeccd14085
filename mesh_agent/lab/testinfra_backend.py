"""A testinfra backend for hosts of a lab: `lab://dc1-s1`. Much quicker than going through Ansible. Call `register()` in conftest.py."""

import os
import subprocess
from typing import Any

import testinfra.backend
from testinfra.backend.base import BaseBackend, CommandResult

from mesh_agent.lab.machine import home


class LabBackend(BaseBackend):  # type: ignore[misc]
    """Runs commands in a host of the lab that MESH_LAB_NAME names."""

    NAME = "lab"

    def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
        self.name = name
        super().__init__(name, *args, **kwargs)

    def run(self, command: str, *args: str, **kwargs: Any) -> CommandResult:
        """Run a command with a shell; arguments are quoted."""
        lab = home() / "labs" / os.environ.get("MESH_LAB_NAME", "lab")
        line = [str(lab / "enter"), str(lab / "hosts" / self.name), "/bin/sh", "-c", self.get_command(command, *args)]
        done = subprocess.run(line, capture_output=True, stdin=subprocess.DEVNULL, check=False)
        return self.result(done.returncode, self.encode(line[-1]), done.stdout, done.stderr)


def register() -> None:
    """Make `testinfra.get_host("lab://...")` work."""
    testinfra.backend.BACKENDS["lab"] = "mesh_agent.lab.testinfra_backend.LabBackend"
