"""Messages of the subscription stream (`mesh-subscribe/1`): how a View's records reach client agents and other datacenters.

A subscriber names topics; the publisher answers each with one `Update` that has `reset` set and every record of the topic, then with what changed, in
order. `Failed` says that the topic cannot be answered now (its datacenter is cut off); a later `Update` with `reset` takes that back. Heartbeats go
from publisher to subscriber, so that a silent stream is a broken one. Each frame is one msgpack-encoded message. Append only: this is a protocol.
"""

import msgspec

from mesh_agent.errors import RemoteProtocolError
from mesh_agent.model import Record, Topic

PROTOCOL = "mesh-subscribe/1"


class Subscribe(msgspec.Struct, frozen=True, tag="subscribe"):
    """Send me `topic` from now on."""

    topic: Topic


class Unsubscribe(msgspec.Struct, frozen=True, tag="unsubscribe"):
    """Stop sending `topic`."""

    topic: Topic


class Update(msgspec.Struct, frozen=True, tag="update"):
    """Records of `topic` that changed up to `index`; with `reset` they are all that there is."""

    topic: Topic
    index: int
    puts: list[Record]
    deletes: list[str]
    reset: bool = False


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """`topic` cannot be answered now; `text` says why."""

    topic: Topic
    text: str


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """The stream lives."""


Request = Subscribe | Unsubscribe
Event = Update | Failed | Heartbeat

_ENCODER = msgspec.msgpack.Encoder()
_REQUEST: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_EVENT: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)

HEARTBEAT = _ENCODER.encode(Heartbeat())


def encode(message: Request | Event) -> bytes:
    """One frame's payload."""
    return _ENCODER.encode(message)


def decode_request(payload: bytes) -> Request:
    """What a subscriber said; RemoteProtocolError if it is not a request."""
    try:
        return _REQUEST.decode(payload)
    except msgspec.MsgspecError as error:
        raise RemoteProtocolError(f"subscription request: {error}") from error


def decode_event(payload: bytes) -> Event:
    """What a publisher said; RemoteProtocolError if it is not an event."""
    try:
        return _EVENT.decode(payload)
    except msgspec.MsgspecError as error:
        raise RemoteProtocolError(f"subscription event: {error}") from error
