"""The directory of artifacts: what lies where, which checksums it has, and what was it made from. The roles rely on these names (docs/artifacts.md)."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from mesh_agent.errors import ConfigError, InvalidRequest

SUMS = "SHA256SUMS"
ORIGIN = "ORIGIN"
IMAGES = "images.tar"
TAGS = "IMAGES"
ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:-[0-9a-z.]+)?")
_SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def architecture(machine: str) -> str:
    """Go's and Debian's name of a machine, from what `uname -m` or the user calls it."""
    try:
        return ARCHITECTURES[machine]
    except KeyError:
        raise InvalidRequest(f"architecture {machine!r}: the artifacts exist for amd64 and arm64") from None


def version(text: str) -> str:
    """A version without its `v`, or an error that shows the form."""
    plain = text.removeprefix("v")
    if not _VERSION.fullmatch(plain):
        raise InvalidRequest(f"version {text!r}: write all three numbers, such as 1.37.2")
    return plain


def version_key(text: str) -> tuple[int, ...]:
    """Sorts versions as numbers: 1.9.0 before 1.10.0."""
    return tuple(int(digits) for digits in re.findall(r"\d+", text))


def place(root: Path, machine_arch: str, arch: str) -> Path:
    """Artifacts for another architecture than the machine's own have a directory of their own inside, with the same layout."""
    return root if arch == machine_arch else root / arch


def sha256(path: Path) -> str:
    """The digest of a file's content."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def parse_sums(text: str, source: str) -> dict[str, str]:
    """What sha256sum and upstream's checksum files say: file name to digest. A file of one bare digest has the name ''."""
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if not bare or bare.startswith("#"):
            continue
        found = _SUM.fullmatch(bare)
        if found:
            sums[found[2].rsplit("/", 1)[-1]] = found[1]
        elif re.fullmatch(r"[0-9a-f]{64}", bare):
            sums[""] = bare
        else:
            raise ConfigError(f"{source}: line {number} is not a SHA-256 checksum: {bare[:80]!r}")
    return sums


def format_sums(sums: Mapping[str, str]) -> str:
    """The text that `sha256sum --check` reads."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))


def files(folder: Path) -> list[str]:
    """Names of the regular files of an artifact that its checksums cover; links are followed by nobody."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and not path.is_symlink() and path.name != SUMS and not path.name.startswith(".")
    )


def write_text(path: Path, text: str) -> None:
    """Replace a small file at once."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8")
    fresh.rename(path)


def seal(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Write SHA256SUMS for what is in the folder; `known` digests are not computed again."""
    sums = {name: (known or {}).get(name) or sha256(folder / name) for name in files(folder)}
    write_text(folder / SUMS, format_sums(sums))


def sums_of(folder: Path) -> dict[str, str]:
    """The recorded checksums of an artifact; empty when it is not complete."""
    path = folder / SUMS
    return parse_sums(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else {}


def origin(folder: Path) -> str:
    """What an artifact was made from: `built <fingerprint>`, `fetched <address>`, or '' when it is not complete."""
    path = folder / ORIGIN
    complete = path.is_file() and (folder / SUMS).is_file()
    return path.read_text(encoding="utf-8").strip() if complete else ""


def artifacts(root: Path) -> list[Path]:
    """Every artifact of a directory, complete or not, by name and version."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if path.is_dir() and (path / ORIGIN).exists()]
    return sorted(found, key=lambda path: (path.name.partition("-")[0], version_key(path.name)))


def problems(folder: Path) -> list[str]:
    """What `mesh artifacts verify` complains about in one artifact: files that are missing, changed or not listed."""
    sums = sums_of(folder)
    if not sums:
        return [f"{folder.name}: {SUMS} is missing: the artifact is not complete"]
    present = files(folder)
    found = [f"{folder.name}/{name}: missing" for name in sums if name not in present]
    found += [f"{folder.name}/{name}: not listed in {SUMS}" for name in present if name not in sums]
    found += [
        f"{folder.name}/{name}: checksum differs"
        for name in present
        if sums.get(name, sha256(folder / name)) != sha256(folder / name)
    ]
    return found + [
        f"{folder.name}/{path.name}: link to nothing"
        for path in sorted(folder.iterdir())
        if path.is_symlink() and not path.exists()
    ]


def size(folder: Path) -> int:
    """Bytes of an artifact's files."""
    return sum((folder / name).stat().st_size for name in files(folder))


def fingerprint(parts: Iterable[bytes | str]) -> str:
    """A short hash of everything that decides what an artifact is."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]
