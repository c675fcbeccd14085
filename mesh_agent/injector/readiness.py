"""Whether the webhook can do its work. Pure."""

from dataclasses import dataclass


@dataclass(slots=True)
class Readiness:
    """What is there already; the runner writes it, `/readyz` reads it."""

    certificate_until: float = 0.0
    """Seconds since the epoch."""
    bundle_published: bool = False

    def missing(self, now: float) -> str:
        """What is not there yet, '' if nothing."""
        if self.certificate_until <= now:
            return "there is no valid certificate yet; the log says what the node's agent answers"
        if not self.bundle_published:
            return "the trust bundle is not in the webhook's configuration yet; the log says why"
        return ""
