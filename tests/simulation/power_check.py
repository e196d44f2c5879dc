"""What must be so after a power cut: a data directory opens, and holds all that anybody was told, and nothing more."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from engram_bus import verify
from engram_bus.embedded import Bus
from engram_bus.log.record import Record
from engram_bus.projections.follower import Follower
from engram_bus.projections.runner import Runner
from engram_bus.projections.search.documents import is_searched, line_of, meaning_of, text_of
from engram_bus.projections.search.embedders import StaticEmbedder
from engram_bus.projections.search.engine import SearchIndex
from engram_bus.projections.search.keywords import VERSION
from engram_bus.projections.search.values import Asked
from engram_bus.projections.search.vectors import quantized
from engram_bus.units import Append, Draft, UnitType
from tests.disk import tenant
from tests.simulation.power_workload import Acknowledged, Found, GaveBack, Heard, Holds, Mark, Refused, Told

REPEATS = 5
LOOKS = 20
EMBEDDER = StaticEmbedder()


class Expected:
    """What was told by a moment."""

    def __init__(self, marks: Iterable[Mark], *, refused: Iterable[Mark]) -> None:
        """Whatever is refused, at any time, is not there at any other."""
        self.units: dict[int, Told] = {}
        self.ids: dict[int, str] = {}
        self.plain: list[tuple[str, Told]] = []
        self.batches: list[list[int]] = []
        self.holds: list[Holds] = []
        self.gave_back: list[str] = []
        self.refused = {(mark.agent_id, mark.key) for mark in refused if isinstance(mark, Refused)}
        for mark in marks:
            match mark:
                case Acknowledged(units=units):
                    self.units |= {unit.seq: unit for unit in units}
                    self.batches.append([unit.seq for unit in units])
                    if mark.key is not None and mark.is_plain:
                        self.plain.append((mark.key, units[0]))
                case Heard(units=units):
                    self.units |= {unit.seq: unit for unit in units}
                case Found(seqs=seqs, ids=ids):
                    self.ids |= dict(zip(seqs, ids, strict=True))
                case Holds():
                    self.holds.append(mark)
                case GaveBack(lock_id=lock_id):
                    self.gave_back.append(lock_id)
                case Refused():
                    pass


def check(path: Path, expected: Expected, dice: Random, *, search: bool) -> None:
    """Raises AssertionError, or what the bus raises."""
    if (path / "identity").exists():
        report = verify._walk_all(path, lambda _: None)  # We are the child that damage may end.
        assert report.is_whole, report.text()
    asyncio.run(check_bus(path, expected, dice))
    if search:
        check_search(path, expected, dice)
    if dice.random() < 0.2:
        report = verify._walk_all(path, lambda _: None)
        assert report.is_whole, f"after it was opened: {report.text()}"


async def check_bus(path: Path, expected: Expected, dice: Random) -> None:
    async with Bus.open(path) as bus:
        records = [bus.log.record(seq) for seq in range(1, bus.head + 1)]
        locks = {lock_id: (lock.seq, lock.agent_id) for lock_id, lock in bus.writer.state.locks._table.locks.items()}
        check_records(records, expected)
        check_locks(records, locks, expected)
        check_lookups(bus, records, dice)
        await check_repeats(bus, expected, dice)
        head = bus.head
        unit = await bus.append("after", b"it goes on", agent_id="ann")
        assert unit.seq > head
        assert bus.get(unit.id).unit == unit


def check_records(records: Sequence[Record], expected: Expected) -> None:
    """No gap, commands whole and once each, all that was told, nothing that was refused."""
    versions: defaultdict[str, int] = defaultdict(int)
    for seq, record in enumerate(records, start=1):
        versions[record.unit.context_id] += 1
        assert (record.unit.seq, record.unit.version) == (seq, versions[record.unit.context_id])
    assert len({record.unit.id for record in records}) == len(records), "a unit is there twice"
    assert not expected.units or max(expected.units) <= len(records), (
        f"unit {max(expected.units)} was told, and the log ends at {len(records)}"
    )
    for seq, told in expected.units.items():
        unit = records[seq - 1].unit
        found = Told(unit.seq, unit.id, unit.context_id, unit.version, unit.agent_id, unit.payload)
        if unit.payload and not told.payload:  # What is no text is not compared.
            found = Told(unit.seq, unit.id, unit.context_id, unit.version, unit.agent_id, b"")
        assert found == told, f"unit {seq} was told as {told}, and is {found}"
    for seq, unit_id in expected.ids.items():
        assert records[seq - 1].unit.id == unit_id, f"search found unit {seq}, and it is another one"
    for batch in expected.batches:
        group = [records[seq - 1] for seq in batch]
        assert [one.group_index for one in group] == list(range(group[0].group_units)), f"{batch} is one command"
    keys = [(one.unit.agent_id, one.private.key) for one in records if one.private.key and one.group_index == 0]
    assert len(set(keys)) == len(keys), "a command is there twice"
    assert not expected.refused & set(keys), f"refused, and there: {expected.refused & set(keys)}"


def check_locks(records: Sequence[Record], locks: dict[str, tuple[int, str]], expected: Expected) -> None:
    """The table is what the log folds to, by few lines of its own, and has what holders were told."""
    held: dict[str, tuple[int, str]] = {}
    until: dict[str, str] = {}
    for unit in (record.unit for record in records):
        if not (unit.kind or "").startswith("lock."):
            continue
        said: dict[str, Any] = json.loads(unit.payload)
        match unit.kind:
            case "lock.granted":
                held[unit.id] = (unit.seq, said["agent_id"])
                until[unit.id] = said["until"]
            case "lock.refreshed":
                until[said["lock_id"]] = said["until"]
            case "lock.released" | "lock.expired" | "lock.broken":
                del held[said["lock_id"]]
    assert locks == held
    for told in expected.holds:
        unit = records[told.token - 1].unit
        assert (unit.kind, unit.id) == ("lock.granted", told.lock_id), f"{told} is not there"
        assert until[told.lock_id] >= told.until, f"{told} was held for longer"
    assert not held.keys() & set(expected.gave_back), "given back, and held"


def check_lookups(bus: Bus, records: Sequence[Record], dice: Random) -> None:
    """Units are found by their id and in their context."""
    for record in dice.sample(records, min(LOOKS, len(records))):
        assert bus.get(record.unit.id).unit == record.unit
        page = bus.list(record.unit.context_id, after=record.unit.seq - 1, limit=1)
        assert page.work_units == [record.unit]


async def check_repeats(bus: Bus, expected: Expected, dice: Random) -> None:
    """Who did not hear the answer, and asks again, gets the answer of the first time."""
    for key, told in dice.sample(expected.plain, min(REPEATS, len(expected.plain))):
        draft = Draft(context_id=told.context_id, agent_id=told.agent_id, type=UnitType.MESSAGE, payload=told.payload)
        answer = await bus.execute(Append(draft=draft, idempotency_key=key))
        (entry,) = answer.entries
        assert (answer.replayed, entry.unit.seq, entry.unit.id) == (True, told.seq, told.id), f"{key} was done again"


def check_search(path: Path, expected: Expected, dice: Random) -> None:
    """The index opens or is built again, holds each unit once and finds what was told."""
    follower = Follower(tenant(path))
    try:
        runner = Runner(
            follower,
            tenant(path) / "search",
            f"{VERSION}-{EMBEDDER.name}",
            lambda at: SearchIndex(at, EMBEDDER, follower),
        )
        before = check_index(runner.projection, follower, cursor=runner.projection.cursor)
        while runner.is_behind:
            runner.step()
        runner._commit()
        index = runner.projection
        assert check_index(index, follower, cursor=follower.head) >= before
        for seq in dice.sample(sorted(expected.units), min(3, len(expected.units))):
            unit = follower.unit(seq)
            words = unit.payload.decode(errors="replace").split()[:12]
            if words and is_searched(unit):
                found = index.search(Asked(query=" ".join(words), limit=200))
                assert seq in [hit.seq for hit in found.hits], f"unit {seq} is not found"
        index.close()
    finally:
        follower.close()


def check_index(index: SearchIndex, follower: Follower, *, cursor: int) -> int:
    """Each searched unit up to the cursor is there once, and has the vector of its text; gives how many."""
    count = index._columns.count
    units = follower.units(0, units_max=10**6, bytes_max=10**9)
    wanted = [unit for unit in units if unit.seq <= cursor and is_searched(unit)]
    assert index._columns.seqs_of(np.arange(count)) == [unit.seq for unit in wanted]
    texts = [text_of(unit) for unit in wanted]
    vectors = EMBEDDER.embed(
        [meaning_of(unit, text, line=line_of(unit, text)) for unit, text in zip(wanted, texts, strict=True)]
    )
    kept = index._vectors.kept(np.arange(count))
    assert all((row == quantized(vector)).all() for row, vector in zip(kept, vectors, strict=True)), "a vector is wrong"
    return count
