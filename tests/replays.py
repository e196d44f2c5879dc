"""Recorded sessions to replay: the two that are shipped, and a large one where the shared data lies beside us."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

import engram_bus.cli
from engram_client import Client, WorkUnit

SHIPPED = Path(engram_bus.cli.__file__).parent / "recordings"


class Recorded(NamedTuple):
    """A file, its lines, and the field that names a step's context."""

    file: Path
    context_field: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(line) for line in self.file.read_bytes().splitlines()]


FLEET = Recorded(SHIPPED / "fleet.jsonl", "trace")
AIRLINE = Recorded(SHIPPED / "airline.jsonl", "trace")
ENTIRE = Recorded(Path(__file__).parents[2] / "shared" / "data" / "entire_dev.jsonl", "session")

not_shipped = pytest.mark.skipif(not ENTIRE.file.exists(), reason="data set is not shipped")
RECORDINGS = [
    pytest.param(FLEET, id="fleet"),
    pytest.param(AIRLINE, id="airline"),
    pytest.param(ENTIRE, id="entire_dev", marks=not_shipped),
]


async def listed(url: str, prefix: str) -> AsyncIterator[WorkUnit]:
    """All units of all contexts that begin with `prefix`, as they are listed; versions are checked on the way."""
    async with Client(url, agent_id="reader") as bus:
        page: str | None = None
        while True:
            contexts = await bus.contexts(prefix=prefix, page=page)
            for context in contexts:
                version = 0
                async for unit in bus.units(context.id, limit=1_000):
                    version += 1
                    assert unit.version == version
                    yield unit
                assert context.version == version
            page = contexts.next_page
            if page is None:
                return


def check(units: Sequence[WorkUnit], recorded: Recorded, *, run: str) -> None:
    """Every recorded step is there once, in its context and its order, of its agent and type, related to its call."""
    rows = recorded.rows
    line_of = {(row["trace"], row["step"]): line for line, row in enumerate(rows)}
    lines = [line_of[unit.meta["trace"], int(unit.meta["step"])] for unit in units]
    assert sorted(lines) == list(range(len(rows)))
    last_line: dict[str, int] = {}
    calls: dict[tuple[str, str], str] = {}
    for line, unit in zip(lines, units, strict=True):
        row = rows[line]
        assert unit.context_id == f"{run}/{row[recorded.context_field]}"
        assert line > last_line.get(unit.context_id, -1), "the recorded order"
        last_line[unit.context_id] = line
        assert (unit.agent_id, unit.text, unit.type) == (row["agent"], row["text"], row["type_hint"].upper())
        if (call := row.get("tool_use_id")) is not None:
            if row["type_hint"] in ("tool_result", "error"):
                assert [(to.target_id, to.type) for to in unit.relationships] == [
                    (calls[row["trace"], call], "RESPONDS_TO")
                ]
            else:
                calls[row["trace"], call] = unit.id
