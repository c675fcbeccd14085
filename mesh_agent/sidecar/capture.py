"""The nftables rules of a pod: all its TCP goes through Envoy, or nowhere. Pure.

`inbound` and `outbound` redirect new connections: what comes in goes to Envoy's public listener, which speaks mutual TLS alone; what goes out goes to
its outbound listener. `guard` is the second lock: it drops every packet of TCP that leaves for the network without having been let out on purpose, so
also packets that connection tracking cannot place, which no redirection touches. What is let out carries a mark. Kubelet's probes come from the node
and from the pod's gateway: they, and nobody else, reach the ports that stand in for the real ones, and Envoy's readiness.
IPv6 is captured by the same rules; Envoy does not listen there, so it is refused. UDP is not captured.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from mesh_agent.errors import ConfigError

_MARK = "0x6d657368"
"""On connections that may leave as they are ("mesh")."""


@dataclass(frozen=True, slots=True)
class Capture:
    """What the rules depend on. `probers` are the addresses that kubelet's probes come from; `probes` are (port, real port)."""

    probers: tuple[str, ...]
    nameservers: tuple[str, ...] = ()
    probes: tuple[tuple[int, int], ...] = ()
    exclude_outbound_cidrs: tuple[str, ...] = ()
    exclude_outbound_ports: tuple[int, ...] = ()
    exclude_inbound_ports: tuple[int, ...] = ()
    envoy_uid: int = 5995
    envoy_gid: int = 5994
    public_port: int = 20000
    outbound_port: int = 15001
    ready_port: int = 20200


def rules(capture: Capture) -> str:
    """A ruleset for `nft -f`: one transaction that replaces what an earlier run loaded."""
    return f"""table inet mesh
delete table inet mesh
table inet mesh {{
  chain inbound {{
    type nat hook prerouting priority -100; policy accept;
    iifname "lo" return
{_block(_inbound(capture))}
    meta l4proto tcp redirect to :{capture.public_port}
  }}
  chain outbound {{
    type nat hook output priority -100; policy accept;
    meta l4proto != tcp return
    oifname "lo" return
{_block(_outbound(capture))}
    meta l4proto tcp redirect to :{capture.outbound_port}
  }}
  chain guard {{
    type filter hook output priority 0; policy accept;
    meta l4proto != tcp accept
    oifname "lo" accept
    ct status dnat accept
    ct mark {_MARK} accept
    ct direction reply accept
    counter drop
  }}
}}
"""


def _block(lines: Iterable[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)


def _inbound(capture: Capture) -> Iterable[str]:
    for family, addresses in _by_family(capture.probers):
        yield f"{family} saddr {_set(addresses)} tcp dport {capture.ready_port} return"
        for port, target in sorted(capture.probes):
            yield f"{family} saddr {_set(addresses)} tcp dport {port} redirect to :{target}"
    if capture.exclude_inbound_ports:
        yield f"tcp dport {_set(map(str, sorted(set(capture.exclude_inbound_ports))))} return"


def _outbound(capture: Capture) -> Iterable[str]:
    out = f"ct mark set {_MARK} return"
    yield f"meta skuid {capture.envoy_uid} meta skgid {capture.envoy_gid} {out}"
    for family, addresses in _by_family(capture.nameservers):  # large answers come over TCP
        yield f"{family} daddr {_set(addresses)} tcp dport 53 {out}"
    for family, networks in _by_family(capture.exclude_outbound_cidrs):
        yield f"{family} daddr {_set(networks)} {out}"
    if capture.exclude_outbound_ports:
        yield f"tcp dport {_set(map(str, sorted(set(capture.exclude_outbound_ports))))} {out}"


def _by_family(networks: Iterable[str]) -> Iterable[tuple[str, list[str]]]:
    """(`ip` or `ip6`, networks) without overlaps, which nft would refuse."""
    try:
        found = [ipaddress.ip_network(each, strict=False) for each in networks]
    except ValueError as error:
        raise ConfigError(f"a network in the capture's settings is wrong: {error}") from error
    four = ipaddress.collapse_addresses(each for each in found if isinstance(each, ipaddress.IPv4Network))
    six = ipaddress.collapse_addresses(each for each in found if isinstance(each, ipaddress.IPv6Network))
    for family, whole in (("ip", list(four)), ("ip6", list(six))):
        if whole:
            yield family, [_plain(each) for each in whole]


def _plain(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _set(elements: Iterable[str]) -> str:
    return "{ " + ", ".join(elements) + " }"


# where the facts come from


def gateway(routes: str) -> str:
    """The default gateway in the text of /proc/net/route; ConfigError if there is none."""
    for line in routes.splitlines()[1:]:
        columns = line.split()
        if len(columns) > 7 and columns[1] == columns[7] == "00000000" and int(columns[3], 16) & 2:
            return str(ipaddress.IPv4Address(int.from_bytes(bytes.fromhex(columns[2]), "little")))
    raise ConfigError(
        "the pod has no default route: its network is not set up (yet); look at the CNI plugin of the node"
    )


def nameservers(resolv_conf: str) -> tuple[str, ...]:
    """The name servers in the text of /etc/resolv.conf."""
    found = [line.split()[1] for line in resolv_conf.splitlines() if line.startswith("nameserver") and line.split()[1:]]
    return tuple(dict.fromkeys(each for each in found if _is_address(each)))


def _is_address(text: str) -> bool:
    try:
        return not ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False
