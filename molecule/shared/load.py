"""Requests, one after the other, half of them on a connection that is kept, until a file appears: load.py URL STOP_FILE. Prints what came of them as JSON."""

import http.client
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

URL, STOP = urlsplit(sys.argv[1]), Path(sys.argv[2])
LIMIT_S = 1800.0


def ask(connection: http.client.HTTPConnection) -> int:
    """Status of one request."""
    connection.request("GET", URL.path or "/")
    answer = connection.getresponse()
    answer.read()
    return answer.status


def ask_again(connection: http.client.HTTPConnection) -> int:
    """The same on a connection that may have been closed while it was idle: every client tries again then (RFC 9110, 9.2.2)."""
    try:
        return ask(connection)
    except (http.client.RemoteDisconnected, ConnectionResetError):
        connection.close()
        return ask(connection)


def main() -> None:
    """Until told to stop."""
    good, failed = 0, []
    kept = http.client.HTTPConnection(URL.hostname or "", URL.port, timeout=10)
    until = time.monotonic() + LIMIT_S
    while not STOP.exists() and time.monotonic() < until:
        fresh = http.client.HTTPConnection(URL.hostname or "", URL.port, timeout=10)
        for connection, how in ((kept, ask_again), (fresh, ask)):
            began = time.monotonic()
            try:
                outcome = repr(how(connection))
            except (OSError, http.client.HTTPException) as error:
                outcome = repr(error)
                connection.close()
            if outcome == "200":
                good += 1
            else:
                failed.append(
                    f"{time.strftime('%H:%M:%S')} {how.__name__}: {outcome} after {time.monotonic() - began:.2f} s"
                )
        fresh.close()
        time.sleep(0.02)
    print(json.dumps({"good": good, "failed": failed}))  # noqa: T201


main()
