"""Anti-entropy: differences, pieces of them, and what is on its way."""

from random import Random

import msgspec
import pytest

from mesh_agent.agent.reconcile import Written, diff, halves, parts
from mesh_agent.catalog import keys
from mesh_agent.model import Record, Service

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


def _held(**revisions: int) -> dict[str, Record]:
    return {key: Record(key, str(revision).encode(), 1, revision) for key, revision in revisions.items()}


def test_what_was_written_counts_until_the_view_has_it_or_time_is_up() -> None:
    written = Written(patience_s=10.0)
    written.add(({"a": b"5"}, ["b"]), {"b": 3}, now=0.0)
    assert written.over(_held(b=3, c=4), now=1.0) == {"a": b"5", "c": b"4"}
    assert written.over(_held(a=5, b=3), now=2.0) == {"a": b"5"}
    assert written.over(_held(a=6), now=3.0) == {"a": b"6"}, "confirmed once: then the View counts"
    written.add(({"a": b"7"}, []), {"a": 6}, now=4.0)
    assert written.over(_held(a=6), now=14.1) == {"a": b"6"}, "never confirmed"


def test_who_writes_after_us_is_seen_although_our_own_write_never_was() -> None:
    """A server fails the checks of a node that it holds for dead; the View may tell of that and of our write before it in one step."""
    written = Written(patience_s=10.0)
    failed = {CHECK: Record(CHECK, b"critical", 1, 4)}
    written.add(({CHECK: b"passing"}, []), {CHECK: 4}, now=0.0)
    assert written.over(failed, now=0.1) == {CHECK: b"passing"}
    again = {CHECK: Record(CHECK, b"critical", 1, 6)}
    assert written.over(again, now=0.2) == {CHECK: b"critical"}
    assert diff({CHECK: b"passing"}, written.over(again, now=0.3), "n") == ({CHECK: b"passing"}, [])
