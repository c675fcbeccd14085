"""Seeds of the simulation: every scenario takes one, and a failure says how to repeat it."""

from collections.abc import Generator

import pytest

_FIRST_SEED = 11


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`seed` is a parameter: one by default, more with --seeds, a certain one with --seed."""
    if "seed" not in metafunc.fixturenames:
        return
    one = metafunc.config.getoption("--seed")
    count = metafunc.config.getoption("--seeds")
    metafunc.parametrize("seed", [one] if one is not None else range(_FIRST_SEED, _FIRST_SEED + count))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say how to repeat a failure."""
    report = yield
    seed = getattr(item, "callspec", None) and item.callspec.params.get("seed")  # type: ignore[attr-defined]
    if report.failed and seed is not None:
        path, _, name = item.nodeid.partition("::")
        report.sections.append(("repeat with", f"pytest {path} --seed {seed} -k {name.partition('[')[0]}"))
    return report
