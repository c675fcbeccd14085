"""Layers and docker-archives: the same content gives the same bytes, and what was written can be read back."""

import json
import os
import tarfile
from pathlib import Path

import pytest

from mesh_agent.artifacts.image import Entry, Image, open_layer, read_archive, with_parents, write_archive, write_layer
from mesh_agent.errors import ConfigError


def _program(folder: Path, content: bytes = b"#!/bin/sh\n") -> Path:
    path = folder / "program"
    path.write_bytes(content)
    return path


def test_directories_above_an_entry_are_made() -> None:
    named = [entry.name for entry in with_parents([Entry("/usr/bin/mesh", b""), Entry("usr", mode=0o700)])]
    assert named == ["usr", "usr/bin", "usr/bin/mesh"]


def test_the_last_entry_of_a_name_wins() -> None:
    (only,) = with_parents([Entry("a", b"1"), Entry("a", b"2")])
    assert only.content == b"2"


def test_a_layer_depends_on_its_content_alone(tmp_path: Path) -> None:
    program = _program(tmp_path)
    entries = [Entry("bin/b", program), Entry("bin/a", link="b"), Entry("etc/c", b"text", mode=0o644)]
    first = write_layer(tmp_path / "first.tar", entries)
    os.utime(program, (1, 1))
    program.chmod(0o600)
    second = write_layer(tmp_path / "second.tar", reversed(entries))
    assert first.digest == second.digest
    assert first.path.read_bytes() == second.path.read_bytes()
    changed = write_layer(tmp_path / "third.tar", [*entries, Entry("etc/c", b"text", mode=0o600)])
    assert changed.digest != first.digest


def test_a_layer_has_no_owner_and_no_time(tmp_path: Path) -> None:
    layer = write_layer(tmp_path / "layer.tar", [Entry("bin/a", _program(tmp_path)), Entry("bin/b", link="a")])
    with tarfile.open(layer.path) as tar:
        members = {member.name: member for member in tar}
    assert {(member.uid, member.gid, member.uname, member.mtime) for member in members.values()} == {(0, 0, "", 0)}
    assert members["bin/a"].mode == 0o755
    assert members["bin/b"].issym()
    assert members["bin"].isdir()


def test_a_failed_layer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_layer(tmp_path / "layer.tar", [Entry("a", tmp_path / "missing")])
    assert list(tmp_path.iterdir()) == []


def _images(folder: Path) -> list[Image]:
    shared = write_layer(folder / "shared.tar", [Entry("bin/program", _program(folder))])
    own = write_layer(folder / "own.tar", [Entry("etc/own", b"1", mode=0o644)])
    return [
        Image("registry.example/one:v1", [shared], {"Entrypoint": ["/bin/program"]}),
        Image("two:v1", [shared, own], {"User": "5995:5995"}),
    ]


def test_images_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    archive = tmp_path / "images.tar"
    write_archive(archive, _images(tmp_path), "arm64")
    images = read_archive(archive)
    assert set(images) == {"registry.example/one:v1", "two:v1"}
    assert images["two:v1"]["architecture"] == "arm64"
    assert images["two:v1"]["config"] == {"User": "5995:5995"}
    assert images["two:v1"]["os"] == "linux"


def test_an_archive_is_the_same_each_time_and_its_digest_is_told(tmp_path: Path) -> None:
    images = _images(tmp_path)
    told = write_archive(tmp_path / "first.tar", images, "amd64")
    assert write_archive(tmp_path / "second.tar", images, "amd64") == told
    assert open_layer(tmp_path / "first.tar").digest == told == open_layer(tmp_path / "second.tar").digest


def test_a_shared_layer_is_stored_once(tmp_path: Path) -> None:
    write_archive(tmp_path / "images.tar", _images(tmp_path), "amd64")
    with tarfile.open(tmp_path / "images.tar") as tar:
        names = tar.getnames()
    assert len([name for name in names if name.endswith("/layer.tar")]) == 2
    assert len(names) == len(set(names)) == 5


def _rewrite(archive: Path, change: dict[str, bytes]) -> None:
    with tarfile.open(archive) as tar:
        content = {member.name: (tar.extractfile(member) or member).read() for member in tar}  # type: ignore[union-attr]
    with tarfile.open(archive, "w") as tar:
        for name, old in content.items():
            data = change.get(name.rpartition("/")[2], old)
            path = archive.parent / "part"
            path.write_bytes(data)
            tar.add(path, name)


def test_a_damaged_layer_is_found(tmp_path: Path) -> None:
    archive = tmp_path / "images.tar"
    write_archive(archive, _images(tmp_path)[:1], "amd64")
    _rewrite(archive, {"layer.tar": b"something else"})
    with pytest.raises(ConfigError, match="one:v1"):
        read_archive(archive)


def test_a_changed_configuration_is_found(tmp_path: Path) -> None:
    archive = tmp_path / "images.tar"
    write_archive(archive, _images(tmp_path)[:1], "amd64")
    with tarfile.open(archive) as tar:
        manifest = json.loads((tar.extractfile("manifest.json") or pytest.fail("none")).read())
        name = manifest[0]["Config"]
        config = json.loads((tar.extractfile(name) or pytest.fail("none")).read())
    config["config"]["Entrypoint"] = ["/bin/another"]
    _rewrite(archive, {name: json.dumps(config).encode()})
    with pytest.raises(ConfigError, match="damaged"):
        read_archive(archive)


def test_a_tar_that_is_no_archive_of_images_is_named(tmp_path: Path) -> None:
    layer = write_layer(tmp_path / "layer.tar", [Entry("a", b"")])
    with pytest.raises(ConfigError, match=r"manifest\.json is missing"):
        read_archive(layer.path)
