"""Which life of the host this is."""

import pytest

from mesh_agent.app.paths import boot_id


def test_the_unit_knows_the_boot_better_than_the_kernels_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOOT_ID", raising=False)
    kernels = boot_id()
    monkeypatch.setenv("BOOT_ID", "0123456789abcdef0123456789abcdef")
    assert boot_id() == "0123456789abcdef0123456789abcdef"
    monkeypatch.setenv("BOOT_ID", "")
    assert boot_id() == kernels
