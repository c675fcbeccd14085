"""A member as the pool's users see it."""

from dataclasses import dataclass, field
from enum import StrEnum


class MemberStatus(StrEnum):
    """Serf's view of a member."""

    ALIVE = "alive"
    LEAVING = "leaving"
    LEFT = "left"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Member:
    """One agent in a pool; `versions` are protocol min, max, current and delegate min, max, current."""

    name: str
    address: str
    port: int
    tags: dict[str, str] = field(default_factory=dict)
    status: MemberStatus = MemberStatus.ALIVE
    versions: tuple[int, ...] = (1, 5, 2, 2, 5, 4)
