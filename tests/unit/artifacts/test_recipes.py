"""Recipes: pins, stamps, fingerprints, and the go.mod of a version of Kubernetes."""

import re

import pytest

from mesh_agent.artifacts.build import wanted
from mesh_agent.artifacts.recipes import ADDRESSES, RECIPES, go_version, module_file
from mesh_agent.errors import InvalidRequest

PUBLISHED = """module k8s.io/kubernetes

go 1.26.0

require (
\tk8s.io/api v0.0.0
\tk8s.io/kube-openapi v0.0.0-20260101000000-000000000000
)

replace (
\tk8s.io/kubelet => ./staging/src/k8s.io/kubelet
\tk8s.io/api => ./staging/src/k8s.io/api
)
"""


def test_every_staging_module_is_replaced_by_its_published_version() -> None:
    assert module_file("1.37.2", PUBLISHED) == (
        "module mesh.openmesh.io/artifacts/kubernetes\n\ngo 1.26.0\n\nrequire k8s.io/kubernetes v1.37.2\n\n"
        "replace (\n\tk8s.io/api => k8s.io/api v0.37.2\n\tk8s.io/kubelet => k8s.io/kubelet v0.37.2\n)\n"
    )


def test_replace_lines_of_their_own_are_read_too() -> None:
    made = module_file("1.36.3", "replace k8s.io/cri-api => ./staging/src/k8s.io/cri-api\n")
    assert "\tk8s.io/cri-api => k8s.io/cri-api v0.36.3\n" in made


def test_a_published_module_of_another_form_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="layout has changed"):
        module_file("1.99.0", "module k8s.io/kubernetes\n")


@pytest.mark.parametrize("version", RECIPES["kubernetes"].versions())
def test_the_pinned_modules_of_kubernetes_replace_by_the_same_version(version: str) -> None:
    module = RECIPES["kubernetes"].module(version)["go.mod"].decode()
    assert f"k8s.io/kubernetes v{version}" in module
    replaced = re.findall(r"^\t(\S+) => (\S+) v0\.(\S+)$", module, re.MULTILINE)
    assert len(replaced) > 25
    assert all(name == by and f"1.{library}" == version for name, by, library in replaced)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_every_pin_has_sums_and_every_module_what_go_builds(recipe) -> None:  # type: ignore[no-untyped-def]
    assert recipe.versions()
    for version in recipe.versions():
        module = recipe.module(version)
        assert (recipe.target == ".") == ("main.go" in module)
        required = re.findall(r"^(?:require )?\t?([a-z]\S*\.\S+/\S+) v(\S+)", module["go.mod"].decode(), re.MULTILINE)
        sums = module.get("go.sum", b"").decode()
        assert all(f"{name} v{pinned}" in sums for name, pinned in required if "k8s.io" not in name)
        assert bool(required) == bool(sums)
        if recipe.target != ".":
            assert f"tool {recipe.target}\n" in module["go.mod"].decode()
            assert any(recipe.target.startswith(name) and pinned == version for name, pinned in required)


def test_the_newest_pin_is_the_default() -> None:
    assert RECIPES["kubernetes"].choose("") == "1.37.2"
    assert RECIPES["kubernetes"].choose("1.36.3") == "1.36.3"


def test_a_version_without_pins_says_which_there_are() -> None:
    with pytest.raises(InvalidRequest, match=r"1\.37\.2, 1\.36\.3.*artifacts pin 1\.12\.0"):
        RECIPES["kubernetes"].choose("1.12.0")


def test_kubernetes_is_stamped_with_its_version() -> None:
    flags = RECIPES["kubernetes"].flags("1.36.3")
    assert flags[0] == "-ldflags"
    for stamp in ("gitVersion=v1.36.3", "gitMajor=1", "gitMinor=36"):
        assert f"-X k8s.io/component-base/version.{stamp}" in flags[1]


def test_the_fingerprint_follows_version_and_architecture() -> None:
    recipe = RECIPES["kubernetes"]
    prints = {recipe.fingerprint(version, arch) for version in recipe.versions() for arch in ("amd64", "arm64")}
    assert len(prints) == 2 * len(recipe.versions())
    assert recipe.fingerprint("1.37.2", "amd64") == recipe.fingerprint("1.37.2", "amd64")


def test_downloads_are_named_for_version_and_architecture() -> None:
    (etcd,) = RECIPES["etcd"].downloads
    named = etcd.named({"version": "3.6.14", "arch": "arm64", **ADDRESSES})
    assert named.url == "https://github.com/etcd-io/etcd/releases/download/v3.6.14/etcd-v3.6.14-linux-arm64.tar.gz"
    assert named.members == ("etcd-v3.6.14-linux-arm64/etcd", "etcd-v3.6.14-linux-arm64/etcdctl")


def test_every_artifact_but_pause_can_be_fetched() -> None:
    assert [recipe.name for recipe in RECIPES.values() if not recipe.downloads] == ["pause"]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26)),
        ("go version go1.27rc1 linux/arm64", (1, 27)),
        ("bash: go: command not found", (0, 0)),
    ],
)
def test_the_version_of_go_is_read(text: str, version: tuple[int, int]) -> None:
    assert go_version(text) == version


def test_all_artifacts_are_wanted_when_none_is_named() -> None:
    assert [each.recipe.name for each in wanted([])] == list(RECIPES)
    assert [each.name for each in wanted(["kubernetes"], "v1.36.3")] == ["kubernetes-1.36.3"]


def test_pins_are_needed_to_build_and_not_to_fetch() -> None:
    assert [each.name for each in wanted(["kubernetes"], "1.99.0", pinned=False)] == ["kubernetes-1.99.0"]
    with pytest.raises(InvalidRequest, match="not pinned"):
        wanted(["kubernetes"], "1.99.0")


def test_an_unknown_artifact_is_named_with_those_that_there_are() -> None:
    with pytest.raises(InvalidRequest, match="dockerd: no such artifact; there are kubernetes, etcd"):
        wanted(["etcd", "dockerd"])
