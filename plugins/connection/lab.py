"""Ansible connection into a host of the lab: through its namespaces and cgroups, no network needed, so it survives cuts of the WAN and reboots."""

from __future__ import annotations

DOCUMENTATION = r"""
name: lab
short_description: run in a host of the mesh lab
description:
  - Runs commands in every namespace and cgroup of a host that C(mesh lab up) has booted on this machine.
author: The mesh authors
version_added: 0.1.0
options:
  remote_addr:
    description: The host's name in the lab.
    vars:
      - name: inventory_hostname
      - name: ansible_host
  lab_home:
    description: Where labs are kept.
    default: /var/lib/mesh-lab
    env:
      - name: MESH_LAB_HOME
  lab_name:
    description: The name of the lab.
    default: lab
    vars:
      - name: mesh_lab_name
    env:
      - name: MESH_LAB_NAME
"""

import subprocess
from pathlib import Path
from typing import IO

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.common.text.converters import to_bytes
from ansible.plugins.connection import ConnectionBase

_DOWN = 255


class Connection(ConnectionBase):
    """See the module's text."""

    transport = "lab"
    has_pipelining = True
    default_user = "root"

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def _run(
        self, command: list[str], data: bytes | None = None, stdin: IO[bytes] | None = None
    ) -> tuple[int, bytes, bytes]:
        lab = Path(self.get_option("lab_home"), "labs", self.get_option("lab_name"))
        host = self.get_option("remote_addr")
        try:
            process = subprocess.Popen(
                [str(lab / "enter"), str(lab / "hosts" / host), *command],
                stdin=stdin or subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise AnsibleConnectionFailure(f"{error}; is the lab up? mesh lab up") from error
        out, err = process.communicate(data)
        if process.returncode == _DOWN and err.startswith(b"lab: "):
            raise AnsibleConnectionFailure(err.decode().strip())
        return process.returncode, out, err

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run a command with a shell."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        return self._run(["/bin/sh", "-c", cmd], to_bytes(in_data) if in_data else b"")

    def put_file(self, in_path: str, out_path: str) -> None:
        """Copy a file into the host."""
        super().put_file(in_path, out_path)
        with Path(in_path).open("rb") as file:
            code, _, err = self._run(["/bin/sh", "-c", 'cat > "$0"', out_path], stdin=file)
        if code:
            raise AnsibleError(f"cannot write {out_path}: {err.decode(errors='replace')}")

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Copy a file out of the host."""
        super().fetch_file(in_path, out_path)
        code, out, err = self._run(["/bin/cat", in_path], b"")
        if code:
            raise AnsibleError(f"cannot read {in_path}: {err.decode(errors='replace')}")
        Path(out_path).write_bytes(out)

    def close(self) -> None:
        """Nothing is kept open."""
        self._connected = False
