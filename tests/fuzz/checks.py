"""What may come of a start over a mutated data directory: the judgement of the damage matrix, and one that is less
strict where an index is believed that nobody wrote like that."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from engram_bus.embedded import Bus
from engram_bus.errors import DataDirectoryError, EngramError
from engram_bus.log.record import Record, parse
from tests.fuzz.world import SEGMENT, World, require
from tests.simulation.damage import Case
from tests.simulation.damage_look import Job, Seen
from tests.simulation.test_damage import _kept, _wrong

SERVED = ("exact", "damaged")


def started(world: World, at: Path, file: str, *, written: Sequence[str] = (), answers: str = "") -> str:
    """Let `engram verify` and a bus look at the copy, as the damage matrix does. Gives what came of it."""
    before = _kept(at)
    verified = _look(world, at, "verify")
    seen = _look(world, at, "search" if answers else "start")
    wrong = _wrong(Case(file, "fuzzed", 0), seen, verified, answers)
    require(not wrong, wrong)
    lost = sorted(name for name, _ in before.items() - _kept(at).items() if name not in (SEGMENT, *written))
    require(not lost, f"{', '.join(lost)} was changed by a start that was {seen.outcome}")
    return seen.outcome


def verified(world: World, at: Path, file: str) -> str:
    """Damage that no start looks for: where a bus does not serve exactly what was written, `engram verify` finds it."""
    said = _look(world, at, "verify")
    require(said.outcome in ("whole", "damaged", "died"), f"verify {said.outcome}: {said.said}")
    seen = _look(world, at, "start")
    if said.outcome == "whole" and seen.outcome != "exact":
        # A pointer may lead to an old copy of the very same page, until an append writes over that one.
        said = _look(world, at, "verify")
        require(said.outcome != "whole", f"verify says that {file} is whole, the bus: {seen.outcome}: {seen.said}")
    return f"verified {said.outcome} and {seen.outcome}"


def asked(world: World, at: Path) -> str:
    """A bus over what nothing tells from what was written: what it finds is right, though not all may be found, and
    what cannot be is told in the words of the contract."""
    return asyncio.run(_asked(at, [parse(raw, seq) for seq, raw in enumerate(world.raws, start=1)]))


async def _asked(at: Path, whole: Sequence[Record]) -> str:
    refusals: list[EngramError] = []

    def may_refuse(read: Callable[[], object]) -> object:
        try:
            return read()
        except EngramError as exc:
            refusals.append(exc)
            return None

    try:
        async with Bus.open(at) as bus:
            require(bus.head == len(whole), f"the head is {bus.head}, not {len(whole)}")
            for record in whole:
                _ask_for(bus, record, may_refuse)
            for context_id in {record.unit.context_id for record in whole}:
                found = may_refuse(lambda name=context_id: bus.list(name, limit=100).work_units) or ()
                _require_true(found, whole, context_id)
            may_refuse(bus.contexts)
            try:
                await bus.append("c0", b"it goes on", agent_id="ann", idempotency_key="new")
            except EngramError as exc:
                refusals.append(exc)
    except DataDirectoryError as exc:
        require(str(at) in str(exc), f"the refusal does not name a file: {exc}")
        return "refused"
    return "damaged" if refusals else "exact"


def _ask_for(bus: Bus, record: Record, may_refuse: Callable[[Callable[[], object]], object]) -> None:
    unit = record.unit
    require(bus.log.record(unit.seq).raw == record.raw, f"record {unit.seq} was altered")
    require(may_refuse(lambda: bus.log.seq_of_id(unit.id)) in (unit.seq, None), f"unit {unit.seq} is another by its id")
    may_refuse(lambda: bus.related(unit.id))
    if record.private.key is not None:
        found = may_refuse(lambda: bus.log.seq_of_key(unit.agent_id, record.private.key or ""))
        require(found in (unit.seq, None), f"the key of unit {unit.seq} leads to {found}")


def _require_true(found: object, whole: Sequence[Record], context_id: str) -> None:
    assert isinstance(found, tuple | list)
    seqs = [unit.seq for unit in found]
    require(seqs == sorted(set(seqs)), f"context {context_id} lists {seqs}")
    for unit in found:
        require(unit == whole[unit.seq - 1].unit, f"unit {unit.seq} was altered")
        require(unit.context_id == context_id, f"unit {unit.seq} is listed in {context_id}")


def _look(world: World, at: Path, what: str) -> Seen:
    return world.look(Job(what, str(at), str(world.records)))
