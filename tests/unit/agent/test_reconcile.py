"""Anti-entropy: differences, pieces of them, and what is on its way."""

from random import Random

import msgspec
import pytest

from mesh_agent.agent.reconcile import Written, diff, halves, parts
from mesh_agent.catalog import keys
from mesh_agent.model import Service

NODE, SERF, CONSUL = keys.node("n"), keys.check("n", "serfHealth"), keys.service("n", "consul")
WEB, CHECK = keys.service("n", "web"), keys.check("n", "c")


@pytest.mark.parametrize(
    ("desired", "held", "puts", "deletes"),
    [
        ({}, {}, [], []),
        ({NODE: b"1"}, {}, [NODE], []),
        ({NODE: b"1"}, {NODE: b"1"}, [], []),
        ({NODE: b"2"}, {NODE: b"1"}, [NODE], []),
        ({NODE: b"1"}, {NODE: b"1", WEB: b"{}", CHECK: b"{}"}, [], [WEB, CHECK]),
        ({NODE: b"1"}, {NODE: b"1", SERF: b"{}", CONSUL: b"{}"}, [], []),
        ({SERF: b"mine", CONSUL: b"mine"}, {SERF: b"{}"}, [], []),
        ({}, {keys.service("other", "web"): b"{}", keys.check("n2", "c"): b"{}"}, [], []),
    ],
)
def test_differences(desired: dict[str, bytes], held: dict[str, bytes], puts: list[str], deletes: list[str]) -> None:
    found, gone = diff(desired, held, "n")
    assert (list(found), gone) == (puts, deletes)


def _encoded(**fields: object) -> bytes:
    return msgspec.json.encode(Service(id="web", name="web", node="n", **fields))  # type: ignore[arg-type]


def test_tags_belong_to_the_catalog_if_the_service_says_so() -> None:
    held = {WEB: _encoded(tags=("theirs",), enable_tag_override=True)}
    assert diff({WEB: _encoded(tags=("ours",), enable_tag_override=True)}, held, "n") == ({}, [])
    puts, _ = diff({WEB: _encoded(tags=("ours",), port=2, enable_tag_override=True)}, held, "n")
    service = msgspec.json.decode(puts[WEB], type=Service)
    assert (service.tags, service.port) == (("theirs",), 2)
    puts, _ = diff({WEB: _encoded(tags=("ours",))}, held, "n")
    assert msgspec.json.decode(puts[WEB], type=Service).tags == ("ours",)


def test_pieces_are_bounded_and_together_the_whole() -> None:
    rng = Random(7)
    for _ in range(50):
        puts = {f"k{at}": b"x" * rng.choice((10, 2000, 100_000)) for at in range(rng.randrange(0, 1200))}
        deletes = [f"d{at}" for at in range(rng.randrange(0, 1200))]
        pieces = list(parts(puts, deletes))
        assert {key: value for piece, _ in pieces for key, value in piece.items()} == puts
        assert [key for _, gone in pieces for key in gone] == deletes
        for piece, gone in pieces:
            assert 0 < len(piece) + len(gone) <= 512
            assert len(piece) == 1 or sum(map(len, piece.values())) <= 256 * 1024


def test_a_piece_can_be_divided_down_to_one_record() -> None:
    def single(part: tuple[dict[str, bytes], list[str]]) -> list[str]:
        smaller = halves(part)
        return [*part[0], *part[1]] if not smaller else [key for each in smaller for key in single(each)]

    puts = {f"k{at}": b"" for at in range(5)}
    assert sorted(single((puts, ["a", "b", "c"]))) == sorted([*puts, "a", "b", "c"])
    assert halves(({"k": b""}, [])) == []


def test_what_was_written_counts_until_the_view_has_it_or_time_is_up() -> None:
    written = Written(patience_s=10.0)
    written.add(({"a": b"1"}, ["b"]), now=0.0)
    assert written.over({"b": b"0", "c": b"0"}, now=1.0) == {"a": b"1", "c": b"0"}
    assert written.over({"a": b"1", "b": b"0"}, now=2.0) == {"a": b"1"}
    assert written.over({"a": b"other"}, now=3.0) == {"a": b"other"}, "confirmed once: then the View counts"
    written.add(({"a": b"2"}, []), now=4.0)
    assert written.over({"a": b"other"}, now=14.1) == {"a": b"other"}, "never confirmed"
