"""What the artifacts need of the machine: programs that are run, the clock for progress, and locks between processes."""

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mesh_agent.errors import MeshError

_BEAT_S = 15.0


class BuildFailed(MeshError):
    """A program failed; nothing of the artifact was put in place, and the next run takes up what Go's caches hold."""


class Progress:
    """A line for each step, with the time since the start of the command and of the step."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._started = time.monotonic()

    def line(self, text: str) -> None:
        """One line."""
        self._say(f"[{time.monotonic() - self._started:6.1f} s] {text}")

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """A line before, and one with the time it took after."""
        began = time.monotonic()
        self.line(f"{text} ...")
        yield
        self.line(f"{text}: done in {time.monotonic() - began:.1f} s")

    def run(self, command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str], what: str) -> None:
        """Run a program that prints a line for each unit of work (`what`) on standard error; a line of progress now and then."""
        began = beat = time.monotonic()
        count = 0
        tail: list[str] = []
        with subprocess.Popen(command, cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                              text=True, errors="replace") as process:  # fmt: skip
            for text in process.stderr or ():
                count += 1
                tail = [*tail[-14:], text.rstrip()]
                now = time.monotonic()
                if now - beat >= _BEAT_S:
                    beat = now
                    self.line(f"  ... {count} {what}, {now - began:.0f} s")
        if process.returncode:
            said = "\n  ".join(tail)
            raise BuildFailed(f"{' '.join(map(str, command[:3]))} failed with {process.returncode}:\n  {said}")


def output(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """What a program prints; BuildFailed with what it said when it fails."""
    try:
        done = subprocess.run(
            command,
            env=None if env is None else dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise BuildFailed(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        raise BuildFailed(
            f"{' '.join(map(str, command[:4]))} failed with {done.returncode}:\n  {done.stderr.strip()[-2000:]}"
        )
    return done.stdout


@contextmanager
def lock(root: Path, name: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Only one process at a time makes an artifact; the others wait, then find it ready. A dead process holds no lock."""
    folder = root / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def scratch(root: Path, name: str) -> Iterator[Path]:
    """A directory for work in progress, on the file system of the artifacts so that a rename puts the result in place.

    Hold the lock of the same name: what a killed process left there is removed.
    """
    work = root / ".work" / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
