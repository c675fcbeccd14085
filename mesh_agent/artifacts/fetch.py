"""`mesh artifacts fetch`: upstream's own releases, verified, in the same directories that a build makes."""

import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

from mesh_agent.artifacts import cluster, layout
from mesh_agent.artifacts.build import Wanted, put
from mesh_agent.artifacts.client import download
from mesh_agent.artifacts.recipes import Download
from mesh_agent.artifacts.registry import Registry
from mesh_agent.artifacts.runner import Progress, lock, scratch
from mesh_agent.errors import ConfigError, RemoteProtocolError

PINNED = Path(__file__).parent / "checksums.txt"


def pins(path: Path | None) -> dict[str, str]:
    """The checksums that are pinned here, and those of the user's file (sha256sum's form), which win."""
    chosen = [PINNED, *([path] if path else [])]
    return {name: digest for each in chosen for name, digest in _read(each).items()}


def _read(path: Path) -> dict[str, str]:
    try:
        return layout.parse_sums(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def published(name: str, text: str, source: str) -> str:
    """The digest of a file in a checksum file that upstream publishes."""
    sums = layout.parse_sums(text, source)
    digest = sums.get(name) or sums.get("")
    if not digest:
        raise RemoteProtocolError(f"{source}: holds no checksum of {name}")
    return digest


def fetch(
    root: Path, each: Wanted, arch: str, addresses: Mapping[str, str], pinned: Mapping[str, str], progress: Progress
) -> bool:
    """Fetch one artifact unless it is there; says whether it had to be fetched."""
    with lock(root, each.name, lambda: progress.line(f"{each.name}: another process makes it; waiting")):
        if layout.origin(root / each.name):
            progress.line(f"{each.name}: there already")
            return False
        values = {"version": each.version, "arch": arch, **addresses}
        downloads = [wanted.named(values) for wanted in each.recipe.downloads]
        with progress.step(f"{each.name}: fetching for {arch}"), scratch(root, each.name) as work:
            result = work / "result"
            result.mkdir()
            for wanted in downloads:
                progress.line(f"  {wanted.url}")
                _one(root, wanted, pinned, each, arch, work)
            put(root, each.name, result, f"fetched {downloads[0].url}")
    return True


def _one(root: Path, wanted: Download, pinned: Mapping[str, str], each: Wanted, arch: str, work: Path) -> None:
    name = wanted.url.rpartition("/")[2]
    partial = root / ".cache/downloads" / f"{each.name}-{arch}-{name}"
    partial.parent.mkdir(parents=True, exist_ok=True)
    digest = pinned.get(name if wanted.members else f"{name}-{each.version}-{arch}", "")
    if not digest:
        download(wanted.sums, {}, work / "sums")
        digest = published(name, (work / "sums").read_text(encoding="utf-8", errors="replace"), wanted.sums)
        (work / "sums").unlink()
    download(wanted.url, {}, partial)
    found = layout.sha256(partial)
    if found != digest:
        partial.unlink()
        raise RemoteProtocolError(
            f"{wanted.url}: the download has the SHA-256 {found}, not {digest}; it was thrown away"
        )
    if wanted.members:
        _take(partial, wanted.members, work / "result")
    else:
        shutil.copyfile(partial, work / "result" / name)
        (work / "result" / name).chmod(0o755)
    partial.unlink()


def _take(archive: Path, members: tuple[str, ...], result: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in members:
            found = next((each for each in tar if each.name.removeprefix("./") == member and each.isfile()), None)
            content = tar.extractfile(found) if found else None
            if content is None:
                raise RemoteProtocolError(f"{archive.name}: holds no {member}")
            target = result / member.rpartition("/")[2]
            with target.open("wb") as file:
                shutil.copyfileobj(content, file)
            target.chmod(0o755)


def fetch_images(root: Path, kubernetes: Wanted, arch: str, registry: str, progress: Progress) -> bool:
    """Pull the images that this version's kubeadm wants into images.tar unless it is there; says whether it had to be pulled."""
    folder = root / kubernetes.name
    with lock(
        root,
        f"{kubernetes.name}-images",
        lambda: progress.line(f"{kubernetes.name}: another process makes the images; waiting"),
    ):
        if (folder / layout.IMAGES).is_file() and layout.IMAGES in layout.sums_of(folder):
            progress.line(f"{kubernetes.name}/{layout.IMAGES}: there already")
            return False
        cache = root / ".cache/blobs"
        cache.mkdir(parents=True, exist_ok=True)
        source = Registry(registry, cache, download)
        made = []
        for image in cluster.tags(folder / "kubeadm", kubernetes.version).values():
            with progress.step(f"  {image}"):
                made.append(source.pull(image, arch))
        cluster.add_archive(folder, made, arch)
        shutil.rmtree(cache)
    return True
