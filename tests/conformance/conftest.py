"""All exchanges that were chosen, played once: many at a time, against one bus. The tests only look at what came."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import uvloop

from engram_bus.conformance.runner import Outcome, Runner
from engram_bus.conformance.vectors import Exchange, load_refusals
from tests.conformance.stages import staged_bus

Play = tuple[Exchange, str]
Key = tuple[str, str, str]


def key(play: Play) -> Key:
    """A name for it that can be looked up."""
    exchange, transport = play
    return transport, exchange.file, exchange.name


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mapping[Key, Outcome]:
    """What became of each exchange that a test asks for, over its transport."""
    plays: list[Play] = [
        item.callspec.params["play"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and "outcomes" in item.fixturenames and hasattr(item, "callspec")
    ]
    return _played(plays, tmp_path_factory.mktemp("conformance") / "data")


def _played(plays: list[Play], data: Path) -> Mapping[Key, Outcome]:
    found: dict[Key, Outcome] = {}

    def tell(outcome: Outcome) -> None:
        found[outcome.transport, outcome.file, outcome.exchange] = outcome

    with staged_bus(data) as bus:
        uvloop.run(Runner(bus.usual, load_refusals(), stages=bus).play_these(plays, tell))
    return found
