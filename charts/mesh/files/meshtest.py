"""What the pods of `helm test` run: `serve`, or one of the proofs `allowed`, `refused` and `outside`. Exit code 0: proved.

NAME is the server's name in the mesh, PORT its port; ROOTS a file with the mesh's roots (PEM).
"""

import http.client
import http.server
import os
import signal
import socket
import ssl
import sys
import time

NAME, PORT = os.environ["NAME"], int(os.environ["PORT"])
PUBLIC_PORT = 20000
ANSWER = b"mesh-test\n"
PATIENCE_S = 90.0


class Hello(http.server.BaseHTTPRequestHandler):
    """Answers every GET with the same text."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)


def serve() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # the first process of a container has no default
    http.server.ThreadingHTTPServer(("", PORT), Hello).serve_forever()


def address() -> str:
    """Discovery: the address of an instance, from the mesh's DNS. A name that is not there yet is asked for again."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return socket.getaddrinfo(f"{NAME}.", PORT, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
        except socket.gaierror as error:
            if time.monotonic() > deadline:
                sys.exit(f"{NAME} has no address: {error}; does CoreDNS forward the mesh's domain to an agent?")
            time.sleep(0.5)


def get(host: str) -> bytes:
    connection = http.client.HTTPConnection(host, PORT, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read()
    finally:
        connection.close()


def allowed() -> None:
    """A caller that an intention allows is answered; the first try may come before its sidecar has heard of the server."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        host = address()
        try:
            if get(host) == ANSWER:
                print(f"{NAME} is at {host} and answers through the sidecars")
                return
            sys.exit(f"somebody else answers at {host}")
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > deadline:
                sys.exit(f"{NAME} at {host} does not answer: {error!r}")
        time.sleep(0.5)


def refused() -> None:
    """A caller that no intention allows gets no byte."""
    host = address()
    for _ in range(10):
        try:
            sys.exit(f"{NAME} at {host} answers a stranger: {get(host)!r}")
        except (OSError, http.client.HTTPException) as error:
            print(f"refused, as it should be: {error!r}")
        time.sleep(0.5)


def outside() -> None:
    """A caller without sidecar is not answered in plaintext, nor over TLS without a certificate; and the server is who it says."""
    host = address()
    try:
        sys.exit(f"{host} port {PORT} answers in plaintext: {get(host)!r}")
    except (OSError, http.client.HTTPException) as error:
        print(f"no plaintext, as it should be: {error!r}")
    context = ssl.create_default_context(cafile=os.environ["ROOTS"])
    context.check_hostname = False  # the mesh's names are SPIFFE IDs
    try:
        with socket.create_connection((host, PUBLIC_PORT), 5) as plain, context.wrap_socket(plain) as secure:
            names = [value for kind, value in secure.getpeercert()["subjectAltName"] if kind == "URI"]
            print(f"the server is {names}")
            if not names or not names[0].endswith(f"/svc/{NAME.partition('.')[0]}"):
                sys.exit(f"{host} is not {NAME}")
            secure.sendall(b"GET / HTTP/1.1\r\nHost: mesh-test\r\n\r\n")
            data = secure.recv(1)
    except (ssl.SSLError, ConnectionError) as error:
        if isinstance(error, ssl.SSLCertVerificationError):
            sys.exit(f"the server's certificate is not of the mesh: {error}")
        print(f"no certificate, no answer, as it should be: {error!r}")
        return
    if data:
        sys.exit("a caller without certificate was answered")
    print("no certificate, no answer, as it should be")


if __name__ == "__main__":
    {"serve": serve, "allowed": allowed, "refused": refused, "outside": outside}[sys.argv[1]]()
