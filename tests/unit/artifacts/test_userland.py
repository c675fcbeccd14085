"""What an image takes out of a Debian tree."""

from pathlib import Path

import pytest

from mesh_agent.artifacts import userland
from mesh_agent.artifacts.image import Entry
from mesh_agent.errors import ConfigError

STATUS = """Package: app
Status: install ok installed
Version: 2.0-1
Pre-Depends: libc6 (>= 2.36)
Depends: libtool:any (>= 1), exim | mail-agent, awk
Description: an application
 with more lines

Package: libtool
Status: install ok installed
Version: 1
Depends: libc6, dpkg (>= 1.19)

Package: libc6
Status: install ok installed
Version: 2.36

Package: postfix
Status: install ok installed
Version: 3
Provides: mail-agent

Package: mawk
Status: install ok installed
Version: 1
Provides: awk (= 1)

Package: dpkg
Status: install ok installed
Version: 1.21

Package: gone
Status: deinstall ok config-files
Version: 1
"""


def test_the_closure_follows_alternatives_and_provided_names() -> None:
    chosen = userland.closure(userland.packages(STATUS), ["app"], without=["dpkg"])
    assert [package.name for package in chosen] == ["app", "libc6", "libtool", "mawk", "postfix"]


def test_removed_packages_are_not_there() -> None:
    assert "gone" not in userland.packages(STATUS)


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match="nftables"):
        userland.closure(userland.packages(STATUS), ["nftables"])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    listed = {
        "usr/bin/app": 0o4755,
        "usr/share/doc/app/copyright": 0o644,
        "usr/share/doc/app/changelog.gz": 0o644,
        "usr/share/man/man1/app.1": 0o644,
        "usr/lib/python3.11/os.py": 0o644,
        "usr/lib/python3.11/test/big.py": 0o644,
    }
    for name, mode in listed.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        path.chmod(mode)
    (root / "usr/bin/other").symlink_to("app")
    (root / "bin").symlink_to("usr/bin")
    info = root / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    (info.parent / "status").write_text(STATUS)
    (info / "app:amd64.list").write_text(
        "/.\n/bin\n/bin/other\n/usr\n/bin/missing\n" + "".join(f"/{name}\n" for name in listed)
    )
    return root


def _entries(tree: Path) -> dict[str, Entry]:
    package = userland.packages(STATUS)["app"]
    return {entry.name: entry for entry in userland.entries(tree, [package])}


def test_files_have_the_names_of_the_merged_usr(tree: Path) -> None:
    found = _entries(tree)
    assert found["bin"].link == "usr/bin"
    assert found["usr/bin/other"].link == "app"
    assert "bin/other" not in found


def test_manuals_tests_and_privileges_stay_behind_and_licences_do_not(tree: Path) -> None:
    found = _entries(tree)
    files = {name for name, entry in found.items() if entry.content is not None}
    assert files == {"usr/bin/app", "usr/share/doc/app/copyright", "usr/lib/python3.11/os.py", "var/lib/dpkg/status"}
    assert found["usr/bin/app"].mode == 0o755


def test_the_image_says_which_packages_it_holds(tree: Path) -> None:
    content = _entries(tree)["var/lib/dpkg/status"].content
    assert isinstance(content, bytes)
    assert set(userland.packages(content.decode())) == {"app"}


def test_a_tree_that_is_no_debian_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESH_ARTIFACTS_ROOTFS", str(tmp_path))
    with pytest.raises(ConfigError, match="not a Debian tree"):
        userland.tree(lambda _: None)
