"""What the gossip machines want done: the shell performs packets and exchanges, and passes events on."""

from dataclasses import dataclass

from mesh_agent.gossip.member import Member

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class SendPacket:
    """Send these encoded messages in one datagram; `crc` when the receiver is known to understand it."""

    to: Address
    parts: tuple[bytes, ...]
    crc: bool = False


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request over a fresh connection, at most `timeout_s`; the answer comes back as `reply(token, ...)`."""

    to: Address
    request: bytes
    token: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class MemberJoined:
    """A member is alive that was unknown, failed or had left."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberUpdated:
    """A member changed its tags or address."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberFailed:
    """A member is dead without having left."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberLeft:
    """A member left gracefully, or was told off."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberReaped:
    """A member that failed or left long ago is forgotten."""

    member: Member


@dataclass(frozen=True, slots=True)
class UserEvent:
    """Somebody fired an event."""

    lamport: int
    name: str
    payload: bytes
    coalesce: bool


@dataclass(frozen=True, slots=True)
class Query:
    """Somebody asks; answer with `Pool.respond`."""

    lamport: int
    id: int
    name: str
    payload: bytes
    source: str
    reply_to: Address
    deadline: float
    relay: int


@dataclass(frozen=True, slots=True)
class QueryResponse:
    """An answer (or with `ack` just an acknowledgement) to a query of ours."""

    id: int
    lamport: int
    node: str
    payload: bytes
    ack: bool


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something for the log: `text`, and whether it deserves a warning."""

    text: str
    warning: bool = True


@dataclass(frozen=True, slots=True)
class KeyringChanged:
    """A member of the pool had our keyring changed: write it to disk, then call `Messenger.keyring_kept`, which answers the order."""

    order: Query


@dataclass(frozen=True, slots=True)
class Departed:
    """The pool has heard our goodbye, or had the time to."""


Event = MemberJoined | MemberUpdated | MemberFailed | MemberLeft | MemberReaped | UserEvent | Query
Effect = SendPacket | Exchange | Event | QueryResponse | KeyringChanged | Departed | Noticed
