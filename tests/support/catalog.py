"""A catalog in memory for tests of the front doors: real Views behind a real `CatalogReader`, filled by plain calls."""

import msgspec

from mesh_agent.catalog import keys
from mesh_agent.catalog.view import View
from mesh_agent.errors import NoPathToDatacenter
from mesh_agent.model import Check, Node, Record, Service, Status, Topic


class StaticCatalog:
    """Datacenters with full Views, the first one being the own.

    A datacenter in `hidden` is known but has no View until `ensure`d; one in `cut` cannot be reached, for the reason given.
    """

    def __init__(self, views: dict[str, View]) -> None:
        self.datacenter = next(iter(views))
        self.views = views
        self.hidden: set[str] = set()
        self.cut: dict[str, str] = {}

    def view(self, topic: Topic) -> View | None:
        if topic.datacenter in self.hidden or topic.datacenter in self.cut:
            return None
        return self.views.get(topic.datacenter)

    async def ensure(self, topic: Topic, timeout_s: float = 2.0) -> View:
        if topic.datacenter in self.cut:
            raise NoPathToDatacenter(self.cut[topic.datacenter])
        if topic.datacenter not in self.views:
            raise NoPathToDatacenter(f"No path to datacenter {topic.datacenter!r}: no server of it is known here")
        self.hidden.discard(topic.datacenter)
        return self.views[topic.datacenter]

    def datacenters(self) -> list[str]:
        return list(self.views)

    def known_leader(self) -> bool:
        return True


class ViewWriter:
    """Writes into a View what a store's watch would: one revision per call."""

    def __init__(self, datacenter: str) -> None:
        self.view = View(datacenter)
        self.view.load(1, [])
        self.revision = 1

    def put(self, *values: Node | Service | Check) -> None:
        """Commit these objects at the next revision."""
        self.revision += 1
        records = [Record(_key(value), msgspec.json.encode(value), self.revision, self.revision) for value in values]
        self.view.apply(self.revision, records, [])

    def delete(self, *values: Node | Service | Check) -> None:
        """Delete these objects at the next revision."""
        self.revision += 1
        self.view.apply(self.revision, [], [_key(value) for value in values])

    def instance(self, service: Service, node: Node, status: Status = Status.PASSING, *, check: str = "alive") -> None:
        """A service instance with its node and one check of its own, in one commit."""
        own = Check(id=f"{service.id}:{check}", node=node.name, status=status, service_id=service.id)
        self.put(node, service, own)


def _key(value: Node | Service | Check) -> str:
    if isinstance(value, Node):
        return keys.node(value.name)
    return keys.service(value.node, value.id) if isinstance(value, Service) else keys.check(value.node, value.id)
