"""Pulls images from a registry (OCI distribution, without credentials) into layers on disk; every blob is verified by its digest."""

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mesh_agent.artifacts.image import Image, Layer, open_layer
from mesh_agent.errors import RemoteProtocolError

_INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
ACCEPT = ", ".join((*_INDEXES, *_MANIFESTS))

Get = Callable[[str, dict[str, str], Path], None]
"""Downloads an address, with headers, into a file."""


def split(image: str) -> tuple[str, str]:
    """Repository without its registry, and tag: registry.k8s.io/coredns/coredns:v1 is (coredns/coredns, v1)."""
    name, _, tag = image.rpartition(":")
    return name.partition("/")[2], tag


def for_platform(index: dict[str, Any], arch: str) -> str:
    """The digest of the manifest for Linux on this architecture."""
    for each in index["manifests"]:
        platform = each.get("platform", {})
        if platform.get("os") == "linux" and platform.get("architecture") == arch:
            return str(each["digest"])
    raise RemoteProtocolError(f"the registry has no image for linux/{arch}")


class Registry:
    """One registry; blobs are kept in `cache`, so that a pull that broke off goes on where it was."""

    def __init__(self, base: str, cache: Path, get: Get) -> None:
        self._base = base.rstrip("/")
        self._cache = cache
        self._get = get

    def pull(self, image: str, arch: str) -> Image:
        """The image under its tag."""
        repository, tag = split(image)
        manifest = json.loads(self._manifest(repository, tag))
        if "manifests" in manifest:
            manifest = json.loads(self._manifest(repository, for_platform(manifest, arch)))
        config = json.loads(self._blob(repository, manifest["config"]["digest"]).read_bytes())
        wanted = config["rootfs"]["diff_ids"]
        layers = [
            self._layer(repository, each["digest"], diff_id)
            for each, diff_id in zip(manifest["layers"], wanted, strict=True)
        ]
        return Image(image, layers, config.get("config") or {})

    def _manifest(self, repository: str, reference: str) -> bytes:
        path = self._cache / "manifest.json"
        path.unlink(missing_ok=True)
        self._get(f"{self._base}/v2/{repository}/manifests/{reference}", {"Accept": ACCEPT}, path)
        content = path.read_bytes()
        path.unlink()
        if reference.startswith("sha256:") and hashlib.sha256(content).hexdigest() != reference.removeprefix("sha256:"):
            raise RemoteProtocolError(f"{self._base}: the manifest of {repository}@{reference} has another digest")
        return content

    def _blob(self, repository: str, digest: str) -> Path:
        plain = digest.removeprefix("sha256:")
        path = self._cache / plain
        if not path.is_file():
            fresh = self._cache / f"{plain}.part"
            self._get(f"{self._base}/v2/{repository}/blobs/{digest}", {}, fresh)
            _verify(fresh, plain, f"{repository}@{digest}")
            fresh.rename(path)
        return path

    def _layer(self, repository: str, digest: str, diff_id: str) -> Layer:
        plain = diff_id.removeprefix("sha256:")
        path = self._cache / f"{plain}.tar"
        if not path.is_file():
            blob = self._blob(repository, digest)
            fresh = self._cache / f"{plain}.part"
            with blob.open("rb") as packed:
                compressed = packed.read(2) == b"\x1f\x8b"
            with gzip.open(blob) if compressed else blob.open("rb") as source, fresh.open("wb") as target:
                shutil.copyfileobj(source, target)
            _verify(fresh, plain, f"{repository}: layer {diff_id}")
            fresh.rename(path)
            blob.unlink()
        return open_layer(path)


def _verify(path: Path, digest: str, what: str) -> None:
    found = open_layer(path).digest
    if found != digest:
        path.unlink()
        raise RemoteProtocolError(f"{what}: the download has the digest {found}")
