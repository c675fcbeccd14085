"""Debian packages for images, taken out of an installed Debian tree: what dpkg's database says belongs to them, and nothing of apt, dpkg or perl.

The tree is the base image of the lab (made by debootstrap when it is not there), or any Debian 12 tree that MESH_ARTIFACTS_ROOTFS names.
"""

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh_agent.artifacts.image import Entry
from mesh_agent.artifacts.runner import output
from mesh_agent.errors import ConfigError
from mesh_agent.lab import image as lab_image

_LEFT_OUT = re.compile(
    r"usr/share/(man|locale|info|lintian|bug|bash-completion|zsh|fish|doc-base|pixmaps|applications|python3?/runtime\.d)(/|$)"
    r"|usr/share/doc/[^/]+/(?!copyright$)"
    r"|usr/lib/[^/]+/gconv(/|$)"
    r"|usr/lib/python3[.0-9]*/(test|idlelib|lib2to3|ensurepip|pydoc_data|turtledemo|tkinter)(/|$)"
    r"|var/(cache|log|backups)/"
)
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


@dataclass(frozen=True)
class Package:
    """An installed package as dpkg describes it."""

    name: str
    version: str
    needs: tuple[tuple[str, ...], ...]  # each of these: one of the alternatives
    provides: tuple[str, ...]
    stanza: str


def tree(say: Callable[[str], None]) -> Path:
    """The Debian tree to take packages from."""
    chosen = os.environ.get("MESH_ARTIFACTS_ROOTFS", "")
    root = Path(chosen) if chosen else lab_image.ensure(say) / "root"
    if not (root / "var/lib/dpkg/status").is_file():
        raise ConfigError(f"MESH_ARTIFACTS_ROOTFS: {root} is not a Debian tree (it has no var/lib/dpkg/status)")
    return root


def packages(status: str) -> dict[str, Package]:
    """The installed packages of a dpkg status file, by name."""
    found = {}
    for stanza in status.strip().split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", stanza, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            needs = ", ".join(fields[key] for key in ("Pre-Depends", "Depends") if key in fields)
            found[fields["Package"]] = Package(
                fields["Package"], fields["Version"], tuple(_names(each) for each in needs.split(",") if each.strip()),
                tuple(name for each in fields.get("Provides", "").split(",") for name in _names(each)), stanza,
            )  # fmt: skip
    return found


def _names(dependency: str) -> tuple[str, ...]:
    names = (re.sub(r"[ (:\[].*", "", alternative.strip()) for alternative in dependency.split("|"))
    return tuple(name for name in names if name)


def closure(installed: Mapping[str, Package], wanted: Iterable[str], without: Sequence[str] = ()) -> list[Package]:
    """The wanted packages and everything that they depend on, by name; `without` and what only those need is left out."""
    providers = {name: package.name for package in installed.values() for name in package.provides}
    chosen: dict[str, Package] = {}
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name in chosen or name in without:
            continue
        if name not in installed:
            raise ConfigError(f"package {name} is not installed in the Debian tree that the images are made of")
        chosen[name] = installed[name]
        for alternatives in installed[name].needs:
            real = [each if each in installed else providers.get(each, "") for each in alternatives]
            waiting += [each for each in real if each][:1]
    return [chosen[name] for name in sorted(chosen)]


def entries(root: Path, chosen: Sequence[Package]) -> Iterator[Entry]:
    """Files and links of the packages as entries of a layer, under the names that Debian's merged /usr gives them."""
    for name in _MERGED:
        if (root / name).is_symlink():
            yield Entry(name, link=os.readlink(root / name))
    for package in chosen:
        for line in _listing(root, package.name).splitlines():
            entry = _entry(root, line.strip("/"))
            if entry:
                yield entry
    described = "".join(f"{package.stanza}\n\n" for package in chosen)
    yield Entry("var/lib/dpkg/status", described.encode(), mode=0o644)  # what scanners of images look for


def _listing(root: Path, name: str) -> str:
    info = root / "var/lib/dpkg/info"
    found = next((path for path in (info / f"{name}.list", *info.glob(f"{name}:*.list")) if path.is_file()), None)
    if found is None:
        raise ConfigError(f"{info}: no list of the files of {name}")
    return found.read_text(encoding="utf-8")


def _entry(root: Path, name: str) -> Entry | None:
    first, _, rest = name.partition("/")
    if first in _MERGED and (root / first).is_symlink():
        name = f"{os.readlink(root / first)}/{rest}" if rest else ""
    path = root / name
    if name in ("", ".") or _LEFT_OUT.match(name) or not (path.exists() or path.is_symlink()):
        return None
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return Entry(name, link=os.readlink(path))
    mode = stat.S_IMODE(status.st_mode) & ~0o6000  # no set-user-id programs in an image
    return Entry(name, path if stat.S_ISREG(status.st_mode) else None, mode=mode)


def loader(root: Path) -> tuple[Path, Path]:
    """The tree's dynamic loader and its folder of libraries: programs of the tree run by it without chroot, and without root."""
    found = sorted((root / "usr/lib").glob("*-linux-gnu*/ld-linux-*.so.*"))
    if not found:
        raise ConfigError(f"{root}: no dynamic loader in usr/lib")
    return found[0], found[0].parent


def with_libraries(root: Path, programs: Sequence[str]) -> Iterator[Entry]:
    """Programs of the tree with every shared library that they load, and the loader itself at the place that they name."""
    linker, libraries = loader(root)
    for name in _MERGED:
        if (root / name).is_symlink():
            yield Entry(name, link=os.readlink(root / name))
    interpreter = next(
        path for path in (root / "lib64" / linker.name, root / "lib" / linker.name) if os.path.lexists(path)
    )
    yield Entry(f"usr/{interpreter.parent.name}/{interpreter.name}", linker.resolve())
    for name in programs:
        yield Entry(name, root / name)
        for text in output([linker, "--library-path", libraries, "--list", root / name]).splitlines():
            found = re.search(r"=> (/\S+)", text)
            if found:
                path = Path(found[1])
                yield Entry(str((libraries / path.name).relative_to(root)), path.resolve())
