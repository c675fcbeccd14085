"""Kubelet's probes of captured ports: each goes to a port of its own, which the pod's rules lead to the real one. Pure.

Kubelet speaks plain HTTP, TCP or gRPC; the captured port speaks mutual TLS alone. One port from `first` on stands for each probed port, whatever the probe.
"""

from collections.abc import Iterator
from typing import Any

from mesh_agent.errors import InvalidRequest
from mesh_agent.kubernetes.annotations import port_of

_PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
_HOOKS = ("postStart", "preStop")
_HANDLERS = ("httpGet", "tcpSocket", "grpc")
Container = dict[str, Any]  # a container as JSON


class ProbePorts:
    """Which port stands for which: filled by `redirect`, told to the init container by `text`."""

    def __init__(self, first: int, exempt: frozenset[int], text: str = "") -> None:
        """`exempt` ports are not captured, their probes stay; `text` is what an earlier pass made of it."""
        self._first = first
        self._exempt = exempt
        self._targets: dict[int, int] = {}  # port that stands -> real port
        for pair in text.split(",") if text else ():
            port, _, target = pair.partition(":")
            self._targets[int(port)] = int(target)

    def stand_in(self, target: int) -> int:
        """The port to probe instead of `target`."""
        if target in self._exempt or target in self._targets:
            return target
        for port, known in self._targets.items():
            if known == target:
                return port
        port = self._first + len(self._targets)
        if port > 65535:
            raise InvalidRequest("this pod probes more ports than the mesh can redirect; probe fewer")
        self._targets[port] = target
        return port

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports in use."""
        return tuple(self._targets)

    def text(self) -> str:
        """`port:target` pairs with commas between them: MESH_PROBES."""
        return ",".join(f"{port}:{target}" for port, target in sorted(self._targets.items()))


def redirect(container: Container, ports: ProbePorts) -> Container:
    """The container with its probes, and the HTTP requests of its lifecycle hooks, sent to the ports that stand in."""
    found = dict(container)
    for name in _PROBES:
        if found.get(name):
            found[name] = _redirected(found[name], container, ports)
    hooks = found.get("lifecycle")
    if hooks:
        found["lifecycle"] = {
            name: _redirected(hook, container, ports) if hook and name in _HOOKS else hook
            for name, hook in hooks.items()
        }
    return found


def _redirected(probe: dict[str, Any], container: Container, ports: ProbePorts) -> dict[str, Any]:
    found = dict(probe)
    for kind in _HANDLERS:
        handler = found.get(kind)
        if handler and not handler.get("host"):  # a probe of another host is no affair of this pod's rules
            target = port_number(handler.get("port"), container)
            found[kind] = {**handler, "port": ports.stand_in(target)}
    return found


def port_number(port: Any, container: Container) -> int:  # what the manifest says: a number, or a name
    """The number of a port that is given by number or by name; InvalidRequest if the container has no port of that name."""
    if isinstance(port, int):
        return port
    for each in container.get("ports") or ():
        if each.get("name") == port:
            return int(each["containerPort"])
    if isinstance(port, str) and port_of(port):
        return port_of(port)
    raise InvalidRequest(
        f"container {container.get('name')!r} probes port {port!r}, but has no port of that name; "
        "add it to the container's ports or probe by number"
    )


def declared_ports(containers: list[Container]) -> Iterator[tuple[str, int]]:
    """(container, port) of every TCP port that containers declare; others are not captured."""
    for container in containers:
        for port in container.get("ports") or ():
            if port.get("protocol", "TCP") == "TCP":
                yield container["name"], int(port["containerPort"])
