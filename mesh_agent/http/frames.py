"""Length-prefixed frames on an upgraded connection: u32 big-endian length, then the payload. Pure."""

from mesh_agent.errors import RemoteProtocolError

MAX_FRAME_BYTES = 16 * 1024 * 1024


def encode_frame(payload: bytes) -> bytes:
    """One frame; ValueError if it is too large (a bug of ours)."""
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(payload)} bytes is larger than {MAX_FRAME_BYTES}")
    return len(payload).to_bytes(4, "big") + payload


class FrameDecoder:
    """Bytes in, whole frames out."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The frames that `chunk` completed; RemoteProtocolError when the peer announces too much."""
        self._buffer += chunk
        frames: list[bytes] = []
        while len(self._buffer) >= 4:
            length = int.from_bytes(self._buffer[:4], "big")
            if length > MAX_FRAME_BYTES:
                raise RemoteProtocolError(f"the peer announced a frame of {length} bytes")
            if len(self._buffer) < 4 + length:
                break
            frames.append(bytes(self._buffer[4 : 4 + length]))
            del self._buffer[: 4 + length]
        return frames
