"""The images of a cluster: their names, their layers, and the cache of layers."""

import tarfile
from pathlib import Path

import pytest

from mesh_agent.artifacts import cluster, layout
from mesh_agent.artifacts.build import put
from mesh_agent.artifacts.image import Entry

LISTED = """registry.k8s.io/kube-proxy:v1.37.2
registry.k8s.io/coredns/coredns:v1.14.6
mirror.example:5000/etcd:3.7.0-0
"""


def test_components_are_found_in_the_list_of_kubeadm() -> None:
    assert cluster.by_name(LISTED) == {
        "kube-proxy": "registry.k8s.io/kube-proxy:v1.37.2",
        "coredns": "registry.k8s.io/coredns/coredns:v1.14.6",
        "etcd": "mirror.example:5000/etcd:3.7.0-0",
    }


def test_a_layer_of_programs_has_the_programs_and_their_links(tmp_path: Path) -> None:
    result = tmp_path / ".work" / "result"
    result.mkdir(parents=True)
    (result / "etcd").write_bytes(b"program")
    (result / "etcd").chmod(0o755)
    (result / "etcdctl").symlink_to("etcd")
    put(tmp_path, "etcd-3.6.14", result, "built 1")
    layer = cluster.program_layer(tmp_path, tmp_path / "etcd-3.6.14")
    with tarfile.open(layer.path) as tar:
        names = {member.name: member.linkname for member in tar if not member.isdir()}
    assert names == {"usr/local/bin/etcd": "", "usr/local/bin/etcdctl": "etcd"}


def test_a_cached_layer_is_not_written_again_and_replaces_older_ones(tmp_path: Path) -> None:
    first = cluster.cached_layer(tmp_path, "etcd-3.6.14", "a" * 16, iter([Entry("a", b"1")]))
    other = cluster.cached_layer(tmp_path, "etcd-3.6.14-more", "a" * 16, iter([Entry("a", b"2")]))
    again = cluster.cached_layer(tmp_path, "etcd-3.6.14", "a" * 16, (pytest.fail("used") for _ in "x"))
    assert again == first
    cluster.cached_layer(tmp_path, "etcd-3.6.14", "b" * 16, iter([Entry("a", b"3")]))
    assert not first.path.exists()
    assert other.path.exists()


def test_images_are_added_to_a_sealed_artifact(tmp_path: Path) -> None:
    folder = tmp_path / "kubernetes-1.37.2"
    folder.mkdir()
    layout.write_text(folder / layout.ORIGIN, "built 1\n")
    layout.seal(folder)
    layer = cluster.cached_layer(tmp_path, "layer", "c" * 16, iter([Entry("a", b"1")]))
    cluster.add_archive(folder, [cluster.Image("pause:3.10.2", [layer], {})], "amd64")
    cluster.add_archive(folder, [cluster.Image("pause:3.10.3", [layer], {})], "amd64")
    assert layout.problems(folder) == []
    assert (folder / layout.TAGS).read_text() == "pause:3.10.3\n"
