"""A service that says what it is, where it runs and who called: demo.py NAME PORT [ADDRESS]; on loopback without ADDRESS."""

import json
import re
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME, PORT = sys.argv[1], int(sys.argv[2])
ADDRESS = sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1"


class Handler(BaseHTTPRequestHandler):
    """Answers GET with JSON."""

    protocol_version = "HTTP/1.1"
    wbufsize = 8192  # head and body leave together: no waiting for an acknowledgement in between

    def do_GET(self) -> None:
        """The caller's identity comes from Envoy, which replaces the header that a client sends."""
        caller = re.search(r"URI=([^;,\"]+)", self.headers.get("x-forwarded-client-cert", ""))
        answer = {
            "service": NAME,
            "node": socket.gethostname(),
            "caller": caller.group(1) if caller else None,
            "path": self.path,
        }
        body = json.dumps(answer).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Health checks are not worth a line."""


ThreadingHTTPServer((ADDRESS, PORT), Handler).serve_forever()
