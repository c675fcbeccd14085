"""Maps of fields in msgpack as memberlist and serf write it, and the typed access to them. Pure.

It is the old dialect: text and bytes are both "raw" (no str8, no bin), maps have sorted keys, unknown keys are ignored, missing ones are zero.
"""

import ipaddress
from typing import Any

import msgpack

from mesh_agent.errors import RemoteProtocolError

_MAX_LIST = 8192
_U16, _U32 = 0xFFFF, 0xFFFFFFFF


def pack(fields: dict[str, Any]) -> bytes:
    """A map with sorted keys; values are int, str, bytes, bool, float, None, lists and maps of them."""
    return msgpack.packb({key: fields[key] for key in sorted(fields)}, use_bin_type=False)  # type: ignore[no-any-return]


def unpack(packed: bytes, *, longest_list: int = _MAX_LIST) -> dict[str, Any]:
    """The map at the start of `packed`; trailing bytes are ignored, as peers do. Lists are made before they are read, so their length has a limit."""
    try:
        value = msgpack.unpackb(packed, raw=True, strict_map_key=False, max_array_len=min(longest_list, len(packed)))
    except msgpack.ExtraData as more:
        value = more.unpacked
    except Exception as error:  # msgpack raises several unrelated types for junk
        raise RemoteProtocolError(f"broken msgpack: {error}") from error
    return _named(value)


def _named(value: Any) -> dict[str, Any]:  # whatever msgpack holds
    if not isinstance(value, dict):
        raise RemoteProtocolError("expected a msgpack map")
    return {key.decode("latin-1") if isinstance(key, bytes) else str(key): item for key, item in value.items()}


class Incomplete(Exception):
    """A stream message is not there in full yet."""


class MapReader:
    """Reads maps one after another; Incomplete when the next one is not there in full."""

    def __init__(self, raw: bytes) -> None:
        self._unpacker = msgpack.Unpacker(
            raw=True,
            strict_map_key=False,
            max_buffer_size=max(1, len(raw)),
            max_array_len=_MAX_LIST,
            max_map_len=_MAX_LIST,
        )
        self._unpacker.feed(raw)

    def map(self) -> dict[str, Any]:
        """The next map."""
        try:
            value = self._unpacker.unpack()
        except msgpack.OutOfData as error:
            raise Incomplete from error
        except Exception as error:  # msgpack raises several unrelated types for junk
            raise RemoteProtocolError(f"broken msgpack: {error}") from error
        return _named(value)

    @property
    def position(self) -> int:
        """How many bytes have been read."""
        return int(self._unpacker.tell())


def number(fields: dict[str, Any], key: str, largest: int = _U32) -> int:
    """An integer field from 0 to `largest`, 0 if it is missing. What is out of range could not be sent on."""
    value = fields.get(key) or 0
    if not isinstance(value, int) or not 0 <= value <= largest:
        raise RemoteProtocolError(f"{key} is not a number from 0 to {largest}")
    return int(value)


def port(fields: dict[str, Any], key: str) -> int:
    """A port."""
    return number(fields, key, _U16)


def text(fields: dict[str, Any], key: str) -> str:
    """A text field, '' if it is missing."""
    value = fields.get(key) or b""
    if not isinstance(value, bytes | str):
        raise RemoteProtocolError(f"{key} is not text")
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def raw(fields: dict[str, Any], key: str) -> bytes:
    """A bytes field, b'' if it is missing."""
    value = fields.get(key) or b""
    if isinstance(value, list) and all(isinstance(item, int) and 0 <= item < 256 for item in value):
        value = bytes(value)
    if not isinstance(value, bytes):
        raise RemoteProtocolError(f"{key} is not bytes")
    return value


def items(fields: dict[str, Any], key: str) -> list[Any]:
    """A list field, [] if it is missing."""
    value = fields.get(key) or []
    if not isinstance(value, list):
        raise RemoteProtocolError(f"{key} is not a list")
    return value


def to_text(value: Any) -> str:  # a msgpack scalar
    """A text that stands in a list, or a key."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def address_to_bytes(address: str) -> bytes:
    """4 or 16 bytes of an IP address; b'' for none."""
    if not address:
        return b""
    if ":" not in address:
        return bytes(int(part) for part in address.split("."))
    return ipaddress.ip_address(address).packed


def address_from_bytes(packed: bytes) -> str:
    """An IP address; IPv4-mapped ones come out as IPv4."""
    if len(packed) == 16 and packed[:12] == b"\0" * 10 + b"\xff\xff":
        packed = packed[12:]
    if len(packed) == 4:
        return f"{packed[0]}.{packed[1]}.{packed[2]}.{packed[3]}"
    if len(packed) == 16:
        return str(ipaddress.IPv6Address(packed))
    if packed:
        raise RemoteProtocolError(f"an address of {len(packed)} bytes")
    return ""
