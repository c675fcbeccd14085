"""From addresses back to names: a table over a whole datacenter, made when somebody asks and the catalog has changed since."""

from mesh_agent.catalog.view import View
from mesh_agent.dns.names import IPAddress, parse_address
from mesh_agent.model import Topic


class ReverseNames:
    """Names of the nodes and services at an address. Making the table costs a pass over the datacenter, keeping it costs its size."""

    def __init__(self, zone: str) -> None:
        self._zone = zone
        self._made_from: tuple[View, int] | None = None
        self._table: dict[bytes, list[str]] = {}

    def names(self, view: View, address: IPAddress) -> list[str]:
        """Complete names at `address`: nodes first, then services with an address of their own, as in Consul."""
        index = view.topic_index(Topic(view.datacenter, "all"))
        if self._made_from is None or self._made_from[0] is not view or self._made_from[1] != index:
            self._table = self._make(view)
            self._made_from = (view, index)
        return self._table.get(address.packed, [])

    def _make(self, view: View) -> dict[bytes, list[str]]:
        nodes: dict[bytes, dict[str, None]] = {}
        services: dict[bytes, dict[str, None]] = {}
        for node in view.nodes():
            packed = _packed(node.address)
            if packed:
                nodes.setdefault(packed, {})[f"{node.name}.node.{view.datacenter}.{self._zone}"] = None
            for service in view.services_of(node.name).values():
                own = _packed(service.address)
                if own:
                    services.setdefault(own, {})[f"{service.name}.service.{view.datacenter}.{self._zone}"] = None
        return {at: [*nodes.get(at, ()), *services.get(at, ())] for at in nodes | services}


def _packed(text: str) -> bytes:
    address = parse_address(text) if text else None
    return b"" if address is None else address.packed
