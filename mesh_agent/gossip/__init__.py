"""Who is alive: SWIM with Lifeguard, serf's members, events and queries; wire-compatible with memberlist and serf."""

from mesh_agent.gossip.config import GossipConfig
from mesh_agent.gossip.effects import (
    Event,
    MemberFailed,
    MemberJoined,
    MemberLeft,
    MemberReaped,
    MemberUpdated,
    Query,
    UserEvent,
)
from mesh_agent.gossip.keyring import Keyring, decode_key
from mesh_agent.gossip.member import Member, MemberStatus

__all__ = [
    "Event",
    "GossipConfig",
    "Keyring",
    "Member",
    "MemberFailed",
    "MemberJoined",
    "MemberLeft",
    "MemberReaped",
    "MemberStatus",
    "MemberUpdated",
    "Query",
    "UserEvent",
    "decode_key",
]
