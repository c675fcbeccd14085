"""The gossip pools of an agent: tags, keyrings on disk, who is let in, and coming back to where one was."""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from mesh_agent import __version__
from mesh_agent.app.paths import Paths, write_atomically
from mesh_agent.clock import Clock
from mesh_agent.config import AgentConfig
from mesh_agent.errors import ConfigError, InvalidRequest, JoinFailed
from mesh_agent.gossip import Event, GossipConfig, Keyring, Member, MemberStatus, decode_key
from mesh_agent.gossip.runner import Pool
from mesh_agent.telemetry import Metrics

log = logging.getLogger(__name__)
_SAVE_EVERY_S = 5.0


def tags(config: AgentConfig, node_id: str) -> dict[str, str]:
    """What this agent tells of itself in the LAN pool."""
    found = {
        "role": "consul" if config.server else "node",
        "dc": config.datacenter,
        "segment": "",
        "id": node_id,
        "vsn": "2",
        "vsn_min": "2",
        "vsn_max": "3",
        "build": f"{__version__}:mesh",
        "acls": "0",
    }
    if config.server:
        found |= {"port": str(config.ports.server)}
        if config.ports.serf_wan >= 0:
            found["wan_join_port"] = str(config.ports.serf_wan)
    return found


def accept_lan(config: AgentConfig) -> Callable[[Member], str | None]:
    """Consul's rules: an agent of another datacenter has no business here; a plain serf agent may be a member."""

    def accept(member: Member) -> str | None:
        role, dc = member.tags.get("role"), member.tags.get("dc", "")
        if role in ("node", "consul") and dc != config.datacenter:
            return f"it is part of datacenter {dc!r}, not {config.datacenter!r}"
        if member.tags.get("segment"):
            return f"it is part of segment {member.tags['segment']!r}"
        return None

    return accept


def accept_wan(member: Member) -> str | None:
    """Only servers are members of the WAN pool."""
    if member.tags.get("role") != "consul" or not member.tags.get("dc") or not member.tags.get("port", "").isdigit():
        return "it is not a server"
    return None


def keyring(path: Path, key: str, setting: str) -> Keyring | None:
    """The keyring on disk (which rotation has moved on), or a new one of the configured key; None without encryption."""
    if not key:
        return None
    try:
        if path.exists():
            return Keyring.from_json(path.read_text(encoding="utf-8"))
        ring = Keyring([decode_key(key)])
    except InvalidRequest as error:
        raise ConfigError(f"{setting}: {error}") from error
    write_atomically(path, ring.to_json().encode())
    return ring


class JoinedPool:
    """A pool that joins, comes back after a restart to the members it knew, and keeps its keyring on disk."""

    def __init__(
        self,
        config: AgentConfig,
        paths: Paths,
        *,
        wan: bool,
        tags: dict[str, str],
        clock: Clock,
        rng: random.Random,
        metrics: Metrics,
        on_event: Callable[[Event], None],
    ) -> None:
        self.wan = wan
        self._retry_join = config.retry_join_wan if wan else config.retry_join
        self._retry_s = config.retry_interval_s
        self._peers = paths.wan_peers if wan else paths.lan_peers
        self._on_event = on_event
        self._changed = asyncio.Event()
        self._alone = asyncio.Event()
        ring_path = paths.wan_keyring if wan else paths.lan_keyring
        key = (config.encrypt_wan or config.encrypt) if wan else config.encrypt
        self.pool = Pool(
            GossipConfig.wan() if wan else GossipConfig.lan(),
            f"{config.node_name}.{config.datacenter}" if wan else config.node_name,
            bind=config.bind_addr,
            port=config.ports.serf_wan if wan else config.ports.serf_lan,
            advertise=config.advertised_wan if wan else config.advertised,
            tags=tags,
            keyring=keyring(ring_path, key, "encrypt_wan" if wan else "encrypt"),
            clock=clock,
            rng=rng,
            on_event=self._event,
            accept=accept_wan if wan else accept_lan(config),
            on_keyring=lambda ring: write_atomically(ring_path, ring.to_json().encode()),
            metrics=metrics,
        )

    def _event(self, event: Event) -> None:
        self._changed.set()
        self._on_event(event)

    @property
    def others_alive(self) -> bool:
        """Whether anybody else is there."""
        return any(m.status is MemberStatus.ALIVE and m.name != self.pool.local.name for m in self.pool.members)

    async def keep_joined(self) -> None:
        """Join at start, and again whenever nobody else is there, for ever."""
        failing = False
        while True:
            targets = [*self._retry_join, *self._saved()]
            if targets and not self.others_alive and not self.pool.left:
                try:
                    await self.pool.join(dict.fromkeys(targets))
                    failing = False
                except JoinFailed as error:
                    level = logging.DEBUG if failing else logging.WARNING
                    name = "WAN" if self.wan else "LAN"
                    log.log(level, "the %s pool could not be joined, trying again: %s", name, error)
                    failing = True
            await asyncio.sleep(self._retry_s)

    def _saved(self) -> list[str]:
        try:
            return msgspec.json.decode(self._peers.read_bytes(), type=list[str])
        except (OSError, msgspec.MsgspecError):
            return []

    async def keep_saved(self) -> None:
        """Remember who was there, for the next start."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            self.save()
            await asyncio.sleep(_SAVE_EVERY_S)

    def save(self) -> None:
        """Write the addresses of everybody who has not left."""
        own = self.pool.local.name
        known = [_address(m) for m in self.pool.members if m.name != own and m.status is not MemberStatus.LEFT]
        if known and not self.pool.left:
            try:
                write_atomically(self._peers, msgspec.json.encode(known))
            except OSError as error:  # a full disk: without the file a restart joins by `retry_join` alone
                log.error("the addresses of the members cannot be saved: %s", error)

    def forget(self) -> None:
        """After a farewell there is nowhere to come back to."""
        self._peers.unlink(missing_ok=True)


def _address(member: Member) -> str:
    host = f"[{member.address}]" if ":" in member.address else member.address
    return f"{host}:{member.port}"


def alive_servers(members: Iterable[Member]) -> list[Member]:
    """Living servers."""
    return [m for m in members if m.status is MemberStatus.ALIVE and m.tags.get("role") == "consul"]
