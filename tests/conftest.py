"""What all tests share: one backend for async ones, one way for Hypothesis to search."""

import os
import signal

import pytest
from hypothesis import settings

# A loaded machine is slow, which is not a failure. HYPOTHESIS_PROFILE=long searches further (make check-long).
settings.register_profile("quick", deadline=None, max_examples=50)
settings.register_profile("long", deadline=None, max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write what came of a story into its file (tests/stories)")


@pytest.fixture(scope="session", autouse=True)
def no_signal_is_ignored() -> None:
    """Whoever started the tests may have told them to (nohup, a shell's &), and what they start would inherit that."""
    for number, otherwise in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, otherwise)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
