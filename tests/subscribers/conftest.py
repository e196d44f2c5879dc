"""The ways to read a stream, and a bus for tests that need nothing special of it."""

from collections.abc import Iterator

import pytest

from tests.live import LiveBus
from tests.subscribers.streams import TRANSPORTS, Transport


@pytest.fixture(params=TRANSPORTS.values(), ids=list(TRANSPORTS))
def transport(request: pytest.FixtureRequest) -> Transport:
    chosen: Transport = request.param
    return chosen


@pytest.fixture
def bus() -> Iterator[LiveBus]:
    with LiveBus() as bus:
        yield bus
