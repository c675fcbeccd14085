"""Container images without a container engine: layers and docker-archives (`ctr -n k8s.io images import`, `docker load`).

The same files always give the same bytes: entries are sorted, owners are numbers and times are zero. A layer lies on disk as the uncompressed tar that
its digest names, so that images share it and a later build reuses it.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO, RawIOBase
from pathlib import Path, PurePosixPath
from typing import IO

from mesh_agent.errors import ConfigError

_DIRECTORY, _PROGRAM = 0o755, 0o755


@dataclass(frozen=True)
class Entry:
    """One path of a layer: a file (`content`: bytes, or where to read them), a link (`link`), or a directory (neither)."""

    name: str
    content: bytes | Path | None = None
    link: str = ""
    mode: int = _PROGRAM


@dataclass(frozen=True)
class Layer:
    """An uncompressed layer on disk."""

    path: Path
    digest: str
    size: int


@dataclass(frozen=True)
class Image:
    """A tag, its layers from the bottom up, and how it runs (`config`: Env, Entrypoint, User, ... as Docker names them)."""

    tag: str
    layers: Sequence[Layer]
    config: Mapping[str, object] = field(default_factory=dict)


def with_parents(entries: Iterable[Entry]) -> list[Entry]:
    """The entries in their order in a layer, each directory above them made explicit. The last entry of a name wins."""
    named = {entry.name.strip("/"): replace(entry, name=entry.name.strip("/")) for entry in entries}
    for name in list(named):
        for parent in PurePosixPath(name).parents:
            if str(parent) != ".":
                named.setdefault(str(parent), Entry(str(parent), mode=_DIRECTORY))
    return [named[name] for name in sorted(named)]


def write_layer(path: Path, entries: Iterable[Entry]) -> Layer:
    """Write a layer; the file appears at once and complete."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with tarfile.open(fresh, "w", format=tarfile.GNU_FORMAT) as tar:
            for entry in with_parents(entries):
                _add(tar, entry)
        fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)
    return open_layer(path)


def open_layer(path: Path) -> Layer:
    """A layer that is on disk already."""
    with path.open("rb") as content:
        return Layer(path, hashlib.file_digest(content, "sha256").hexdigest(), path.stat().st_size)


def _add(tar: tarfile.TarFile, entry: Entry) -> None:
    info = tarfile.TarInfo(entry.name)
    info.mode = entry.mode
    if entry.link:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
        tar.addfile(info)
    elif entry.content is None:
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    elif isinstance(entry.content, bytes):
        info.size = len(entry.content)
        tar.addfile(info, BytesIO(entry.content))
    else:
        with entry.content.open("rb") as content:
            info.size = os.fstat(content.fileno()).st_size
            tar.addfile(info, content)


def config_of(image: Image, architecture: str) -> bytes:
    """The image's configuration; its digest is the image's id."""
    described = {
        "architecture": architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": dict(image.config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.digest}" for layer in image.layers]},
        "history": [{"created": "1970-01-01T00:00:00Z"} for _ in image.layers],
    }
    return json.dumps(described, sort_keys=True, separators=(",", ":")).encode()


def write_archive(path: Path, images: Sequence[Image], architecture: str) -> str:
    """Write images as one docker-archive, shared layers once; returns the archive's SHA-256. The file appears at once and complete."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("wb") as file:
            hashing = _Hashing(file)
            with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.GNU_FORMAT) as tar:
                _fill(tar, images, architecture)
        fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)
    return hashing.digest.hexdigest()


def _fill(tar: tarfile.TarFile, images: Sequence[Image], architecture: str) -> None:
    written: set[str] = set()
    manifest = []
    for image in images:
        config = config_of(image, architecture)
        for layer in image.layers:
            name = f"{layer.digest}/layer.tar"
            if name not in written:
                written.add(name)
                _add(tar, Entry(name, layer.path, mode=0o644))
        name = f"{hashlib.sha256(config).hexdigest()}.json"
        if name not in written:
            written.add(name)
            _add(tar, Entry(name, config, mode=0o644))
        layers = [f"{layer.digest}/layer.tar" for layer in image.layers]
        manifest.append({"Config": name, "RepoTags": [image.tag], "Layers": layers})
    _add(tar, Entry("manifest.json", json.dumps(manifest, indent=1).encode(), mode=0o644))


class _Hashing(RawIOBase):
    """A file to write to that hashes on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, chunk: bytes) -> int:  # type: ignore[override]  # tarfile writes bytes alone
        """Append, and hash."""
        self.digest.update(chunk)
        return self._file.write(chunk)


def read_archive(path: Path) -> dict[str, dict[str, object]]:
    """Tag to configuration of each image, after every layer's and configuration's digest has been checked."""
    with tarfile.open(path) as tar:
        digests = {member.name: _digest(tar, member) for member in tar if member.isfile()}
        manifest = json.loads(_read(tar, "manifest.json", path))
        images = {}
        for each in manifest:
            config = json.loads(_read(tar, each["Config"], path))
            wanted = [text.removeprefix("sha256:") for text in config["rootfs"]["diff_ids"]]
            if [digests.get(name) for name in each["Layers"]] != wanted:
                raise ConfigError(f"{path}: a layer of {each['RepoTags']} is not what its configuration says")
            if digests[each["Config"]] != each["Config"].removesuffix(".json"):
                raise ConfigError(f"{path}: the configuration of {each['RepoTags']} is damaged")
            images.update({tag: config for tag in each["RepoTags"]})
    return images


def _read(tar: tarfile.TarFile, name: str, path: Path) -> bytes:
    try:
        content = tar.extractfile(name)
    except KeyError:
        content = None
    if content is None:
        raise ConfigError(f"{path}: not a docker-archive ({name} is missing)")
    return content.read()


def _digest(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    content = tar.extractfile(member)
    digest = hashlib.sha256()
    for chunk in _chunks(content):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(content: IO[bytes] | None) -> Iterator[bytes]:
    while content is not None and (chunk := content.read(1 << 20)):
        yield chunk
