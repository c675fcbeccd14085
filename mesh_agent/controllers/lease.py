"""Which replica works: a Lease of the cluster, held by one and taken over when it has not been renewed for its duration. Pure.

Nobody trusts another machine's clock: a holder counts as gone when its lease has looked the same for its whole duration by the own monotonic clock. A holder
that cannot renew stops well before anybody may think so.
"""

from datetime import UTC, datetime

from mesh_agent.controllers.objects import Json

_STOP_AFTER = 0.6
"""Part of the duration after which a holder that could not renew stops."""


class Election:
    """What one replica knows of the lease, and what it may do."""

    def __init__(self, name: str, namespace: str, identity: str, duration_s: float) -> None:
        self.path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self.name = name
        self.holder = ""
        self._namespace, self._identity, self._duration_s = namespace, identity, duration_s
        self._seen: tuple[str, str, int] | None = None
        self._seen_at = 0.0
        self._renewed_at: float | None = None

    @property
    def leading(self) -> bool:
        """Whether the lease was ours at the last look."""
        return self._renewed_at is not None

    def must_stop(self, now: float) -> bool:
        """Whether a holder has been without news for so long that it must not act any more."""
        return self._renewed_at is not None and now - self._renewed_at > self._duration_s * _STOP_AFTER

    def next(self, lease: Json | None, now: float, wall: float) -> Json | None:
        """The lease to write now (a new one if there is none), or None while another replica holds it."""
        if lease is None:
            return self._made({"metadata": {"name": self.name, "namespace": self._namespace}}, wall, transitions=0)
        spec = lease.get("spec") or {}
        self.holder = spec.get("holderIdentity") or ""
        transitions = int(spec.get("leaseTransitions") or 0)
        if self.holder == self._identity:
            return self._made(lease, wall, transitions=transitions)
        self._renewed_at = None
        look = (self.holder, str(spec.get("renewTime")), transitions)
        if look != self._seen:
            self._seen, self._seen_at = look, now
        held_s = float(spec.get("leaseDurationSeconds") or self._duration_s)
        if self.holder and now - self._seen_at < held_s:
            return None
        return self._made(lease, wall, transitions=transitions + 1)

    def written(self, now: float) -> None:
        """The lease that `next` gave was written; `now` is from before the write."""
        self.holder, self._renewed_at = self._identity, now

    def lost(self) -> None:
        """The lease could not be written, because somebody else was faster or time is up."""
        self._renewed_at = None

    def released(self, lease: Json) -> Json:
        """The lease given back, so that another replica need not wait."""
        return {**lease, "spec": {**(lease.get("spec") or {}), "holderIdentity": "", "leaseDurationSeconds": 1}}

    def is_ours(self, lease: Json) -> bool:
        """Whether this replica holds the lease."""
        return bool((lease.get("spec") or {}).get("holderIdentity") == self._identity)

    def _made(self, lease: Json, wall: float, *, transitions: int) -> Json:
        now = datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = lease.get("spec") or {}
        kept = spec.get("acquireTime") if spec.get("holderIdentity") == self._identity else None
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            **lease,
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": max(1, int(self._duration_s)),
                "acquireTime": kept or now,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }
