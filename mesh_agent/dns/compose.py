"""From a plan to messages: which records fit, in which order, and cheap variety for answers that are sent many times.

Order is fairness: clients take the first address, and a small answer carries some instances only. `Wheel` cuts answers out of a random
permutation, each beginning elsewhere, so that over one turn every instance leads equally often; the permutation is drawn anew every few turns.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

from mesh_agent.dns import wire
from mesh_agent.dns.plan import Extra, Plan, Unit

_MOST_VARIANTS = 32
_VARIANT_BYTES = 32 * 1024
_TURNS_PER_DRAW = 8


class Frame(NamedTuple):
    """What an answer takes from the query: header flags, the question's bytes, the OPT record, and the bytes that it may fill."""

    flags: int
    question: bytes
    opt: bytes
    limit: int
    most_answers: int | None
    """`udp_answer_limit` where it applies."""
    signal_truncation: bool


class Chosen(NamedTuple):
    """Records of an answer, and whether some of its answer section had to be left out."""

    answers: list[bytes]
    additionals: list[bytes]
    truncated: bool


def choose(units: Sequence[Unit], start: int, room: int, most: int | None) -> Chosen:
    """As many units as fit into `room` bytes from offset `start` of the message on.

    When all answers fit, additional records are a bonus that may be cut (RFC 2181, 9); otherwise an answer without its address is worth
    little, so they come in pairs.
    """
    wanted = units if most is None else units[:most]
    size = sum(len(unit.answer) for unit in wanted)
    if size <= room:
        answers = [unit.answer for unit in wanted]
        additionals = _bonus(wanted, start, room - size)
    else:
        answers, additionals = _pairs(wanted, start, room)
    return Chosen(answers, additionals, len(answers) < len(units))


def _bonus(units: Sequence[Unit], start: int, room: int) -> list[bytes]:
    extras: dict[tuple[bytes, bytes], bytes] = {}
    texts: dict[tuple[bytes, bytes], bytes] = {}
    for unit in units:
        _place(unit, unit.addresses, start, extras)
        _place(unit, unit.texts, start, texts)
        start += len(unit.answer)
    found: list[bytes] = []
    for extra in (*extras.values(), *texts.values()):
        room -= len(extra)
        if room < 0:
            break
        found.append(extra)
    return found


def _pairs(units: Sequence[Unit], start: int, room: int) -> tuple[list[bytes], list[bytes]]:
    answers: list[bytes] = []
    extras: dict[tuple[bytes, bytes], bytes] = {}
    for unit in units:
        before = len(extras)
        cost = len(unit.answer) + _place(unit, unit.addresses, start, extras)
        if cost > room:
            return answers, list(extras.values())[:before]
        answers.append(unit.answer)
        room -= cost
        start += len(unit.answer)
    return answers, list(extras.values())


def _place(unit: Unit, additions: Sequence[Extra], at: int, extras: dict[tuple[bytes, bytes], bytes]) -> int:
    """Give the additions of a unit whose answer starts at `at` their owners, and add those that are not there yet; returns their bytes."""
    cost = 0
    for extra in additions:
        whole = extra.owner or unit.answer[unit.target_at :]
        if (whole, extra.body) in extras:
            continue
        owner = whole
        if not extra.owner and at + unit.target_at < wire.POINTER_LIMIT:
            owner = wire.pointer(at + unit.target_at)
        placed = extras[whole, extra.body] = owner + extra.body
        cost += len(placed)
    return cost


def message(plan: Plan, units: Sequence[Unit], frame: Frame) -> bytes:
    """The answer without its first two bytes, the id."""
    start = wire.HEADER_BYTES + len(frame.question)
    room = frame.limit - start - len(frame.opt) - sum(map(len, plan.authority))
    if plan.single:
        units = units[:1]
    answers, additionals, truncated = choose(units, start, room, frame.most_answers if plan.shuffled else None)
    flags = frame.flags | plan.rcode & 0xF | (wire.TC if truncated and frame.signal_truncation else 0)
    counts = (1, len(answers), len(plan.authority), len(additionals) + bool(frame.opt))
    head = wire.header(0, flags, counts)[2:]
    return b"".join((head, frame.question, *answers, *plan.authority, *additionals, frame.opt))


class Wheel:
    """An answer that can be sent again and again. `next()` is the hot path: usually one list look-up."""

    __slots__ = ("_at", "_constant", "_count", "_frame", "_plan", "_rng", "_turns", "_units", "_variants", "bytes")

    def __init__(self, plan: Plan, frame: Frame, rng: random.Random) -> None:
        self._plan = plan
        self._frame = frame
        self._rng = rng
        self._at = 0
        self._turns = 0
        self._units = list(plan.units)
        if plan.shuffled:
            rng.shuffle(self._units)
        first = message(plan, self._units, frame)
        most = min(len(self._units), _MOST_VARIANTS, _VARIANT_BYTES // len(first)) if plan.shuffled else 1
        self._count = max(1, most)
        self._variants = [first] + [b""] * (self._count - 1)
        self._constant = first if len(self._units) < 2 or not plan.shuffled else None
        self.bytes = len(first) * self._count
        """Upper estimate of what its variants will occupy."""

    def next(self) -> bytes:
        """The next answer, without its id."""
        if self._constant is not None:
            return self._constant
        at = self._at
        if at == self._count:
            at = self._turn()
        self._at = at + 1
        return self._variants[at] or self._build(at)

    def _turn(self) -> int:
        self._turns += 1
        if self._turns % _TURNS_PER_DRAW == 0:
            if len(self._units) <= 2 * _MOST_VARIANTS:
                self._rng.shuffle(self._units)
            else:  # too many to shuffle in passing: cut elsewhere
                cut = self._rng.randrange(len(self._units))
                self._units = self._units[cut:] + self._units[:cut]
            self._variants = [b""] * self._count
        return 0

    def _build(self, at: int) -> bytes:
        start = at * len(self._units) // self._count
        built = message(self._plan, self._units[start:] + self._units[:start], self._frame)
        self._variants[at] = built
        return built
