"""The repository is an Ansible collection: it can be built, installed and used by its full name."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.agents import of_ansible

TOP = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def _run(directory: Path, program: str, *arguments: str | Path) -> str:
    own = {"ANSIBLE_COLLECTIONS_PATH": str(directory), "ANSIBLE_HOME": str(directory / "home")}
    environment = {**of_ansible(), **own}
    line = [str(BIN / program), *map(str, arguments)]
    done = subprocess.run(line, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_roles_are_found_in_the_installed_collection(tmp_path: Path) -> None:
    _run(tmp_path, "ansible-galaxy", "collection", "build", TOP, "--output-path", tmp_path)
    (archive,) = tmp_path.glob("openmesh-mesh-*.tar.gz")
    _run(tmp_path, "ansible-galaxy", "collection", "install", "--offline", archive, "-p", tmp_path)
    installed = tmp_path / "ansible_collections/openmesh/mesh"
    assert {"roles", "playbooks", "plugins", "README.md"} <= {path.name for path in installed.iterdir()}
    assert not (installed / "tests").exists()
    roles = sorted(path.name for path in (TOP / "roles").iterdir() if path.is_dir())
    play = "- hosts: all\n  roles:\n" + "".join(f"    - openmesh.mesh.{role}\n" for role in roles)
    (tmp_path / "play.yml").write_text(play, encoding="utf-8")
    _run(tmp_path, "ansible-playbook", "-i", "localhost,", "--syntax-check", "play.yml")
    shutil.rmtree(installed)
