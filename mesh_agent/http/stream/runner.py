"""A stream of frames over one transport."""

import asyncio
import logging
from collections import deque

from mesh_agent.errors import RemoteProtocolError, Unreachable
from mesh_agent.http.frames import FrameDecoder, encode_frame

log = logging.getLogger(__name__)

_MAX_WAITING_FRAMES = 256


class FrameStream:
    """Frames over one transport, for server and client: backpressure both ways, None at the end."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._decoder = FrameDecoder()
        self._frames: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._ended = False
        self._paused = False

    async def send(self, payload: bytes) -> None:
        """Send one frame; Unreachable when the peer is gone."""
        await self._writable.wait()
        if self._ended or self._transport.is_closing():
            raise Unreachable("the stream is closed")
        self._transport.write(encode_frame(payload))

    async def receive(self) -> bytes | None:
        """The next frame, or None at the end."""
        while not self._frames:
            if self._ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        frame = self._frames.popleft()
        if self._paused and len(self._frames) < _MAX_WAITING_FRAMES // 2:
            self._paused = False
            self._transport.resume_reading()
        return frame

    def close(self) -> None:
        """End the stream."""
        self._transport.close()
        self.ended()

    def feed(self, chunk: bytes) -> None:
        """Bytes that arrived (called by the protocol)."""
        try:
            self._frames += self._decoder.feed(chunk)
        except RemoteProtocolError as error:
            log.warning("a stream ends: %s", error)
            self.close()
        if len(self._frames) > _MAX_WAITING_FRAMES and not self._paused and not self._ended:
            self._paused = True
            self._transport.pause_reading()
        self._arrived.set()

    def ended(self) -> None:
        """The connection is lost (called by the protocol)."""
        self._ended = True
        self._arrived.set()
        self._writable.set()

    def pause_writing(self) -> None:
        """The peer is slow."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The peer caught up."""
        self._writable.set()
