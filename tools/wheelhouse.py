"""Fill a folder with everything that a host needs to install the mesh without an index: wheels of the agent, its dependencies and Envoy.

usage: wheelhouse.py FOLDER [--uv UV]. The agent's version gets a local part made of its sources, so that a changed tree is a new version. What is there
already is not fetched again.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
PLATFORMS = (
    *(f"manylinux_2_{minor}_{os.uname().machine}" for minor in range(36, 16, -1)),
    f"manylinux2014_{os.uname().machine}",
)
TARGET = "3.11"  # Debian 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--uv", default="uv")
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    _dependencies(options.uv, folder)
    version = _version()
    if not list(folder.glob(f"mesh_agent-{version}-*.whl")):
        _build(options.uv, folder, version)
    _write(folder / "VERSION", version + "\n")
    _say(f"wheelhouse: mesh-agent {version} and {len(list(folder.glob('*.whl'))) - 1} other wheels in {folder}")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _version() -> str:
    digest = hashlib.sha256((TOP / "pyproject.toml").read_bytes())
    for path in sorted((TOP / "mesh_agent").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(TOP)).encode() + b"\0" + path.read_bytes())
    line = next(
        line for line in (TOP / "pyproject.toml").read_text(encoding="utf-8").splitlines() if line.startswith("version")
    )
    return f"{line.split(chr(34))[1]}+{digest.hexdigest()[:10]}"


def _dependencies(uv: str, folder: Path) -> None:
    stamp = folder / ("deps-" + hashlib.sha256((TOP / "uv.lock").read_bytes()).hexdigest()[:12])
    if stamp.exists():
        return
    _say("wheelhouse: downloading the dependencies once")
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch, "requirements.txt")
        exported = _run(
            uv, "export", "-q", "--frozen", "--no-dev", "--no-emit-project", "--extra", "envoy", "--no-hashes"
        )
        wanted.write_text("".join(line for line in exported.splitlines(True) if "win32" not in line), encoding="utf-8")
        platforms = [word for each in PLATFORMS for word in ("--platform", each)]
        _run(uv, "run", "-q", "--no-project", "--with", "pip", "python", "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps",
             "--only-binary=:all:", "--python-version", TARGET, *platforms, "-d", str(folder), "-r", str(wanted))  # fmt: skip
    stamp.touch()


def _build(uv: str, folder: Path, version: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch, "tree")
        tree.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"):
            shutil.copy(TOP / name, tree)
        shutil.copytree(TOP / "mesh_agent", tree / "mesh_agent", ignore=shutil.ignore_patterns("__pycache__"))
        project = tree / "pyproject.toml"
        text = project.read_text(encoding="utf-8")
        project.write_text(
            text.replace(f'version = "{version.partition("+")[0]}"', f'version = "{version}"', 1), encoding="utf-8"
        )
        _run(uv, "build", "-q", "--wheel", "--out-dir", str(Path(scratch, "out")), str(tree))
        for old in folder.glob("mesh_agent-*.whl"):
            old.unlink()
        for wheel in Path(scratch, "out").glob("*.whl"):
            fresh = folder / (wheel.name + ".new")
            shutil.copy(wheel, fresh)
            fresh.rename(folder / wheel.name)


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.rename(path)


def _run(*command: str) -> str:
    done = subprocess.run(command, cwd=TOP, stdout=subprocess.PIPE, text=True, check=False, env=dict(os.environ))
    if done.returncode:
        sys.exit(f"{' '.join(command[:6])} … failed with {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
