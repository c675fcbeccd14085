"""Vivaldi network coordinates: an estimate of the round trip between any two nodes, learnt from the acks of probes. Pure.

Source: Dabek et al., "Vivaldi" (2004), with serf's constants, height, adjustment window, median filter and gravity. Times are seconds.
"""

import math
import random
from collections import deque
from dataclasses import dataclass
from typing import Any

from mesh_agent.errors import RemoteProtocolError
from mesh_agent.gossip.fields import pack, unpack

_DIMENSIONS = 8
_ERROR_MAX, _CE, _CC = 1.5, 0.25, 0.25
_WINDOW, _FILTER = 20, 3
_HEIGHT_MIN, _GRAVITY_RHO, _ZERO = 10.0e-6, 150.0, 1.0e-6
_MAX_RTT_S = 10.0
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A position; `error` is dimensionless, everything else in seconds."""

    vec: tuple[float, ...] = (0.0,) * _DIMENSIONS
    error: float = _ERROR_MAX
    adjustment: float = 0.0
    height: float = _HEIGHT_MIN

    def distance_s(self, other: "Coordinate") -> float:
        """Estimated round trip."""
        raw = self.raw_distance_s(other)
        adjusted = raw + self.adjustment + other.adjustment
        return adjusted if adjusted > 0 else raw

    def raw_distance_s(self, other: "Coordinate") -> float:
        """The estimate without adjustments."""
        return math.dist(self.vec, other.vec) + self.height + other.height

    def is_valid(self) -> bool:
        """Right number of dimensions, all finite."""
        return len(self.vec) == _DIMENSIONS and all(
            map(math.isfinite, (*self.vec, self.error, self.adjustment, self.height))
        )

    def to_fields(self) -> dict[str, Any]:
        """As serf writes it."""
        return {"Vec": list(self.vec), "Error": self.error, "Adjustment": self.adjustment, "Height": self.height}


def encode_payload(coordinate: Coordinate) -> bytes:
    """The payload of an ack."""
    return bytes([_VERSION]) + pack(coordinate.to_fields())


def decode_payload(payload: bytes) -> Coordinate | None:
    """The coordinate of an ack; None without one, of another version, or of junk."""
    if not payload or payload[0] != _VERSION:
        return None
    try:
        fields = unpack(payload[1:])
        vec = tuple(float(value) for value in fields["Vec"])
        found = Coordinate(vec, float(fields["Error"]), float(fields["Adjustment"]), float(fields["Height"]))
    except (KeyError, TypeError, ValueError, RemoteProtocolError):
        return None
    return found if found.is_valid() else None


class Vivaldi:
    """This node's coordinate, and what it learns from."""

    def __init__(self, rng: random.Random) -> None:
        self.coordinate = Coordinate()
        self.peers: dict[str, Coordinate] = {}
        self._rng = rng
        self._samples: dict[str, deque[float]] = {}
        self._adjustments: deque[float] = deque([0.0] * _WINDOW, maxlen=_WINDOW)

    def forget(self, node: str) -> None:
        """Drop what is known of a node."""
        self.peers.pop(node, None)
        self._samples.pop(node, None)

    def observe(self, node: str, other: Coordinate, rtt_s: float) -> None:
        """Learn from one direct round trip; nonsense is ignored."""
        if not other.is_valid() or not 0 < rtt_s <= _MAX_RTT_S:
            return
        self.peers[node] = other
        samples = self._samples.setdefault(node, deque(maxlen=_FILTER))
        samples.append(rtt_s)
        rtt_s = sorted(samples)[len(samples) // 2]
        self._update(other, rtt_s)
        self._adjust(other, rtt_s)
        self._gravitate()
        if not self.coordinate.is_valid():
            self.coordinate = Coordinate()
            self._adjustments = deque([0.0] * _WINDOW, maxlen=_WINDOW)

    def _update(self, other: Coordinate, rtt_s: float) -> None:
        own = self.coordinate
        distance = own.distance_s(other)
        wrongness = abs(distance - rtt_s) / rtt_s
        total = max(own.error + other.error, _ZERO)
        weight = own.error / total
        error = min(_ERROR_MAX, _CE * weight * wrongness + own.error * (1 - _CE * weight))
        self.coordinate = self._moved(own, other, _CC * weight * (rtt_s - distance), error)

    def _moved(self, own: Coordinate, other: Coordinate, force: float, error: float) -> Coordinate:
        length = math.dist(own.vec, other.vec)
        if length > _ZERO:
            unit = [(a - b) / length for a, b in zip(own.vec, other.vec, strict=True)]
            height = max(_HEIGHT_MIN, (own.height + other.height) * force / length + own.height)
        else:
            drawn = [self._rng.random() - 0.5 for _ in range(_DIMENSIONS)]
            size = math.hypot(*drawn) or 1.0
            unit, height = [value / size for value in drawn], own.height
        vec = tuple(a + force * direction for a, direction in zip(own.vec, unit, strict=True))
        return Coordinate(vec, error, own.adjustment, height)

    def _adjust(self, other: Coordinate, rtt_s: float) -> None:
        own = self.coordinate
        self._adjustments.append(rtt_s - own.raw_distance_s(other))
        self.coordinate = Coordinate(own.vec, own.error, sum(self._adjustments) / (2.0 * _WINDOW), own.height)

    def _gravitate(self) -> None:
        own = self.coordinate
        origin = Coordinate()
        force = -((own.distance_s(origin) / _GRAVITY_RHO) ** 2)
        self.coordinate = self._moved(own, origin, force, own.error)
