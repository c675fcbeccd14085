"""Plain clients and servers for tests of the data plane: one TCP connection each, read and written by hand."""

import asyncio
import contextlib
import json
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from mesh_agent.ca.runner import Leaf
from mesh_agent.http.message import Request, Response
from mesh_agent.http.server import HttpServer

PATIENCE_S = 40.0
GREETING = b"hello "


class Closed(Exception):
    """The other end has closed the connection, by FIN or RST."""


class Line:
    """A TCP connection, on which bytes or HTTP/1.1 requests may be exchanged."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, port: int, context: ssl.SSLContext | None = None, server_name: str | None = None) -> "Line":
        """Connect to a port of loopback; Closed if the handshake fails. Silence is another thing than the end, here and below: TimeoutError."""
        name = (server_name or "x") if context else None
        try:
            async with asyncio.timeout(PATIENCE_S):
                return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name))
        except TimeoutError:
            raise
        except (OSError, EOFError) as error:
            raise Closed(str(error)) from error

    async def read(self, count: int) -> bytes:
        """Exactly so many bytes; Closed if there are fewer."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self.reader.readexactly(count)
        except TimeoutError:
            raise
        except (OSError, EOFError) as error:
            raise self._closed(error) from error

    async def say(self, text: bytes) -> bytes:
        """Send bytes to an echo and return what comes back."""
        try:
            self.writer.write(text)
            await self.writer.drain()
        except OSError as error:
            raise self._closed(error) from error
        return await self.read(len(text))

    async def get(self, path: str = "/", **headers: str) -> tuple[int, Any]:
        """One request of HTTP/1.1; status and body, decoded if it is JSON."""
        lines = [
            f"GET {path} HTTP/1.1",
            "Host: app",
            *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()),
        ]
        try:
            self.writer.write("\r\n".join([*lines, "", ""]).encode())
            async with asyncio.timeout(PATIENCE_S):
                head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                body = await self.reader.readexactly(int(fields.get("content-length", 0)))
        except TimeoutError:
            raise
        except (OSError, EOFError) as error:
            raise self._closed(error) from error
        status = int(head[0].split()[1])
        return status, json.loads(body) if "json" in fields.get("content-type", "") else body.decode()

    async def closed(self) -> None:
        """Wait until the other end closes."""
        with contextlib.suppress(Closed):
            while True:
                await self.read(1)

    def _closed(self, error: Exception) -> Closed:
        self.close()
        return Closed(str(error))

    def close(self) -> None:
        """Close."""
        self.writer.close()


@contextlib.asynccontextmanager
async def greeting_echo() -> AsyncIterator[int]:
    """A server that speaks first and then echoes; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(GREETING)
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def http_app(name: str) -> AsyncIterator[int]:
    """An HTTP server that answers with its name and the headers that it was sent; yields its port."""

    def answer(request: Request) -> Response:
        return Response.json({"app": name, "headers": request.headers})

    server = HttpServer(answer)
    port = await server.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await server.stop()


def client_context(leaf: Leaf | None, *, minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2) -> ssl.SSLContext:
    """TLS as a careless client speaks it: it presents `leaf` and believes any server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode, context.minimum_version = False, ssl.CERT_NONE, minimum
    if leaf is not None:
        _load(context, leaf)
    return context


def server_context(leaf: Leaf) -> ssl.SSLContext:
    """TLS of a server that presents `leaf` and asks for nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, leaf)
    return context


def _load(context: ssl.SSLContext, leaf: Leaf) -> None:
    with tempfile.TemporaryDirectory() as directory:
        chain = Path(directory, "chain.pem")
        chain.write_text(leaf.certificate_pem + leaf.key_pem)
        context.load_cert_chain(chain)
