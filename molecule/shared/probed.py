"""What kubelets probe in every way: HTTP on 8080, gRPC's health protocol on 8081, which says not serving as long as /tmp/unwell exists."""

from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc

SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
"""HealthCheckResponse of grpc.health.v1 (https://github.com/grpc/grpc/blob/master/doc/health-checking.md)."""


class Web(BaseHTTPRequestHandler):
    """Answers everything."""

    def do_GET(self) -> None:
        """Say that all is well."""
        self.send_response(204)
        self.end_headers()


def check(request: bytes, context: Any) -> bytes:
    """The health of every service."""
    return NOT_SERVING if Path("/tmp/unwell").exists() else SERVING


health = grpc.server(ThreadPoolExecutor(2))
handlers = {"Check": grpc.unary_unary_rpc_method_handler(check)}
health.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers)])
health.add_insecure_port("0.0.0.0:8081")
health.start()
ThreadingHTTPServer(("0.0.0.0", 8080), Web).serve_forever()
