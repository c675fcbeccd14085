"""Which intention decides."""

import pytest

from mesh_agent.catalog.intentions import decide, matching
from mesh_agent.model import Action, Intention

ALLOW, DENY = Action.ALLOW, Action.DENY


def intentions(*pairs: tuple[str, str, Action]) -> list[Intention]:
    return [Intention(source=source, destination=destination, action=action) for source, destination, action in pairs]


EXACT = ("web", "api", DENY)
ANY_SOURCE = ("*", "api", ALLOW)
ANY_DESTINATION = ("web", "*", DENY)
ANY = ("*", "*", ALLOW)


@pytest.mark.parametrize(
    ("given", "allowed", "decided_by"),
    [
        ([EXACT, ANY_SOURCE, ANY_DESTINATION, ANY], False, EXACT),
        ([ANY, ANY_DESTINATION, ANY_SOURCE], True, ANY_SOURCE),
        ([ANY, ANY_DESTINATION], False, ANY_DESTINATION),
        ([ANY], True, ANY),
        ([("other", "api", ALLOW), ("web", "other", ALLOW)], False, None),
    ],
)
def test_the_destination_counts_before_the_source(
    given: list[tuple[str, str, Action]], allowed: bool, decided_by: tuple[str, str, Action] | None
) -> None:
    found = decide(intentions(*given), "web", "api", default_allow=False)
    assert found.allowed is allowed
    assert found.intention == (intentions(decided_by)[0] if decided_by else None)


@pytest.mark.parametrize("default_allow", [True, False])
def test_without_an_intention_the_default_decides(default_allow: bool) -> None:
    found = decide([], "web", "api", default_allow=default_allow)
    assert (found.allowed, found.intention) == (default_allow, None)


def test_matching_gives_them_in_the_order_in_which_they_decide() -> None:
    given = intentions(ANY, ANY_DESTINATION, ("db", "api", ALLOW), EXACT, ANY_SOURCE, ("web", "db", ALLOW))
    found = [(each.source, each.destination) for each in matching(given, destination="api")]
    assert found == [("db", "api"), ("web", "api"), ("*", "api"), ("web", "*"), ("*", "*")]
    found = [(each.source, each.destination) for each in matching(given, source="web")]
    assert found == [("web", "api"), ("web", "db"), ("*", "api"), ("web", "*"), ("*", "*")]
