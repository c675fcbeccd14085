"""LZW as the gossip protocol uses it: 8-bit literals, least significant bit first, codes of 9 to 12 bits, CLEAR 256, END 257 (the GIF variant)."""

from mesh_agent.errors import RemoteProtocolError

_CLEAR, _END, _FIRST = 256, 257, 258
_MAX_CODE = 4095
_LITERALS = [bytes([value]) for value in range(256)] + [b"", b""]


class _Bits:
    """Collects codes into bytes."""

    def __init__(self) -> None:
        self.out = bytearray()
        self._held = 0
        self._count = 0

    def put(self, code: int, width: int) -> None:
        self._held |= code << self._count
        self._count += width
        while self._count >= 8:
            self.out.append(self._held & 0xFF)
            self._held >>= 8
            self._count -= 8

    def finish(self) -> bytes:
        if self._count:
            self.out.append(self._held & 0xFF)
        return bytes(self.out)


def compress(plain: bytes) -> bytes:
    """Encode; the dictionary starts over before code 4095 would be given out."""
    bits = _Bits()
    bits.put(_CLEAR, 9)
    table: dict[bytes, int] = {}
    last, width, held = _END, 9, b""
    for value in plain:
        longer = held + _LITERALS[value]
        if len(longer) == 1 or longer in table:
            held = longer
            continue
        bits.put(held[0] if len(held) == 1 else table[held], width)
        last += 1
        if last == 1 << width:
            width += 1
        if last == _MAX_CODE:
            bits.put(_CLEAR, width)
            table, last, width = {}, _END, 9
        else:
            table[longer] = last
        held = _LITERALS[value]
    if held:
        bits.put(held[0] if len(held) == 1 else table[held], width)
        last += 1
        if last == 1 << width:
            width += 1
        if last == _MAX_CODE:
            bits.put(_CLEAR, width)
            width = 9
    bits.put(_END, width)
    return bits.finish()


def decompress(packed: bytes, limit: int) -> bytes:
    """Decode at most `limit` bytes; RemoteProtocolError for junk or more than that."""
    out = bytearray()
    table = list(_LITERALS)
    width, held, count, previous = 9, 0, 0, b""
    for value in packed:
        held |= value << count
        count += 8
        while count >= width:
            code = held & ((1 << width) - 1)
            held >>= width
            count -= width
            if code == _CLEAR:
                table, width, previous = list(_LITERALS), 9, b""
                continue
            if code == _END:
                return bytes(out)
            previous = _entry(table, code, previous)
            out += previous
            if len(out) > limit:
                raise RemoteProtocolError(f"compressed message is larger than {limit} bytes")
            if len(table) + 1 > 1 << width and width < 12:
                width += 1
    return bytes(out)


def _entry(table: list[bytes], code: int, previous: bytes) -> bytes:
    """The bytes of `code`; the table learns one entry, a step behind the encoder."""
    if not previous:
        if code >= 256:
            raise RemoteProtocolError("compressed message begins with an unknown code")
        return table[code]
    if code > len(table):
        raise RemoteProtocolError("compressed message has an unknown code")
    entry = table[code] if code < len(table) else previous + previous[:1]
    if len(table) <= _MAX_CODE:
        table.append(previous + entry[:1])
    return entry
