"""What a forwarder must decide: where to ask, and what counts as an answer. Pure."""

from typing import NamedTuple

from mesh_agent.dns import wire
from mesh_agent.dns.names import parse_address
from mesh_agent.errors import ConfigError


class Server(NamedTuple):
    """A recursor."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_recursor(text: str) -> Server:
    """`1.1.1.1`, `1.1.1.1:53`, `2606:4700::1111` or `[2606:4700::1111]:53`. ConfigError for anything else."""
    host, port = text, "53"
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or ("53" if bracket else "")
    elif text.count(":") == 1:
        host, port = text.split(":")
    if parse_address(host) is None or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"dns.recursors: {text!r} is not an address like 192.0.2.1, 192.0.2.1:53 or [2001:db8::1]:53")
    return Server(host, int(port))


def is_answer_to(data: bytes, query: bytes) -> bool:
    """Whether `data` answers `query`: same id, QR set, and the same question if it has one (an error may come without)."""
    if len(data) < wire.HEADER_BYTES or data[:2] != query[:2] or not data[2] & 0x80:
        return False
    if data[4:6] == b"\0\0":
        return data[3] & 0xF != wire.NOERROR
    end = query.index(0, wire.HEADER_BYTES) + 5
    return data[wire.HEADER_BYTES : end].lower() == query[wire.HEADER_BYTES : end].lower()


def is_truncated(answer: bytes) -> bool:
    """TC."""
    return bool(answer[2] & wire.TC >> 8)


def is_final(answer: bytes) -> bool:
    """Whether the next recursor need not be asked: NOERROR and NXDOMAIN are answers, SERVFAIL, REFUSED and the like are not."""
    return answer[3] & 0xF in (wire.NOERROR, wire.NXDOMAIN)
