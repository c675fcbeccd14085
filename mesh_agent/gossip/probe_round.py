"""Whom to probe next: everybody once in each round, in an order of this node's own (SWIM, section 4.3). Pure."""

from mesh_agent.gossip.core import Core
from mesh_agent.gossip.node import Node


class ProbeRound:
    """A shuffled list of names and a place in it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._order: list[str] = []
        self._turn = 0

    def add(self, name: str) -> None:
        """At a random place of the round, so that a crowd that joins at once is not probed in the same order by all."""
        self._order.insert(self._core.rng.randint(0, len(self._order)), name)

    def next(self) -> Node | None:
        """The next node that is not gone; None if there is nobody but us."""
        for _ in range(len(self._order) + 1):
            if self._turn >= len(self._order):
                self._order = [
                    name for name, node in self._core.nodes.items() if not node.gone or name == self._core.name
                ]
                self._core.rng.shuffle(self._order)
                self._turn = 0
                if not self._order:
                    return None
            name = self._order[self._turn]
            self._turn += 1
            node = self._core.nodes.get(name)
            if node is not None and name != self._core.name and not node.gone:
                return node
        return None
