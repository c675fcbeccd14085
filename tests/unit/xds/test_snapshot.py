"""Versions are content, tables are shared, references resolve."""

import pytest

from mesh_agent.errors import LocalProtocolError
from mesh_agent.xds.naming import CLUSTER, ENDPOINTS
from mesh_agent.xds.snapshot import Resource, Snapshot, Table, merged, version_of


def table(**versions: str) -> Table:
    return Table(Resource(name, version, b"") for name, version in versions.items())


def test_a_version_is_a_hash_of_the_content() -> None:
    assert version_of(b"a") == version_of(b"a") != version_of(b"b")
    assert version_of(b"") == "e4a6a0577479b2b4"  # blake2b with an 8 byte digest: equal on every machine


def test_equal_tables_are_one_object() -> None:
    first = table(a="1", b="2")
    assert merged(first, table(a="1", b="2").resources.values()) is first
    assert merged(first, table(a="1").resources.values()) is not first
    assert merged(first, table(a="1", b="3").resources.values()) is not first


def test_a_change_names_what_is_new_different_and_gone() -> None:
    assert table(a="1", b="2", d="1").since(table(a="1", b="1", c="1")) == (("b", "d"), ("c",))


def test_a_reference_to_nothing_is_a_bug_of_ours() -> None:
    tables = {CLUSTER: table(a="1")}
    Snapshot(tables, frozenset({(CLUSTER, "a")})).check()
    with pytest.raises(LocalProtocolError, match="ClusterLoadAssignment"):
        Snapshot(tables, frozenset({(CLUSTER, "a"), (ENDPOINTS, "a")})).check()
