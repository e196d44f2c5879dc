"""How a bus is can be told, whatever it is."""

import pytest

from engram_bus import Bus
from engram_bus.api.health import Health
from engram_bus.api.metrics import Metrics
from engram_bus.errors import StorageFull
from tests.damaged import FullDamagedLog


async def test_how_a_bus_is_can_be_told_without_what_its_contexts_and_locks_are() -> None:
    log = FullDamagedLog()
    bus = Bus(log)
    await bus.append("plan", agent_id="ann")
    log.damaged, log.is_full = (1,), True
    with pytest.raises(StorageFull):
        await bus.append("plan", agent_id="ann")
    status = Health(bus, version="1").status()
    assert (status.head, status.ready, status.reason, status.contexts) == (1, False, "LOG_DAMAGED", 0)
    told = Metrics(bus).text().decode()
    assert "engram_ready 0.0" in told
    assert "engram_contexts" not in told
    await bus.stop("the test is over")
