"""Registrations and results on disk: a JSON file for each, replaced in one step.

One thread does the writing, so that a slow disk holds up the caller who waits for it and nothing else, and so that writes happen in the order in which they
were asked for.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from mesh_agent.agent import consul_json
from mesh_agent.agent.definition import CheckDefinition, ServiceDefinition
from mesh_agent.agent.fields import decode_object
from mesh_agent.errors import InvalidRequest, MeshError, StoreUnavailable

log = logging.getLogger(__name__)
T = TypeVar("T")

_MAX_NAME = 200


class _File(NamedTuple):
    path: Path
    content: bytes | None
    """None: there should be no such file."""


class Storage:
    """A directory of `<kind>/<name>.json`; the empty kind is the directory itself."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="storage")

    async def write(self, values: Mapping[tuple[str, str], Any], *, durable: bool = True) -> None:
        """Write what is given by (kind, name), None removes; StoreUnavailable if some of it could not be.

        `durable`: wait until it would survive a loss of power.
        """
        files = [
            _File(self._path(kind, name), None if value is None else msgspec.json.encode(value))
            for (kind, name), value in values.items()
        ]
        if not files:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, _write, files, durable)
        except OSError as error:
            raise StoreUnavailable(f"cannot be kept on disk: {error}; check {self._directory}") from error

    def read(self, kind: str, value_type: type[T]) -> list[T]:
        """Every file of a kind; one that cannot be read is logged and left out."""
        paths = sorted((self._directory / kind).glob("*.json"))
        return [value for path in paths if (value := _read(path, value_type)) is not None]

    def read_one(self, name: str, value_type: type[T]) -> T | None:
        """One file; None if there is none that can be read."""
        path = self._path("", name)
        return _read(path, value_type) if path.exists() else None

    def close(self) -> None:
        """Finish what was asked for."""
        self._thread.shutdown()

    def _path(self, kind: str, name: str) -> Path:
        file = quote(name, safe="")
        if len(file) > _MAX_NAME:  # a file's name has at most 255 bytes
            file = f"{file[:100]}-{blake2b(name.encode(), digest_size=16).hexdigest()}"
        return self._directory / kind / f"{file}.json"


def _read(path: Path, value_type: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=value_type)
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        log.error("%s cannot be read and is left out: %s", path, error)
        return None


def _write(files: Iterable[_File], durable: bool) -> None:
    touched = set()
    for path, content in files:
        if content is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(path, content, durable)
        touched.add(path.parent)
    if durable:
        for directory in touched:
            _flush(directory)


def _replace(path: Path, content: bytes, durable: bool) -> None:
    fresh = path.with_name(path.name + ".new")
    # Definitions may hold secrets (headers of HTTP checks): for the agent's eyes only.
    with open(fresh, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    fresh.replace(path)


def _flush(directory: Path) -> None:
    if not directory.is_dir():
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


Definitions = tuple[list[ServiceDefinition], list[CheckDefinition]]


def read_definitions(directory: str, allow: Callable[[Iterable[CheckDefinition]], None]) -> Definitions:
    """Services and checks of `*.json` in a directory; InvalidRequest names the file that is broken. Without a directory there are none."""
    services: dict[str, ServiceDefinition] = {}
    checks: dict[str, CheckDefinition] = {}
    for path in sorted(Path(directory).glob("*.json")) if directory else []:
        try:
            more, alone = consul_json.file(decode_object(path.read_bytes(), "the file"))
            allow([check for service in more for check in service.all_checks])
            allow(alone)
            _add(services, {each.service_id: each for each in more}, "service")
            _add(checks, {each.id or each.name: each for each in alone}, "check")
        except (OSError, MeshError) as error:
            raise InvalidRequest(f"{path}: {error}") from error
    return list(services.values()), list(checks.values())


def _add(known: dict[str, T], more: dict[str, T], what: str) -> None:
    for name in more:
        if name in known:
            raise InvalidRequest(f"{what} {name!r} is defined in an earlier file already")
    known |= more
