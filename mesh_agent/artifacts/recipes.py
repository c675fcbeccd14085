"""What the artifacts are: names, versions, how Go builds each, and where upstream publishes it. Values in, values out.

A recipe's pins are the folders `go/<name>/<version>/` with a go.mod and the go.sum that Go verifies every source against.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh_agent.artifacts.layout import fingerprint, version_key
from mesh_agent.errors import InvalidRequest

MODULES = Path(__file__).parent / "go"
GO_VERSION = (1, 26)

COMPONENTS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubeadm",
    "kubectl",
)

ADDRESSES = {
    "kubernetes": "https://dl.k8s.io",
    "github": "https://github.com",
    "helm": "https://get.helm.sh",
    "registry": "https://registry.k8s.io",
}
"""Upstream's own addresses; each can be replaced by a mirror of the same layout."""


@dataclass(frozen=True)
class Download:
    """One file that upstream publishes. In the texts, {version} and {arch} stand for themselves, {kubernetes}, {github}, {helm} for ADDRESSES."""

    url: str
    sums: str
    members: tuple[str, ...] = ()  # files to take out of the archive; none: the download is the program

    def named(self, values: Mapping[str, str]) -> "Download":
        """The download with everything filled in."""
        members = tuple(member.format(**values) for member in self.members)
        return Download(self.url.format(**values), self.sums.format(**values), members)


@dataclass(frozen=True)
class Recipe:
    """How one artifact is made. `target` is the package that Go builds: ours (`.`), or a tool that the module pins."""

    name: str
    target: str
    programs: tuple[str, ...]
    downloads: tuple[Download, ...]
    stamps: tuple[str, ...] = ()
    minutes: str = "under a minute"

    @property
    def sources(self) -> Path:
        """The folder of our module: Go sources, and a folder for each version."""
        return MODULES / self.name

    def versions(self) -> list[str]:
        """The versions that are pinned, the newest first."""
        pinned = [path.parent.name for path in self.sources.glob("*/go.mod")]
        return sorted(pinned, key=version_key, reverse=True)

    def choose(self, version: str) -> str:
        """The wanted version if it is pinned, the newest for ''."""
        pinned = self.versions()
        if version and version not in pinned:
            raise InvalidRequest(
                f"{self.name} {version}: not pinned here (pinned: {', '.join(pinned)}); `mesh artifacts pin {version}` makes the pins of a Kubernetes version"
            )
        return version or pinned[0]

    def module(self, version: str) -> dict[str, bytes]:
        """File name to content of the module that Go builds."""
        paths = [*self.sources.glob("*.go"), *(self.sources / version).glob("go.*")]
        return {path.name: path.read_bytes() for path in sorted(paths)}

    def flags(self, version: str) -> list[str]:
        """Arguments of `go build`: without symbols, and stamped with the version, which kubeadm and kubelet parse for their skew checks."""
        major, minor, _ = version.split(".", 2)
        values = {"version": version, "major": major, "minor": minor}
        stamps = [f"-X {stamp.format(**values)}" for stamp in self.stamps]
        return ["-ldflags", " ".join(["-s", "-w", *stamps])]

    def fingerprint(self, version: str, arch: str) -> str:
        """Changes when a build would give something else; Go's own version is left out on purpose."""
        module = self.module(version)
        return fingerprint(
            [self.name, arch, self.target, *self.programs, *self.flags(version), *module, *module.values()]
        )


_KUBERNETES_STAMPS = tuple(
    f"{package}.{stamp}"
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    for stamp in ("gitVersion=v{version}", "gitMajor={major}", "gitMinor={minor}", "gitTreeState=clean")
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "kubernetes",
            ".",
            COMPONENTS,
            tuple(
                Download(
                    f"{{kubernetes}}/v{{version}}/bin/linux/{{arch}}/{name}",
                    f"{{kubernetes}}/v{{version}}/bin/linux/{{arch}}/{name}.sha256",
                )
                for name in ("kubeadm", "kubelet", "kubectl")
            ),
            _KUBERNETES_STAMPS,
            "about 5 minutes",
        ),
        Recipe(
            "etcd",
            ".",
            ("etcdctl",),
            (
                Download(
                    "{github}/etcd-io/etcd/releases/download/v{version}/etcd-v{version}-linux-{arch}.tar.gz",
                    "{github}/etcd-io/etcd/releases/download/v{version}/SHA256SUMS",
                    ("etcd-v{version}-linux-{arch}/etcd", "etcd-v{version}-linux-{arch}/etcdctl"),
                ),
            ),
        ),
        Recipe(
            "coredns",
            "github.com/coredns/coredns",
            (),
            (
                Download(
                    "{github}/coredns/coredns/releases/download/v{version}/coredns_{version}_linux_{arch}.tgz",
                    "{github}/coredns/coredns/releases/download/v{version}/coredns_{version}_linux_{arch}.tgz.sha256",
                    ("coredns",),
                ),
            ),
            minutes="about 2 minutes",
        ),
        Recipe(
            "helm",
            "helm.sh/helm/v3/cmd/helm",
            (),
            (
                Download(
                    "{helm}/helm-v{version}-linux-{arch}.tar.gz",
                    "{helm}/helm-v{version}-linux-{arch}.tar.gz.sha256sum",
                    ("linux-{arch}/helm",),
                ),
            ),
            (
                "helm.sh/helm/v3/internal/version.version=v{version}",
                "helm.sh/helm/v3/internal/version.gitTreeState=clean",
            ),
            "about a minute",
        ),
        Recipe(
            "kubeconform",
            "github.com/yannh/kubeconform/cmd/kubeconform",
            (),
            (
                Download(
                    "{github}/yannh/kubeconform/releases/download/v{version}/kubeconform-linux-{arch}.tar.gz",
                    "{github}/yannh/kubeconform/releases/download/v{version}/CHECKSUMS",
                    ("kubeconform",),
                ),
            ),
            ("main.version=v{version}",),
        ),
        Recipe("pause", ".", (), ()),
    )
}
"""Every artifact that is a program; `programs` are the links beside it."""

_GO_VERSION = re.compile(r"go version go(\d+)\.(\d+)")


def go_version(text: str) -> tuple[int, int]:
    """Major and minor of what `go version` says; (0, 0) when it says something else."""
    found = _GO_VERSION.search(text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def module_file(version: str, published: str) -> str:
    """A go.mod of ours for a version of Kubernetes, from the go.mod that Kubernetes publishes.

    Kubernetes replaces the modules that it develops in its own tree by folders, which only its own tree has; a module that uses it must
    replace each by its published version: 0.37.2 for Kubernetes 1.37.2.
    """
    names = re.findall(r"^\t?(?:replace )?(k8s\.io/\S+) => \./staging/", published, re.MULTILINE)
    if not names:
        raise InvalidRequest(f"the go.mod of Kubernetes {version} replaces no module: its layout has changed")
    library = "v0." + version.partition(".")[2]
    replaced = "".join(f"\t{name} => {name} {library}\n" for name in sorted(set(names)))
    head = f"module mesh.openmesh.io/artifacts/kubernetes\n\ngo {'.'.join(map(str, GO_VERSION))}.0\n"
    return f"{head}\nrequire k8s.io/kubernetes v{version}\n\nreplace (\n{replaced})\n"
