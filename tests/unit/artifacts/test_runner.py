"""Progress, failures of programs, and what work in progress leaves behind."""

import os
import re
from pathlib import Path

import pytest

from mesh_agent.artifacts.runner import BuildFailed, Progress, lock, output, scratch


def test_each_step_has_a_line_with_the_time_before_and_after() -> None:
    said: list[str] = []
    with Progress(said.append).step("etcd-3.6.14: building"):
        assert len(said) == 1
    assert re.fullmatch(r"\[ +\d+\.\d s\] etcd-3\.6\.14: building \.\.\.", said[0])
    assert re.fullmatch(r"\[ +\d+\.\d s\] etcd-3\.6\.14: building: done in \d+\.\d s", said[1])


def test_a_step_that_fails_is_not_done() -> None:
    said: list[str] = []
    with pytest.raises(RuntimeError), Progress(said.append).step("x"):
        raise RuntimeError
    assert len(said) == 1


def test_a_failed_program_shows_the_end_of_what_it_said(tmp_path: Path) -> None:
    script = "for i in $(seq 100); do echo line $i >&2; done; exit 3"
    with pytest.raises(BuildFailed, match="failed with 3") as caught:
        Progress(lambda _: None).run(["/bin/sh", "-c", script], cwd=tmp_path, env=os.environ, what="lines")
    assert "line 100" in str(caught.value)
    assert "line 50\n" not in str(caught.value)


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(BuildFailed, match="/nonexistent/go: No such file"):
        output(["/nonexistent/go", "version"])


def test_work_that_was_killed_is_cleared_and_nothing_is_left(tmp_path: Path) -> None:
    left = tmp_path / ".work/etcd/module"
    left.mkdir(parents=True)
    with lock(tmp_path, "etcd", lambda: pytest.fail("nobody else holds it")), scratch(tmp_path, "etcd") as work:
        assert list(work.iterdir()) == []
        (work / "half").write_bytes(b"")
    assert list((tmp_path / ".work").iterdir()) == []
