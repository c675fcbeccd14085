"""SPIFFE IDs: `spiffe://<trust domain>/<path>`. Source: the SPIFFE-ID standard, sections 2.1 to 2.4.

A trust domain holds a-z 0-9 . - _ ; a path segment a-z A-Z 0-9 . - _ and is neither empty, `.` nor `..`; the whole is at most 2048 bytes, the trust
domain at most 255. There is no port, user, query or fragment, and nothing is percent-decoded.
"""

import re
from typing import NamedTuple
from urllib.parse import quote

from mesh_agent.errors import InvalidRequest

_SCHEME = "spiffe://"
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}\Z")
_SEGMENT = re.compile(r"[a-zA-Z0-9._-]+\Z")
_MAX_BYTES = 2048


class SpiffeId(NamedTuple):
    """A parsed SPIFFE ID; `path` is empty for the trust domain itself."""

    trust_domain: str
    path: tuple[str, ...] = ()

    def __str__(self) -> str:
        return _SCHEME + "/".join((self.trust_domain, *self.path))

    @classmethod
    def parse(cls, text: str) -> "SpiffeId":
        """Read a SPIFFE ID to the letter of the standard; InvalidRequest says what is wrong with it."""
        if len(text.encode()) > _MAX_BYTES:
            raise InvalidRequest(f"a SPIFFE ID is at most {_MAX_BYTES} bytes long")
        if not text.lower().startswith(_SCHEME):
            raise InvalidRequest(f"{text!r} is not a SPIFFE ID: it must begin with {_SCHEME}")
        trust_domain, *path = text[len(_SCHEME) :].split("/")
        found = cls(trust_domain, tuple(path))
        found.check()
        return found

    def check(self) -> None:
        """InvalidRequest if a part is not allowed."""
        if not _TRUST_DOMAIN.match(self.trust_domain):
            raise InvalidRequest(f"trust domain {self.trust_domain!r} may only hold a-z, 0-9, '.', '-' and '_'")
        for segment in self.path:
            if not _SEGMENT.match(segment) or segment in (".", ".."):
                raise InvalidRequest(
                    f"path segment {segment!r} of a SPIFFE ID may only hold letters, digits, '.', '-' and '_'"
                )


def service_id(trust_domain: str, datacenter: str, service: str) -> SpiffeId:
    """Identity of a service in a datacenter, in Consul's form."""
    return _checked(SpiffeId(trust_domain, ("ns", "default", "dc", datacenter, "svc", _segment(service))))


def agent_id(trust_domain: str, datacenter: str, node: str, *, server: bool) -> SpiffeId:
    """Identity of an agent."""
    role = "server" if server else "client"
    return _checked(SpiffeId(trust_domain, ("agent", role, "dc", datacenter, "id", _segment(node))))


def server_datacenter(found: SpiffeId) -> str | None:
    """The datacenter whose server this is, or None for everybody else."""
    return found.path[3] if len(found.path) == 6 and found.path[:3] == ("agent", "server", "dc") else None


def agent_of(found: SpiffeId) -> tuple[str, str] | None:
    """(datacenter, node) if this is an agent, server or client."""
    path = found.path
    is_agent = (
        len(path) == 6
        and path[0] == "agent"
        and path[1] in ("server", "client")
        and path[2] == "dc"
        and path[4] == "id"
    )
    return (path[3], path[5]) if is_agent else None


def service_of(found: SpiffeId) -> tuple[str, str] | None:
    """(datacenter, service) if this is a service."""
    path = found.path
    is_service = len(path) == 6 and path[0] == "ns" and path[2] == "dc" and path[4] == "svc"
    return (path[3], path[5]) if is_service else None


def _segment(name: str) -> str:
    """A name as a path segment: what the standard does not allow is written as `_` and its hex code."""
    if _SEGMENT.match(name) and name not in (".", ".."):
        return name
    return quote(name, safe="").replace("%", "_")


def _checked(found: SpiffeId) -> SpiffeId:
    found.check()
    return found
