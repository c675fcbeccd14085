"""Timings of a pool, after memberlist's profiles. Durations in seconds, sizes in bytes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """How a pool probes and spreads. `suspicion_mult` x log10(N) x `probe_interval_s` is the shortest suspicion, `suspicion_max_mult` x that the longest."""

    probe_interval_s: float = 1.0
    probe_timeout_s: float = 0.5
    indirect_checks: int = 3
    suspicion_mult: int = 4
    suspicion_max_mult: int = 6
    gossip_interval_s: float = 0.2
    gossip_nodes: int = 3
    gossip_to_dead_s: float = 30.0
    retransmit_mult: int = 4
    push_pull_interval_s: float = 30.0
    stream_timeout_s: float = 10.0
    awareness_max: int = 8
    dead_node_reclaim_s: float = 30.0
    packet_bytes: int = 1400
    leave_propagate_s: float = 1.0
    broadcast_timeout_s: float = 5.0
    reconnect_interval_s: float = 30.0
    reap_interval_s: float = 15.0
    failed_timeout_s: float = 72 * 3600.0
    tombstone_timeout_s: float = 24 * 3600.0
    recent_intent_s: float = 300.0
    event_buffer: int = 512
    user_event_bytes: int = 512
    query_bytes: int = 1024
    query_timeout_mult: int = 16
    compression: bool = True

    @classmethod
    def lan(cls) -> "GossipConfig":
        """One datacenter."""
        return cls()

    @classmethod
    def wan(cls) -> "GossipConfig":
        """The servers of all datacenters."""
        return cls(
            probe_interval_s=5.0,
            probe_timeout_s=3.0,
            suspicion_mult=6,
            gossip_interval_s=0.5,
            gossip_nodes=4,
            gossip_to_dead_s=60.0,
            push_pull_interval_s=60.0,
            stream_timeout_s=30.0,
            reconnect_interval_s=10.0,
        )

    @classmethod
    def local(cls) -> "GossipConfig":
        """One machine: tests."""
        return cls(
            probe_timeout_s=0.2,
            indirect_checks=1,
            suspicion_mult=3,
            gossip_interval_s=0.1,
            gossip_to_dead_s=15.0,
            retransmit_mult=2,
            push_pull_interval_s=15.0,
            stream_timeout_s=1.0,
        )
