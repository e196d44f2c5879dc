"""A bus that many tests share, over the wire; each test leaves it as well as it found it."""

from collections.abc import Iterator

import pytest

from tests.live import LiveBus


@pytest.fixture(scope="module")
def shared_bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveBus]:
    with LiveBus(tmp_path_factory.mktemp("bus")) as bus:
        yield bus
