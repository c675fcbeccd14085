"""Downloads: one file at a time, taken up where it broke off, and an error that says what else can be done."""

import http.client
import urllib.error
import urllib.request
from pathlib import Path

from mesh_agent.errors import Unreachable

_TIMEOUT_S = 30.0
_CHUNK = 1 << 20


def download(url: str, headers: dict[str, str], into: Path) -> None:
    """Fetch an address into a file. Part of it that is there from an earlier try is not fetched again."""
    if not url.startswith(("https://", "http://")):
        raise Unreachable(f"{url}: only http and https addresses can be fetched")
    have = into.stat().st_size if into.is_file() else 0
    asked = {**headers, "User-Agent": "mesh-artifacts", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=asked), timeout=_TIMEOUT_S) as answer:  # noqa: S310 (checked above)
            _save(answer, into, append=answer.status == http.client.PARTIAL_CONTENT)
    except urllib.error.HTTPError as error:
        error.close()
        if (
            error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have
        ):  # all of it is there; its checksum decides
            return
        raise Unreachable(f"{url}: {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise Unreachable(
            f"{url} cannot be reached ({reason}).\nName a mirror (`mesh artifacts fetch --help` lists the addresses), "
            "or build the artifacts from source where the Go module proxy can be reached: mesh artifacts build"
        ) from error


def _save(answer: http.client.HTTPResponse, into: Path, *, append: bool) -> None:
    expected = int(answer.headers.get("Content-Length") or -1)
    got = 0
    with into.open("ab" if append else "wb") as file:
        while chunk := answer.read(_CHUNK):
            got += file.write(chunk)
    if 0 <= expected != got:
        raise http.client.IncompleteRead(b"", expected - got)
