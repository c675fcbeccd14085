"""The images of a cluster, under the tags that its kubeadm asks for, assembled from our own static programs: one docker-archive."""

import os
from collections.abc import Iterable
from pathlib import Path

from mesh_agent.artifacts import layout, userland
from mesh_agent.artifacts.build import Wanted
from mesh_agent.artifacts.image import Entry, Image, Layer, open_layer, write_archive, write_layer
from mesh_agent.artifacts.runner import Progress, lock, output
from mesh_agent.errors import ConfigError

CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
PACKET_FILTERS = ("usr/sbin/nft", "usr/sbin/conntrack")  # what kube-proxy calls in nftables mode
PROTOCOLS = b"icmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\n"
"""/etc/protocols. Without it nft lists protocols by number, kube-proxy does not know its own rules again and deletes them at its next full synchronisation."""
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LAYER_FORMAT, _IMAGE_FORMAT = "1", "3"  # raise one when the code makes another thing of the same inputs


def by_name(listed: str) -> dict[str, str]:
    """Component to image, from the output of `kubeadm config images list`."""
    return {image.rpartition(":")[0].rpartition("/")[2]: image for image in listed.split()}


def tags(kubeadm: Path, version: str) -> dict[str, str]:
    """The images that this kubeadm wants for a version."""
    return by_name(output([kubeadm, "config", "images", "list", "--kubernetes-version", f"v{version}"]))


def cached_layer(root: Path, name: str, key: str, entries: Iterable[Entry]) -> Layer:
    """The layer of this key, written if it is not in the cache; older ones of the name leave the cache.

    `entries` is used for a layer that has to be written alone: make it a generator.
    """
    cache = root / ".cache/layers"
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{name}-{key}.tar"
    layer = open_layer(path) if path.is_file() else write_layer(path, entries)
    for old in cache.glob(f"{name}-{'?' * len(key)}.tar"):
        if old != path:
            old.unlink(missing_ok=True)
    return layer


def program_layer(root: Path, folder: Path) -> Layer:
    """The programs of an artifact in /usr/local/bin, with the links beside them."""
    chosen = [path for path in sorted(folder.iterdir()) if path.is_symlink() or os.access(path, os.X_OK)]
    entries = (
        Entry(f"usr/local/bin/{path.name}", link=os.readlink(path))
        if path.is_symlink()
        else Entry(f"usr/local/bin/{path.name}", path)
        for path in chosen
        if not path.is_dir()
    )
    sums = layout.sums_of(folder)
    key = layout.fingerprint([_LAYER_FORMAT, *(f"{path.name} {sums.get(path.name, '')}" for path in chosen)])
    return cached_layer(root, folder.name, key, entries)


def _config(name: str, version: str, **more: object) -> dict[str, object]:
    labels = {"org.opencontainers.image.title": name, "org.opencontainers.image.version": version}
    return {"Env": [_PATH], "WorkingDir": "/", "Labels": labels, **more}


def _filters(root: Path, tree: Path) -> Layer:
    entries = [*userland.with_libraries(tree, PACKET_FILTERS), Entry("etc/protocols", PROTOCOLS, mode=0o644)]
    contents = (
        entry.content.read_bytes() if isinstance(entry.content, Path) else entry.content or b"" for entry in entries
    )
    key = layout.fingerprint([_LAYER_FORMAT, *(f"{entry.name} {entry.link}" for entry in entries), *contents])
    return cached_layer(root, "nft", key, entries)


def images(root: Path, parts: dict[str, Wanted], wanted: dict[str, str], tree: Path) -> list[Image]:
    """The images of a cluster; `parts` are the artifacts that their programs come from."""
    layers = {name: program_layer(root, root / part.name) for name, part in parts.items()}
    filters = _filters(root, tree)
    stacks = {
        **{name: ("kubernetes", [layers["kubernetes"]]) for name in CONTROL_PLANE},
        "kube-proxy": ("kubernetes", [filters, layers["kubernetes"]]),
        **{name: (name, [layers[name]]) for name in ("etcd", "coredns", "pause")},
    }
    made = {
        name: Image(wanted[name], stack, _config(name, parts[part].version, Entrypoint=[f"/usr/local/bin/{name}"]))
        for name, (part, stack) in stacks.items()
        if name in wanted
    }
    unknown = sorted(set(wanted) - set(made))
    if unknown:
        raise ConfigError(f"this kubeadm wants images that are not made here: {', '.join(unknown)}")
    return [made[name] for name in sorted(made)]


def build(root: Path, parts: dict[str, Wanted], arch: str, progress: Progress) -> bool:
    """Write images.tar and IMAGES of a Kubernetes version unless they are there and of these parts; says whether they had to be written."""
    kubernetes = parts["kubernetes"]
    folder = root / kubernetes.name
    if layout.origin(folder).startswith("fetched "):
        progress.line(f"{kubernetes.name} was fetched: so are its images (mesh artifacts fetch kubernetes)")
        return False
    busy = f"{kubernetes.name}: another process makes the images; waiting"
    with lock(root, f"{kubernetes.name}-images", lambda: progress.line(busy)):
        origins = [f"{part.name} {layout.origin(root / part.name)}" for part in parts.values()]
        key = layout.fingerprint([_LAYER_FORMAT, _IMAGE_FORMAT, arch, *origins])
        stamp = folder / ".images"
        if (folder / layout.IMAGES).is_file() and stamp.is_file() and stamp.read_text(encoding="ascii") == key:
            progress.line(f"{kubernetes.name}/{layout.IMAGES}: there already")
            return False
        with progress.step(f"{kubernetes.name}/{layout.IMAGES}: assembling"):
            wanted = tags(folder / "kubeadm", kubernetes.version)
            made = images(root, parts, wanted, userland.tree(progress.line))
            add_archive(folder, made, arch)
            layout.write_text(stamp, key)
    return True


def add_archive(folder: Path, made: list[Image], arch: str) -> None:
    """Put images into an artifact's directory, with the list of their tags, and seal it again."""
    digest = write_archive(folder / layout.IMAGES, made, arch)
    layout.write_text(folder / layout.TAGS, "".join(f"{image.tag}\n" for image in made))
    known = layout.sums_of(folder)
    layout.seal(folder, {**{name: known[name] for name in known if name != layout.TAGS}, layout.IMAGES: digest})
