"""A small API server over real HTTP: collections with resourceVersions, lists in pages, watches with bookmarks, compaction (410), token reviews."""

import asyncio
import contextlib
import copy
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]


def pod(
    name: str,
    *,
    namespace: str = "default",
    account: str = "api",
    uid: str = "",
    node: str = "n1",
    address: str | None = "10.244.1.5",
    ready: bool = True,
    phase: str = "Running",
    ports: tuple[tuple[str, int], ...] = (("http", 8080),),
    annotations: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
) -> Object:
    """An injected pod as the API server shows it."""
    status: Object = {"phase": phase, "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}
    if address:
        status["podIP"] = address
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid or f"uid-{namespace}-{name}",
            "creationTimestamp": "2026-11-25T10:00:00Z",
            "labels": {"mesh.openmesh.io/injected": "true", "app": account} | (labels or {}),
            "annotations": annotations or {},
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": account,
            "containers": [{"name": "app", "ports": [{"name": n, "containerPort": p} for n, p in ports]}],
        },
        "status": status,
    }


def service(
    name: str, address: str, *, namespace: str = "default", selector: dict[str, str] | None = None, **ports: Any
) -> Object:
    """A Service; `ports` are name=(port, targetPort)."""
    return {
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-svc-{namespace}-{name}"},
        "spec": {
            "clusterIP": address,
            "selector": {"app": name} if selector is None else selector,
            "ports": [{"name": key, "port": port, "targetPort": target} for key, (port, target) in ports.items()],
        },
    }


class ApiServer:
    """See the module's text. `tokens` maps a token to its TokenReview status."""

    def __init__(self) -> None:
        self.version = 100
        self.tokens: dict[str, Object] = {}
        self.lists = 0
        self.reviews = 0
        self._objects: dict[str, dict[tuple[str, str], Object]] = {"pods": {}, "services": {}}
        self._log: dict[str, list[tuple[int, str, Object]]] = {"pods": [], "services": []}
        self._oldest = 0
        self._news = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.page = 500
        self.nonsense = False
        """Answer lists with JSON that is none of Kubernetes."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # what a test does to the cluster

    async def put(self, kind: str, found: Object) -> None:
        """Add or replace an object."""
        key = (found["metadata"]["namespace"], found["metadata"]["name"])
        await self._say(kind, "MODIFIED" if key in self._objects[kind] else "ADDED", key, found)

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        """Remove an object."""
        key = (namespace, name)
        await self._say(kind, "DELETED", key, self._objects[kind][key])

    async def _say(self, kind: str, event: str, key: tuple[str, str], found: Object) -> None:
        self.version += 1
        stored = copy.deepcopy(found)
        stored["metadata"]["resourceVersion"] = str(self.version)
        if event == "DELETED":
            del self._objects[kind][key]
        else:
            self._objects[kind][key] = stored
        self._log[kind].append((self.version, event, stored))
        async with self._news:
            self._news.notify_all()

    async def compact(self) -> None:
        """Forget history: every watch that runs ends, and one from an old version is told 410."""
        self._oldest = self.version
        for log in self._log.values():
            log.clear()
        await self.drop()

    async def drop(self) -> None:
        """Break every connection."""
        for writer in tuple(self._writers):
            writer.transport.abort()
        while self._writers:
            async with self._news:
                self._news.notify_all()
            await asyncio.sleep(0)

    def account(self, token: str, namespace: str, account: str, pod: Object | None = None) -> None:
        """Make `token` good for the audience `mesh`."""
        extra = {}
        if pod is not None:
            extra = {
                "authentication.kubernetes.io/pod-name": [pod["metadata"]["name"]],
                "authentication.kubernetes.io/pod-uid": [pod["metadata"]["uid"]],
            }
        self.tokens[token] = {
            "authenticated": True,
            "audiences": ["mesh"],
            "user": {"username": f"system:serviceaccount:{namespace}:{account}", "extra": extra},
        }

    # serving

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port or self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self.drop()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode()
                    first, *lines = head.split("\r\n")
                    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)}
                    body = await reader.readexactly(int(headers.get("content-length", 0)))
                    method, target, _ = first.split(" ")
                    await self._answer(method, target, body, writer)
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, method: str, target: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        url = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        kind = url.path.rpartition("/")[2]
        if (method, kind) == ("POST", "tokenreviews"):
            self.reviews += 1
            asked = json.loads(body)["spec"]
            status = self.tokens.get(asked["token"], {"authenticated": False, "error": "unknown"})
            await _send(writer, 201, {"status": status})
        elif method == "GET" and kind in self._objects and query.get("watch") == "true":
            await self._watch(kind, query, writer)
        elif method == "GET" and kind in self._objects:
            self.lists += 1
            await _send(writer, 200, {"sorry": "maintenance"} if self.nonsense else self._list(kind, query))
        else:
            await _send(writer, 404, {"kind": "Status", "code": 404, "message": f"no {url.path}"})

    def _list(self, kind: str, query: dict[str, str]) -> Object:
        found = [each for _, each in sorted(self._objects[kind].items()) if _selected(each, query)]
        at = int(query.get("continue", 0))
        more = at + self.page < len(found)
        metadata = {"resourceVersion": str(self.version), "continue": str(at + self.page) if more else ""}
        return {"metadata": metadata, "items": found[at : at + self.page]}

    async def _watch(self, kind: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        seen = int(query["resourceVersion"])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        if seen < self._oldest:
            status = {"kind": "Status", "code": 410, "message": "too old resource version"}
            _chunk(writer, {"type": "ERROR", "object": status})
            writer.write(b"0\r\n\r\n")
            await writer.drain()
            return
        while True:
            for version, event, found in self._log[kind]:
                if version > seen and _selected(found, query):
                    _chunk(writer, {"type": event, "object": found})
            seen = self.version
            _chunk(writer, {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(seen)}}})
            await writer.drain()
            async with self._news:
                while self.version == seen and not writer.is_closing():
                    await self._news.wait()
            if writer.is_closing():
                return


def _selected(found: Object, query: dict[str, str]) -> bool:
    selector = query.get("fieldSelector", "")
    node = selector.removeprefix("spec.nodeName=")
    return not selector or found["spec"].get("nodeName") == node


def _chunk(writer: asyncio.StreamWriter, event: Object) -> None:
    line = json.dumps(event).encode() + b"\n"
    writer.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")


async def _send(writer: asyncio.StreamWriter, status: int, body: Object) -> None:
    payload = json.dumps(body).encode()
    writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload)
    await writer.drain()
