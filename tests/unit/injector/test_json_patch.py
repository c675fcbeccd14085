"""A difference, applied, gives what was wanted."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_agent.injector.json_patch import diff
from tests.support.json_patch import apply

KEYS = st.sampled_from(["name", "a", "b/c", "d~e", ""])
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["x", "y", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)
DOCUMENTS: Any = st.dictionaries(KEYS, VALUES, max_size=4)


@given(DOCUMENTS, DOCUMENTS)
def test_a_difference_leads_to_the_other(old: Any, new: Any) -> None:
    assert apply(old, diff(old, new)) == new


@given(DOCUMENTS)
def test_nothing_differs_from_itself(found: Any) -> None:
    assert diff(found, found) == []


NAMED = [
    ([{"name": "a"}], [{"name": "x"}, {"name": "a", "y": 1}], ["/0", "/1/y"]),
    ([{"name": "a"}, {"name": "b"}], [{"name": "a"}, {"name": "x"}, {"name": "b"}], ["/1"]),
    ([{"name": "a"}, {"name": "b"}], [{"name": "b"}, {"name": "a"}], [""]),
    ([{"name": "a"}, {"name": "b"}], [{"name": "b"}], [""]),
    ([1, 2], [1, 2, 3], [""]),
]


@pytest.mark.parametrize(("old", "new", "paths"), NAMED)
def test_named_things_are_matched_by_name(old: Any, new: Any, paths: list[str]) -> None:
    operations = diff({"list": old}, {"list": new})
    assert [operation["path"].removeprefix("/list") for operation in operations] == paths
    assert apply({"list": old}, operations) == {"list": new}
