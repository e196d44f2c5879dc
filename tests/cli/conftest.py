"""One bus, served by `engram serve`, that all tests of the command line speak to; each in contexts of its own."""

from collections.abc import Iterator

import pytest

from tests.process import BusProcess


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BusProcess]:
    with BusProcess(tmp_path_factory.mktemp("served") / "data") as bus:
        yield bus


@pytest.fixture
def context(request: pytest.FixtureRequest) -> str:
    """A context that no other test uses."""
    return f"of/{request.node.name}"[:200]
