"""Options and fixtures of the whole suite."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples each time, however slow the machine; `--hypothesis-profile=explore` looks for new ones.
_ALIKE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeatable", derandomize=True, **_ALIKE)
settings.register_profile("explore", max_examples=2000, print_blob=True, **_ALIKE)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest --update-golden` rewrites expected files; review the diff."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the expected files of golden tests")
    parser.addoption("--seeds", type=int, default=1, help="how many seeds each simulated scenario runs with")
    parser.addoption("--seed", type=int, help="run simulated scenarios with just this seed")


def pytest_configure(config: pytest.Config) -> None:
    """Whoever ends the run, by Ctrl-C or by SIGTERM, in the background too: fixtures clean up what they started."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """`golden(path, text)`: the text must be what the file holds, or becomes it with --update-golden."""

    def check(path: Path, text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.write_text(text)
        assert text == path.read_text(), (
            f"{path.name} differs; if that is meant, run pytest --update-golden and review the diff"
        )

    return check
