"""What the webhook's configuration says about whom the API server believes (`caBundle`). Pure.

Replicas learn of another trust bundle at different times: kubelet brings the file within a minute and a half. So that they do not undo each other's work, a
root that is missing is added at once (this replica's certificate may need it), and one that is not believed here is only taken away after it has been there
for longer than any replica needs to hear of it. A root that is removed from the mesh is believed for that much longer, here alone, and comes back at no time.
"""

import base64
import binascii
import re
from collections.abc import Mapping

from mesh_agent.errors import ConfigError

_PATIENCE_S = 120.0
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class Bundles:
    """Compares what is there with what is believed, again and again."""

    def __init__(self, patience_s: float = _PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._strange: dict[str, float] = {}
        """Roots that are there and not believed here, and since when."""

    def changes(self, roots: str, found: Mapping[str, str], now: float) -> dict[str, str]:
        """New bundles (base64) by webhook, of those that must change; `found` is what each has. ConfigError if `roots` (PEM) holds none."""
        own = _split(roots)
        if not own:
            raise ConfigError("the trust bundle holds no certificate (PEM)")
        held = {name: _split(_decoded(bundle)) for name, bundle in found.items()}
        strange = {root for each in held.values() for root in each} - set(own)
        self._strange = {root: self._strange.get(root, now) for root in strange}
        wanted = {name: [*own, *(root for root in each if self._is_kept(root, now))] for name, each in held.items()}
        return {name: _encoded(each) for name, each in wanted.items() if set(each) != set(held[name])}

    def _is_kept(self, root: str, now: float) -> bool:
        return root in self._strange and now - self._strange[root] < self._patience_s


def _split(text: str) -> list[str]:
    return list(dict.fromkeys(_PEM.findall(text)))


def _decoded(bundle: str) -> str:
    try:
        return base64.b64decode(bundle, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _encoded(roots: list[str]) -> str:
    return base64.b64encode("".join(f"{root}\n" for root in roots).encode()).decode()
