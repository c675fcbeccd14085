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
from mesh_agent.errors import ConfigError


def pins(path: Path | None) -> dict[str, str]:
    """Checksums that the user pins, from a file of sha256sum's form; they win over what upstream publishes beside the download."""
    return layout.parse_sums(path.read_text(encoding="utf-8"), str(path)) if path else {}


def expected(name: str, published: Mapping[str, str], pinned: Mapping[str, str], key: str, source: str) -> str:
    """The digest that a download must have. `key` is `<artifact>/<name>`'s last part in a file of pins for several versions."""
    found = published.get(name) or published.get("")
    pin = pinned.get(key) or pinned.get(name)
    if pin and found and pin != found:
        raise ConfigError(f"{name}: pinned as {pin}, but {source} says {found}; nothing was fetched")
    if not (pin or found):
        raise ConfigError(f"{name}: no checksum of it in {source}")
    return pin or found or ""


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
                _one(root, wanted, pinned, each.name, result, work)
            put(root, each.name, result, f"fetched {downloads[0].url}")
    return True


def _one(root: Path, wanted: Download, pinned: Mapping[str, str], artifact: str, result: Path, work: Path) -> None:
    name = wanted.url.rpartition("/")[2]
    partial = root / ".cache/downloads" / f"{artifact}-{name}"
    partial.parent.mkdir(parents=True, exist_ok=True)
    sums = work / "sums"
    download(wanted.sums, {}, sums)
    published = layout.parse_sums(sums.read_text(encoding="utf-8"), wanted.sums)
    sums.unlink()
    digest = expected(name, published, pinned, f"{artifact}-{name}", wanted.sums)
    download(wanted.url, {}, partial)
    found = layout.sha256(partial)
    if found != digest:
        partial.unlink()
        raise ConfigError(f"{wanted.url}: the download has the SHA-256 {found}, not {digest}; it was thrown away")
    if wanted.members:
        _take(partial, wanted.members, result)
    else:
        shutil.copyfile(partial, result / name)
        (result / name).chmod(0o755)
    partial.unlink()


def _take(archive: Path, members: tuple[str, ...], result: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in members:
            found = next((each for each in tar if each.name.removeprefix("./") == member and each.isfile()), None)
            content = tar.extractfile(found) if found else None
            if content is None:
                raise ConfigError(f"{archive.name}: holds no {member}")
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
