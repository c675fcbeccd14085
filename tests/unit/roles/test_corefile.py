"""One server block of ours in a Corefile, and nothing of it lost."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).parents[3]


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("corefile", TOP / "roles/coredns/files/corefile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


merge = _load().merge
KUBEADM = """.:53 {
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
    }
    forward . /etc/resolv.conf
}
example.org:53, other.example {
    forward . 192.0.2.1 # mesh:53 { is only a comment
}
"""
DOMAINS = ["mesh", "consul"]


def test_the_block_is_added_at_the_end_and_nothing_is_lost() -> None:
    merged = merge(KUBEADM, ["errors", "forward . 10.0.0.1"], DOMAINS)
    assert merged.startswith(KUBEADM)
    assert merged[len(KUBEADM) :].splitlines()[1:-1] == [
        "mesh:53 consul:53 {",
        "    errors",
        "    forward . 10.0.0.1",
        "}",
    ]


def test_a_second_merge_changes_nothing() -> None:
    once = merge(KUBEADM, ["errors"], DOMAINS)
    assert merge(once, ["errors"], DOMAINS) == once


@pytest.mark.parametrize("tail", ["", "tail.example {\n}\n", "# a comment"])
def test_a_changed_block_is_replaced_where_it_was(tail: str) -> None:
    once = merge(KUBEADM, ["forward . 10.0.0.1"], DOMAINS) + tail
    twice = merge(once, ["forward . 10.0.0.2"], ["mesh"])
    assert twice == once.replace("10.0.0.1", "10.0.0.2").replace("mesh:53 consul:53", "mesh:53")


def test_a_corefile_without_a_last_newline() -> None:
    assert merge(". {\n}", ["errors"], ["mesh"]).startswith(". {\n}\n# BEGIN mesh")


@pytest.mark.parametrize("header", ["mesh", "mesh:53", "mesh.:53", "dns://MESH:53", "example.org, consul:53"])
def test_somebody_elses_block_for_a_domain_is_an_error(header: str) -> None:
    with pytest.raises(SystemExit, match="has a server block for"):
        merge(KUBEADM + header + " {\n    errors\n}\n", ["errors"], DOMAINS)


def test_a_torn_block_is_an_error() -> None:
    torn = merge(KUBEADM, ["errors"], DOMAINS).replace("# END mesh", "")
    with pytest.raises(SystemExit, match="repair"):
        merge(torn, ["errors"], DOMAINS)
