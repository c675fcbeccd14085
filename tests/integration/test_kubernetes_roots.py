"""The agent is there before its cluster: the CA file comes later, and changes with the cluster."""

import asyncio
import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mesh_agent.errors import Unreachable
from mesh_agent.kubernetes.client import KubernetesApi


def _certificate(folder: Path) -> Path:
    """A self-signed certificate for loopback, with its key in the same file."""
    folder.mkdir()
    pem = folder / "server.pem"
    wanted = (
        "-x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=api -addext subjectAltName=IP:127.0.0.1"
    )
    files = ("-keyout", pem, "-out", folder / "ca.pem")
    subprocess.run(["openssl", "req", *wanted.split(), *files], check=True, capture_output=True)
    pem.write_text(pem.read_text() + (folder / "ca.pem").read_text())
    return pem


@asynccontextmanager
async def _server(pem: Path) -> AsyncIterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_roots_are_waited_for_and_read_again_when_they_change(tmp_path: Path) -> None:
    roots = tmp_path / "roots.pem"
    first, second = _certificate(tmp_path / "one"), _certificate(tmp_path / "two")
    async with _server(first) as old, _server(second) as new:
        api, other = KubernetesApi(old, str(roots)), KubernetesApi(new, str(roots))
        with pytest.raises(Unreachable, match="ca_file"):
            await api.request("GET", "/")
        shutil.copy(first.with_name("ca.pem"), roots)
        assert await api.request("GET", "/") == {}
        with pytest.raises(Unreachable):
            await other.request("GET", "/")
        shutil.copy(second.with_name("ca.pem"), roots)
        os.utime(roots, ns=(1, 1))  # another time, however coarse the file system's clock is
        assert await other.request("GET", "/") == {}
        await api.close()
        await other.close()
