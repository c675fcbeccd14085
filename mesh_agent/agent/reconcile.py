"""Anti-entropy: what has to change in the catalog so that it says of this node what this node says of itself. Pure."""

from collections.abc import Mapping

from mesh_agent.catalog import keys
from mesh_agent.model import SERF_HEALTH, SERVERS


def diff(desired: Mapping[str, bytes], held: Mapping[str, bytes], node: str) -> tuple[dict[str, bytes], list[str]]:
    """(puts, deletes) that make `held` (the catalog's records of this node) equal to `desired`; what the servers keep themselves is left alone."""
    puts = {key: value for key, value in desired.items() if held.get(key) != value}
    theirs = (keys.check(node, SERF_HEALTH), keys.service(node, SERVERS))
    deletes = [key for key in held if key not in desired and key not in theirs and keys.owner(key) == node]
    return puts, deletes
