"""Shell of the delta ADS server: gRPC streams in, snapshots out. grpc is imported when the server is started, not before.

Only one configuration is ever pending for a stream: a writer that is held up by a slow proxy sends the newest snapshot when it gets on, not each one
in between. Responses are concatenated from resources that were serialized once, and equal responses are one object for all streams.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mesh_agent.errors import ConfigError, NotFound, PermissionDenied
from mesh_agent.telemetry import Metrics
from mesh_agent.xds.naming import short
from mesh_agent.xds.runner import FollowedProxy, LocalProxies, ProxyConfigs
from mesh_agent.xds.stream import Request, Response, Stream

log = logging.getLogger(__name__)

_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_CACHED_BODIES = 256
_FIRST_WORD_S = 15.0
"""A stream says who it is for within this time."""
_OPTIONS = [
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_receive_message_length", 4 << 20),
]


Admitted = Callable[[], bool]
Admit = Callable[[Mapping[str, str], str], Admitted]
"""(metadata of a stream, proxy id) -> whether it may still go on, asked before each response; PermissionDenied if it may not begin."""


class AdsServer:
    """Serves `ProxyConfigs` to Envoy. Anyone who can open the socket can read the keys of this node's services: guard it by its mode."""

    def __init__(self, configs: ProxyConfigs, metrics: Metrics) -> None:
        self._configs = configs
        self._metrics = metrics
        self._servers: list[Any] = []  # of grpc.aio.Server, whose module is imported late
        self._bodies: dict[tuple[str, ...], bytes] = {}
        self._streams: dict[str, int] = {}
        self._open: dict[Stream, FollowedProxy] = {}
        metrics.describe("mesh_xds_rejected_total", "Configurations that a proxy refused (NACK).")
        metrics.describe("mesh_xds_responses_total", "Responses sent to proxies.")
        metrics.describe("mesh_xds_streams", "Open streams of proxies.")
        metrics.collect(lambda: [("mesh_xds_streams", {}, float(sum(self._streams.values())))])

    async def run(
        self, local: LocalProxies, socket_path: Path | None, *, mode: int = 0o660, tcp: tuple[str, int] | None = None
    ) -> None:
        """Start as soon as a sidecar proxy is registered on this node, and serve until cancelled; `ConfigError` as for `start`."""
        changed = asyncio.Event()
        stop_listening = local.listen(changed.set)
        try:
            while not any(each.proxy is not None for each in local.services()):
                await changed.wait()
                changed.clear()
        finally:
            stop_listening()
        await self.start(socket_path, mode=mode, tcp=tcp)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await self.stop()

    async def start(self, socket_path: Path | None, *, mode: int = 0o660, tcp: tuple[str, int] | None = None) -> int:
        """Listen on a unix socket (replacing a stale one) and, if asked, on TCP; returns the TCP port or 0. ConfigError if that fails."""
        server = self._new_server(_anybody)
        port = 0
        try:
            if socket_path is not None:
                _make_way(socket_path)
                server.add_insecure_port(f"unix:{socket_path}")
            if tcp is not None:
                port = server.add_insecure_port(f"{tcp[0]}:{tcp[1]}")
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"cannot listen for sidecars at {socket_path or tcp}: {error}") from error
        await server.start()
        if socket_path is not None:
            os.chmod(socket_path, mode)
        return port

    async def start_tls(self, host: str, port: int, credential: Callable[[], tuple[str, str]], admit: Admit) -> int:
        """Listen with TLS for proxies that `admit` lets in; returns the port. ConfigError if it is not free.

        `credential` gives (certificate, key) and is asked at each handshake, in another thread.
        """
        server = self._new_server(admit)
        try:
            found = server.add_secure_port(f"{host}:{port}", _credentials(credential))
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"ports.grpc_tls: cannot listen on {host} port {port}: {error}") from error
        await server.start()
        return int(found)

    def _new_server(self, admit: Admit) -> Any:
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its own log goes to standard error, past ours
        # Its fork handlers crash children between fork and exec when uvloop starts them (seen with grpcio 1.85): script checks would fail at random.
        os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
        import grpc
        from envoy.service.discovery.v3 import discovery_pb2

        server = grpc.aio.server(options=_OPTIONS)
        method = grpc.stream_stream_rpc_method_handler(
            partial(self._serve, admit), request_deserializer=discovery_pb2.DeltaDiscoveryRequest.FromString
        )
        handler = grpc.method_handlers_generic_handler(_SERVICE, {"DeltaAggregatedResources": method})
        server.add_generic_rpc_handlers((handler,))
        self._servers.append(server)
        return server

    async def stop(self, grace_s: float = 0.0) -> None:
        """End all streams; proxies go on with what they have and come back."""
        servers, self._servers = self._servers, []
        await asyncio.gather(*(server.stop(grace_s) for server in servers))

    @property
    def proxies(self) -> dict[str, int]:
        """Open streams by proxy id."""
        return dict(self._streams)

    @property
    def settled(self) -> bool:
        """Whether every connected proxy has been sent its newest snapshot and has answered to it."""
        return all(
            followed.snapshot is not None and stream.settled and stream.has(followed.snapshot)
            for stream, followed in self._open.items()
        )

    async def _serve(self, admit: Admit, requests: AsyncIterator[Any], context: Any) -> None:  # grpc is untyped
        import grpc

        wake = asyncio.Event()
        try:
            async with asyncio.timeout(_FIRST_WORD_S):
                first = await anext(requests, None)
        except TimeoutError:
            first = None
        if first is None:
            return
        proxy_id = first.node.id
        try:
            admitted = admit(dict(context.invocation_metadata() or ()), proxy_id)
            followed = self._configs.follow(proxy_id, wake.set)
        except (NotFound, PermissionDenied) as error:
            log.warning("a proxy was turned away: %s", error)
            code = grpc.StatusCode.NOT_FOUND if isinstance(error, NotFound) else grpc.StatusCode.PERMISSION_DENIED
            await context.abort(code, str(error))
            return
        self._streams[proxy_id] = self._streams.get(proxy_id, 0) + 1
        log.info("proxy %s connected", proxy_id)
        try:
            await self._converse(proxy_id, followed, admitted, first, requests, context, wake)
            if followed.gone or not admitted():
                await context.abort(grpc.StatusCode.NOT_FOUND, f"proxy {proxy_id!r} is not registered any more")
        finally:
            self._configs.leave(proxy_id, wake.set)
            self._streams[proxy_id] -= 1
            if not self._streams[proxy_id]:
                del self._streams[proxy_id]
            log.info("proxy %s disconnected", proxy_id)

    async def _converse(
        self,
        proxy_id: str,
        followed: FollowedProxy,
        admitted: Admitted,
        first: Any,
        requests: AsyncIterator[Any],
        context: Any,
        wake: asyncio.Event,
    ) -> None:
        stream = Stream()
        ended = False

        def take(message: Any) -> None:
            self._take(proxy_id, stream, message)
            wake.set()

        async def listen() -> None:
            nonlocal ended
            async for message in requests:
                take(message)
            ended = True
            wake.set()

        take(first)
        self._open[stream] = followed
        async with asyncio.TaskGroup() as tasks:
            listener = tasks.create_task(listen())
            try:
                while not ended and not followed.gone and admitted():
                    await wake.wait()
                    wake.clear()
                    if followed.snapshot is not None and admitted():
                        for response in stream.due(followed.snapshot):
                            await context.write(self._encode(response))
                            self._metrics.count("mesh_xds_responses_total", type=short(response.type_url))
            finally:
                del self._open[stream]
                listener.cancel()

    def _take(self, proxy_id: str, stream: Stream, message: Any) -> None:
        rejected = stream.receive(
            Request(
                message.type_url,
                tuple(message.resource_names_subscribe),
                tuple(message.resource_names_unsubscribe),
                tuple(message.initial_resource_versions.items()),
                message.response_nonce,
                message.error_detail.message if message.HasField("error_detail") else "",
            )
        )
        if rejected is not None:
            kind = short(rejected.type_url)
            self._metrics.count("mesh_xds_rejected_total", type=kind, proxy=proxy_id)
            log.error(
                "proxy %s refuses %s %s and keeps what it had: %s",
                proxy_id,
                kind,
                ", ".join(rejected.names),
                rejected.reason,
            )

    def _encode(self, response: Response) -> bytes:
        key = (response.type_url, *response.removed, "", *(v for each in response.resources for v in each[:2]))
        body = self._bodies.pop(key, None)
        if body is None:
            body = b"".join([_text(4, response.type_url), *(each.entry for each in response.resources)])
            body += b"".join(_text(6, name) for name in response.removed)
        self._bodies[key] = body  # the youngest last
        if len(self._bodies) > _CACHED_BODIES:
            del self._bodies[next(iter(self._bodies))]
        return body + _text(5, response.nonce)


def _anybody(metadata: Mapping[str, str], proxy_id: str) -> Admitted:
    """Who can open the socket may ask for anything."""
    return lambda: True


def _credentials(credential: Callable[[], tuple[str, str]]) -> Any:
    import grpc

    used: tuple[str, str] = ("", "")

    def current() -> Any:
        nonlocal used
        used = credential()
        certificate, key = used
        return grpc.ssl_server_certificate_configuration([(key.encode(), certificate.encode())])

    return grpc.dynamic_ssl_server_credentials(
        current(), lambda: current() if credential() != used else None, require_client_authentication=False
    )


def _make_way(socket_path: Path) -> None:
    socket_path.parent.mkdir(parents=True, exist_ok=True)
    socket_path.unlink(missing_ok=True)


def _text(number: int, text: str) -> bytes:
    """A string field of a protocol buffer. The fields of a message may be concatenated in any order."""
    data = text.encode()
    size, length = len(data), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes([number << 3 | 2]) + bytes(length) + data
