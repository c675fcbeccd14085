"""Whole answers, byte for byte and in words, against the files in this folder."""

from collections.abc import Callable
from pathlib import Path

import dns.message

from tests.unit.dns.conftest import World, fill

HERE = Path(__file__).parent


def test_answers(golden: Callable[[Path, str], None]) -> None:
    made = World()
    fill(made)
    made.responder = made.make(seed=1, service_ttl_s=5, node_ttl_s=10, soa_min_ttl_s=3)
    parts = []
    for line in (HERE / "questions.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        name, qtype, *options = line.split()
        sizes = [int(option[5:]) for option in options if option.startswith("edns=")]
        edns = {"use_edns": 0, "payload": sizes[0]} if sizes else {}
        query = dns.message.make_query(name, qtype, id=0x1234, **edns)  # type: ignore[arg-type]
        wire = made.responder.answer(query.to_wire(), tcp="tcp" in options)
        assert isinstance(wire, bytes), line
        parts.append(f"### {line}\n{wire.hex()}\n{dns.message.from_wire(wire)}\n")
    golden(HERE / "answers.txt", "\n".join(parts))
