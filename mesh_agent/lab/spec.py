"""What a lab consists of, read from an ordinary Ansible inventory: hosts in groups `dc_<name>`, each with a `mesh_lab_address`.

Further variables of a host: `mesh_lab_routes`, networks behind it (of its pods), which the routers of all datacenters send to it;
`mesh_lab_boot: false`, a host that `mesh lab up` leaves alone until it is named.
"""

import ipaddress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from mesh_agent.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Host:
    """One host; `number` is its place in the inventory."""

    name: str
    datacenter: str
    address: str
    number: int
    routes: tuple[str, ...] = ()
    boot: bool = True

    @property
    def gateway(self) -> str:
        """Its datacenter's router: the first address of its /24."""
        return str(ipaddress.ip_interface(f"{self.address}/24").network[1])


@dataclass(frozen=True, slots=True)
class Link:
    """A WAN link between the routers of two datacenters; `number` gives its addresses."""

    one: str
    two: str
    number: int

    @property
    def name(self) -> str:
        """As commands call it."""
        return f"{self.one}-{self.two}"

    @property
    def addresses(self) -> tuple[str, str]:
        """Both ends of a /30."""
        return f"10.255.{self.number}.1", f"10.255.{self.number}.2"

    @property
    def device(self) -> str:
        """Name of the tunnel device in both routers."""
        return f"wan{self.number}"


@dataclass(frozen=True, slots=True)
class Spec:
    """Hosts and links of a lab."""

    hosts: tuple[Host, ...]

    @property
    def datacenters(self) -> list[str]:
        """Names, sorted."""
        return sorted({host.datacenter for host in self.hosts})

    @property
    def links(self) -> list[Link]:
        """Every pair of datacenters is linked."""
        return [Link(one, two, at) for at, (one, two) in enumerate(combinations(self.datacenters, 2))]

    def network(self, datacenter: str) -> str:
        """The /24 of a datacenter."""
        address = next(host.address for host in self.hosts if host.datacenter == datacenter)
        return str(ipaddress.ip_interface(f"{address}/24").network)

    def networks(self, datacenter: str) -> list[str]:
        """What other datacenters reach through this one: its /24 and the networks behind its hosts."""
        behind = [route for host in self.hosts if host.datacenter == datacenter for route in host.routes]
        return [self.network(datacenter), *behind]

    def host(self, name: str) -> Host:
        """One host; ConfigError for an unknown one."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise ConfigError(
            f"host {name!r} is not in the lab's inventory; it has {', '.join(h.name for h in self.hosts)}"
        )

    def link(self, one: str, two: str) -> Link:
        """The link between two datacenters; ConfigError if there is none."""
        for link in self.links:
            if {link.one, link.two} == {one, two}:
                return link
        raise ConfigError(f"no link between {one!r} and {two!r}; datacenters are {', '.join(self.datacenters)}")


def read(inventory: Path) -> Spec:
    """Read `hosts.yml` of an inventory directory, or the file itself; ConfigError says what is wrong with it."""
    path = inventory / "hosts.yml" if inventory.is_dir() else inventory
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the lab's inventory with --inventory") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {error}") from error
    found: dict[str, dict[str, Any]] = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected an Ansible inventory with groups")
    for name, group in tree.items():
        _walk(name, group, (), found)
    hosts = [_host(path, name, facts, number) for number, (name, facts) in enumerate(sorted(found.items()))]
    if not hosts:
        raise ConfigError(f"{path}: no host in a group dc_<name>")
    if len({host.address for host in hosts}) < len(hosts):
        raise ConfigError(f"{path}: two hosts have the same mesh_lab_address")
    return Spec(tuple(hosts))


def _walk(name: str, group: Any, above: tuple[str, ...], found: dict[str, dict[str, Any]]) -> None:
    """Collect hosts with their variables and the datacenter groups that they are in."""
    if not isinstance(group, dict):
        return
    path = (*above, name)
    for host, variables in (group.get("hosts") or {}).items():
        facts = found.setdefault(host, {})
        facts.update(variables or {})
        for each in path:
            if each.startswith("dc_"):
                facts["__datacenter"] = each.removeprefix("dc_")
    for child, below in (group.get("children") or {}).items():
        _walk(child, below, path, found)


def _host(path: Path, name: str, facts: dict[str, Any], number: int) -> Host:
    address, datacenter = facts.get("mesh_lab_address"), facts.get("__datacenter")
    if not address or not datacenter:
        raise ConfigError(f"{path}: host {name!r} needs a mesh_lab_address and a group dc_<name>")
    try:
        ipaddress.IPv4Address(address)
    except ValueError as error:
        raise ConfigError(f"{path}: host {name!r}: mesh_lab_address {error}") from error
    try:
        routes = tuple(str(ipaddress.IPv4Network(route)) for route in facts.get("mesh_lab_routes") or ())
    except ValueError as error:
        raise ConfigError(f"{path}: host {name!r}: mesh_lab_routes {error}") from error
    return Host(name, datacenter, address, number, routes, bool(facts.get("mesh_lab_boot", True)))
