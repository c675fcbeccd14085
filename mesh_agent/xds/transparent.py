"""Transparent proxying: which services a captured application may call, and at which addresses it means them. Pure.

The application dials an address; the listener `outbound` finds out whose address that is. Only services that an intention lets it call have an
address here, in every datacenter: what it dials otherwise is refused. So a stale address never gets plaintext.

One chain stands for one service, and a matcher (port, then address, both exact) leads to it. An instance that comes or goes changes the matcher alone,
which Envoy takes over without closing anything; an intention that goes takes the chain, and with it the open connections.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.extensions.matching.common_inputs.network.v3.network_inputs_pb2 import (
    DestinationIPInput,
    DestinationPortInput,
)
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import StringValue
from xds.type.matcher.v3.matcher_pb2 import Matcher

from mesh_agent.catalog.intentions import ANY, matching
from mesh_agent.model import Action, Instance, Intention, Proxy, Service
from mesh_agent.xds.clusters import protocol_of
from mesh_agent.xds.policy import extension

TRANSPARENT = "transparent"
OUTBOUND_PORT = 15001
PASSTHROUGH = "passthrough"
"""Chain and cluster of addresses outside the mesh that may be called as they are."""
REFUSED = "refused"
"""No chain has this name: a connection that is matched to it is closed."""

_IN_TAGS = ("lan", "wan", "lan_ipv4", "wan_ipv4")


class Endpoint(NamedTuple):
    """Where an application connects to."""

    address: str
    port: int


class Permitted(NamedTuple):
    """Names of services that may be called; with `others` also every service that is not in `refused`."""

    named: frozenset[str]
    others: bool
    refused: frozenset[str]

    def of(self, services: Iterable[str]) -> frozenset[str]:
        """All of them; `services` are the services that exist."""
        return self.named | (frozenset(services) - self.refused) if self.others else self.named


def is_transparent(proxy: Service) -> bool:
    """Whether this proxy's application is captured."""
    return proxy.proxy is not None and proxy.proxy.mode == TRANSPARENT


def permitted(intentions: Iterable[Intention], source: str, *, default_allow: bool) -> Permitted:
    """What `source` may call."""
    verdicts: dict[str, bool] = {}
    others: bool | None = None
    for each in matching(intentions, source=source):  # the most specific first
        allowed = each.action is Action.ALLOW
        if each.destination != ANY:
            verdicts.setdefault(each.destination, allowed)
        elif others is None:
            others = allowed
    return Permitted(
        frozenset(name for name, allowed in verdicts.items() if allowed),
        default_allow if others is None else others,
        frozenset(name for name, allowed in verdicts.items() if not allowed),
    )


def addresses(instances: Iterable[Instance]) -> frozenset[Endpoint]:
    """Every address under which the instances of a service are known: their own or their node's, and the virtual ones."""
    found: set[Endpoint] = set()
    for each in instances:
        service, node = each.service, each.node
        tagged = {key: (at.address, at.port or service.port) for key, at in service.tagged_addresses.items()}
        if not service.address:
            tagged = {
                key: (node.tagged_addresses[key], service.port) for key in _IN_TAGS if key in node.tagged_addresses
            } | tagged
        for address, port in ((each.address, service.port), *tagged.values()):
            if port and _is_ipv4(address):
                found.add(Endpoint(address, port))
    return frozenset(found)


def passthrough(proxy: Proxy) -> frozenset[Endpoint]:
    """`passthrough` of a proxy's config: `address:port` texts; what is none is left out."""
    found = set()
    listed = proxy.config.get("passthrough")
    for each in listed if isinstance(listed, list | tuple) else ():
        address, _, port = str(each).rpartition(":")
        if _is_ipv4(address) and port.isdecimal() and 0 < int(port) < 65536:
            found.add(Endpoint(address, int(port)))
    return frozenset(found)


def _is_ipv4(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).version == 4
    except ValueError:
        return False


def common_protocol(instances: Iterable[Instance], default: str = "") -> str:
    """What all mesh endpoints of a service speak; `tcp` where they differ, which is right for any of them."""
    fallback = {"protocol": default or "tcp"}
    found = {protocol_of(fallback | each.service.proxy.config) for each in instances if each.service.proxy is not None}
    return found.pop() if len(found) == 1 else "tcp" if found else protocol_of(fallback)


def table(chains: Mapping[str, frozenset[Endpoint]]) -> dict[int, dict[str, str]]:
    """Port -> address -> chain. An address that two services claim belongs to the first of them by name."""
    found: dict[int, dict[str, str]] = {}
    for chain in sorted(chains):
        for address, port in sorted(chains[chain]):
            found.setdefault(port, {}).setdefault(address, chain)
    return {port: found[port] for port in sorted(found)}


def matcher(ports: Mapping[int, Mapping[str, str]]) -> Matcher:
    """The listener's matcher. Each level says what happens without a match: Envoy does not go back to try another branch."""
    found = Matcher(on_no_match=_to(REFUSED))
    if not ports:
        return found
    found.matcher_tree.input.CopyFrom(extension("port", DestinationPortInput()))
    to = {chain: _to(chain) for by_address in ports.values() for chain in by_address.values()}
    for port, by_address in ports.items():
        inner = found.matcher_tree.exact_match_map.map[str(port)].matcher
        inner.on_no_match.CopyFrom(_to(REFUSED))
        inner.matcher_tree.input.CopyFrom(extension("address", DestinationIPInput()))
        by_exact_address = inner.matcher_tree.exact_match_map.map
        for address, chain in by_address.items():
            by_exact_address[address].CopyFrom(to[chain])
    return found


def passthrough_cluster() -> Cluster:
    """To where the application wanted to go, as it is."""
    return Cluster(
        name=PASSTHROUGH,
        type=Cluster.DiscoveryType.ORIGINAL_DST,
        connect_timeout=Duration(seconds=5),
        lb_policy=Cluster.LbPolicy.CLUSTER_PROVIDED,
    )


def _to(chain: str) -> Matcher.OnMatch:
    return Matcher.OnMatch(action=extension("chain", StringValue(value=chain)))
