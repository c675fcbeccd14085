"""Import archives of images into containerd: import_images.py ARCHIVE...

An archive is imported when one of its images is missing, or when it is not the archive that was imported last. Archives that do not exist are left out.
Prints a line for each that was imported.
"""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

SEEN = Path("/var/lib/containerd/mesh-archives.json")
CTR = ["ctr", "--namespace", "k8s.io", "images"]


def main(archives):
    have = set(subprocess.run([*CTR, "ls", "-q"], capture_output=True, text=True, check=True).stdout.split())
    seen = json.loads(SEEN.read_text()) if SEEN.exists() else {}
    for archive in (Path(name) for name in archives):
        if not archive.exists():
            continue
        identity = fingerprint(archive)
        if seen.get(str(archive)) == identity and tags(archive) <= have:
            continue
        subprocess.run([*CTR, "import", str(archive)], check=True, stdout=subprocess.DEVNULL)
        seen[str(archive)] = identity
        SEEN.write_text(json.dumps(seen, indent=1))
        sys.stdout.write(f"imported {archive}\n")


def fingerprint(archive):
    """Its line in SHA256SUMS beside it; size and time where there is none."""
    sums = archive.with_name("SHA256SUMS")
    for line in sums.read_text().splitlines() if sums.exists() else ():
        digest, _, name = line.partition(" ")
        if name.lstrip(" *") == archive.name:
            return digest
    return f"{archive.stat().st_size}-{archive.stat().st_mtime_ns}"


def tags(archive):
    """Names of its images, as containerd writes them."""
    with tarfile.open(archive) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))
    return {full(tag) for image in manifest for tag in image["RepoTags"] or ()}


def full(tag):
    """`busybox:1` is docker.io/library/busybox:1."""
    first, slash, _ = tag.partition("/")
    if not slash:
        return f"docker.io/library/{tag}"
    return tag if "." in first or ":" in first or first == "localhost" else f"docker.io/{tag}"


main(sys.argv[1:])
