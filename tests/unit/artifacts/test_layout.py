"""Names, versions and checksums of the directory of artifacts."""

from pathlib import Path

import pytest

from mesh_agent.artifacts import layout
from mesh_agent.errors import ConfigError, InvalidRequest

ONE = "a" * 64
TWO = "b" * 64


@pytest.mark.parametrize("text", ["1.37.2", "v1.37.2", "3.7.0-rc.1"])
def test_a_version_has_three_numbers(text: str) -> None:
    assert layout.version(text) == text.removeprefix("v")


@pytest.mark.parametrize("text", ["", "1.37", "latest", "1.37.2/../..", "v1.37.2 ", "1.37.2+k3s1"])
def test_anything_else_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(InvalidRequest, match="such as"):
        layout.version(text)


def test_versions_sort_as_numbers() -> None:
    assert sorted(["1.10.0", "1.9.12", "1.9.2"], key=layout.version_key) == ["1.9.2", "1.9.12", "1.10.0"]


@pytest.mark.parametrize(
    ("machine", "arch"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("amd64", "amd64"), ("arm64", "arm64")]
)
def test_architectures_are_named(machine: str, arch: str) -> None:
    assert layout.architecture(machine) == arch


def test_an_architecture_without_artifacts_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="amd64 and arm64"):
        layout.architecture("riscv64")


def test_another_architecture_has_a_directory_of_its_own() -> None:
    root = Path("/srv/artifacts")
    assert layout.place(root, "amd64", "amd64") == root
    assert layout.place(root, "amd64", "arm64") == root / "arm64"


@pytest.mark.parametrize(
    ("text", "sums"),
    [
        (f"{ONE}  etcd\n", {"etcd": ONE}),
        (f"{ONE} *kubeconform-linux-amd64.tar.gz\n", {"kubeconform-linux-amd64.tar.gz": ONE}),
        (f"# etcd\n\n{ONE}  ./a\n{TWO}  build/b\n", {"a": ONE, "b": TWO}),
        (ONE, {"": ONE}),  # what lies beside Kubernetes' programs
    ],
)
def test_checksum_files_of_every_upstream_are_read(text: str, sums: dict[str, str]) -> None:
    assert layout.parse_sums(text, "here") == sums


@pytest.mark.parametrize("text", ["<html>not found</html>", f"{ONE[:-1]}  short", f"{ONE}x  long"])
def test_what_is_no_checksum_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="SHA256SUMS: line 1"):
        layout.parse_sums(text, "SHA256SUMS")


def test_sums_survive_the_round_trip() -> None:
    sums = {"b": TWO, "a": ONE}
    assert layout.parse_sums(layout.format_sums(sums), "") == sums
    assert layout.format_sums(sums).startswith(ONE)


def _artifact(folder: Path) -> Path:
    folder.mkdir()
    (folder / "etcd").write_bytes(b"program")
    (folder / "etcdctl").symlink_to("etcd")
    layout.write_text(folder / layout.ORIGIN, "built 1234\n")
    layout.seal(folder)
    return folder


def test_a_sealed_artifact_has_no_problems(tmp_path: Path) -> None:
    folder = _artifact(tmp_path / "etcd-3.6.14")
    assert layout.problems(folder) == []
    assert layout.origin(folder) == "built 1234"
    assert set(layout.sums_of(folder)) == {"etcd", layout.ORIGIN}


def test_every_change_of_an_artifact_is_seen(tmp_path: Path) -> None:
    folder = _artifact(tmp_path / "etcd-3.6.14")
    (folder / "etcd").write_bytes(b"Program")
    (folder / "more").write_bytes(b"")
    (folder / "broken").symlink_to("nothing")
    (folder / layout.ORIGIN).unlink()
    assert layout.problems(folder) == [
        "etcd-3.6.14/ORIGIN: missing",
        "etcd-3.6.14/more: not listed in SHA256SUMS",
        "etcd-3.6.14/etcd: checksum differs",
        "etcd-3.6.14/broken: link to nothing",
    ]


def test_an_artifact_without_sums_is_incomplete(tmp_path: Path) -> None:
    folder = _artifact(tmp_path / "etcd-3.6.14")
    (folder / layout.SUMS).unlink()
    assert layout.origin(folder) == ""
    assert "not complete" in layout.problems(folder)[0]


def test_known_digests_are_not_computed_again(tmp_path: Path) -> None:
    folder = _artifact(tmp_path / "etcd-3.6.14")
    layout.seal(folder, {"etcd": ONE})
    assert layout.sums_of(folder)["etcd"] == ONE


def test_fingerprints_keep_the_parts_apart() -> None:
    assert layout.fingerprint(["ab", "c"]) != layout.fingerprint(["a", "bc"])
