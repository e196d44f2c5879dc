"""What a bus, `engram verify` and search make of a data directory that may be damaged, each in a process of its own.

One process imports all there is to import, and forks for every look: damage may end such a child, or hang it, and that
is an outcome like any other. `Looker` is its other end.
"""

import asyncio
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from engram_bus import verify
from engram_bus.embedded import Bus
from engram_bus.errors import DataDirectoryError, IdTaken, LogDamaged, StorageFailed
from engram_bus.log.record import Record, RecordError, parse
from engram_bus.projections.search.messages import Answered, Ask
from engram_bus.projections.search.values import Asked
from engram_bus.router.local import Gap
from engram_bus.units import Append, Draft, WorkUnit, is_own_kind
from tests.simulation.damage import searched

SECONDS_MAX = 30.0
TAKES_NONE = "takes no appends"
QUERIES = ("number7 and more", "ann said", "file3.py", "nothing of the kind", "number101")


class Job(msgspec.Struct, frozen=True):
    """Look at a directory: `what` is start, verify or search; `records` is the file with what it held."""

    what: str
    path: str
    records: str


class Seen(msgspec.Struct, frozen=True):
    """`outcome` is exact, damaged, refused, wrong, whole, died or hung; `said` tells more of it, and `warned` what was
    logged."""

    outcome: str
    said: str = ""
    answers: str = ""
    warned: str = ""


class WrongError(Exception):
    """What must never be."""


# --- The looks -------------------------------------------------------------------------------------------------------


def look(job: Job) -> Seen:
    log = logging.getLogger("engram_bus")
    log.addHandler(heard := _Warnings(logging.WARNING))
    try:
        seen = _look(job)
    finally:
        log.removeHandler(heard)
    return msgspec.structs.replace(seen, warned="; ".join(heard.said))


class _Warnings(logging.Handler):
    """What the log of a bus would show."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def _look(job: Job) -> Seen:
    raws: list[bytes] = msgspec.msgpack.decode(Path(job.records).read_bytes())
    whole = [parse(raw, seq) for seq, raw in enumerate(raws, start=1)]
    path = Path(job.path)
    try:
        match job.what:
            case "start":
                return asyncio.run(_start(path, whole))
            case "verify":
                report = verify._walk_all(path, lambda _: None)
                return Seen("whole" if report.is_whole else "damaged", "; ".join(str(one) for one in report.damage))
            case _:
                return _search(path)
    except WrongError as exc:
        return Seen("wrong", str(exc))
    except DataDirectoryError as exc:
        return Seen("refused", str(exc))
    except BaseException as exc:  # What nobody expected is an outcome, too.
        return Seen("wrong", f"{type(exc).__name__}: {exc}")


def _search(path: Path) -> Seen:
    try:
        with searched(path) as search:
            asked = [Asked(query=query, mode=mode) for query in QUERIES for mode in ("keyword", "hybrid")]
            head, until = search._runner.head, time.monotonic() + SECONDS_MAX
            said = [search._answer(Ask(number, head, one, until)) for number, one in enumerate(asked)]
    except (RecordError, OSError) as exc:
        return Seen("refused", f"{type(exc).__name__}: {exc}")
    answers = []
    for one in said:
        _require(isinstance(one, Answered), f"a search is not answered: {one}")
        assert isinstance(one, Answered)
        answers.append(([(hit.seq, round(hit.score, 3)) for hit in one.found.hits], one.found.total))
    return Seen("exact", answers=msgspec.json.encode(answers).decode())


class _Heard:
    """What was said to be damaged, while a bus was asked for all it has."""

    def __init__(self) -> None:
        self.damage: list[str] = []

    @contextmanager
    def asked(self, *, seq: int | None = None, of_writes: bool = False) -> Iterator[None]:
        """Where it says so, `of_writes`, the file may also be one that takes none."""
        try:
            yield
        except StorageFailed as exc:
            if not of_writes or "log/data.mdb is damaged" not in exc.message:
                raise
            self.damage.append(f"{TAKES_NONE}: {exc}")
        except LogDamaged as exc:
            if seq is not None and exc.details.get("seq") != seq:
                raise WrongError(f"record {seq} cannot be read, and {exc} does not name it") from exc
            self.damage.append(str(exc))


async def _start(path: Path, whole: Sequence[Record]) -> Seen:
    heard = _Heard()
    async with Bus.open(path) as bus:
        _require(bus.head == len(whole), f"the head is {bus.head}, not {len(whole)}")
        _check_held(bus, whole)
        await _check_stream(bus, whole, _check_records(bus, whole, heard))
        _check_lookups(bus, whole, heard)
        await _check_repeats(bus, whole, heard)
        with heard.asked(of_writes=True):
            unit = await bus.append("c0", b"it goes on", agent_id="ann", idempotency_key="new")
            version = max(one.unit.version for one in whole if one.unit.context_id == "c0") + 1
            _require((unit.seq, unit.version) == (len(whole) + 1, version), f"{unit} does not follow")
    return Seen("damaged" if heard.damage else "exact", "; ".join(heard.damage[:2]))


def _require(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise WrongError(otherwise)


def _check_records(bus: Bus, whole: Sequence[Record], heard: _Heard) -> set[int]:
    """Each is exact or said to be damaged; gives those that are."""
    lost = {record.unit.seq for record in whole}
    for record in whole:
        seq = record.unit.seq
        with heard.asked(seq=seq):
            _require(bus.log.record(seq).raw == record.raw, f"record {seq} was altered")
            lost.remove(seq)
    return lost


async def _check_stream(bus: Bus, whole: Sequence[Record], lost: set[int]) -> None:
    """A subscriber gets each unit once, in order, or hears of the gap."""
    passed = 0
    async with bus.subscribe(after=0) as units:
        while passed < len(whole):
            try:
                unit = await asyncio.wait_for(anext(units), SECONDS_MAX / 3)
                _require(unit == whole[passed].unit, f"unit {passed + 1} came as {unit.seq}")
                passed = unit.seq
            except Gap as gap:
                _require(gap.first == passed + 1, f"{gap} comes after {passed}")
                _require(set(range(gap.first, gap.last + 1)) <= lost, f"{gap}, and it can be read")
                passed = gap.last


def _check_lookups(bus: Bus, whole: Sequence[Record], heard: _Heard) -> None:
    """By id, in their context, by what they relate to: all of them, or damage."""
    contexts: dict[str, list[WorkUnit]] = defaultdict(list)
    relating: dict[str, list[int]] = defaultdict(list)
    for unit in (record.unit for record in whole):
        contexts[unit.context_id].append(unit)
        for target in {one.target_id for one in unit.relationships}:
            relating[target].append(unit.seq)
        with heard.asked():
            _require(bus.get(unit.id).unit == unit, f"unit {unit.seq} is another by its id")
    with heard.asked():
        _require(bus.log.context_ids("", prefix="", limit=1_000) == sorted(contexts), "contexts are lost")
    for context_id, units in contexts.items():
        with heard.asked():
            _require(list(_listed(bus, context_id)) == units, f"context {context_id} has other units")
    for target, seqs in relating.items():
        with heard.asked():
            _require(bus.log.seqs_relating_to(target, units_max=1_000) == seqs, f"what relates to {target} is lost")


def _listed(bus: Bus, context_id: str) -> Iterator[WorkUnit]:
    page = bus.list(context_id, limit=100)
    yield from page.work_units
    while page.next_page is not None:
        page = bus.list(context_id, limit=100, page=page.next_page)
        yield from page.work_units


async def _check_repeats(bus: Bus, whole: Sequence[Record], heard: _Heard) -> None:
    """A repeated key is never done again, an id never taken twice."""
    for record in whole:
        if record.group_units > 1 or is_own_kind(record.unit.kind):
            continue
        draft = _draft(record.unit)
        with heard.asked(of_writes=True):
            if record.private.key is not None:
                answer = await bus.execute(Append(draft=draft, idempotency_key=record.private.key))
                _require(answer.replayed, f"key {record.private.key} was done again as {answer.entries[0].seq}")
                _require(answer.entries[0].unit == record.unit, f"key {record.private.key} has another answer")
            elif record.unit.seq % 8 == 0:
                try:
                    await bus.execute(Append(draft=msgspec.structs.replace(draft, id=record.unit.id)))
                except IdTaken:
                    continue
                raise WrongError(f"the id of unit {record.unit.seq} was taken twice")


def _draft(unit: WorkUnit) -> Draft:
    return Draft(
        context_id=unit.context_id,
        agent_id=unit.agent_id,
        type=unit.type,
        kind=unit.kind,
        content_type=unit.content_type,
        payload=unit.payload,
        meta=unit.meta,
        resources=unit.resources,
        relationships=unit.relationships,
        traceparent=unit.traceparent,
    )


def _check_held(bus: Bus, whole: Sequence[Record]) -> None:
    """The world's locks are held for an hour, and none was given back."""
    granted = {record.unit.id for record in whole if record.unit.kind == "lock.granted"}
    _require(bus.writer.state.locks._table.locks.keys() == granted, "the locks are others")


# --- One process that forks for each ---------------------------------------------------------------------------------


class Looker:
    """The process that looks. Use it as a context manager."""

    def __init__(self, records: Path) -> None:
        self._records = records

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.simulation.damage_look"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def look(self, what: str, path: Path) -> Seen:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(Job(what, str(path), str(self._records))) + b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=Seen)


def in_child(job: Job, look: Callable[[Job], Seen] = look) -> Seen:
    """What a fork of this process sees; how it ended, where it says nothing."""
    reading, writing = os.pipe()
    words = Path(f"{job.path}.stderr")
    child = os.fork()
    if child == 0:
        with words.open("wb") as told:
            os.dup2(told.fileno(), 2)
        os.write(writing, msgspec.json.encode(look(job)))
        os._exit(0)
    os.close(writing)
    said, is_late = _read_all(reading)
    if is_late:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if is_late:
        return Seen("hung", f"after {SECONDS_MAX:g} s")
    if os.WIFSIGNALED(status):
        last = words.read_text(errors="replace").strip().rpartition("\n")[2]
        return Seen("died", f"{signal.Signals(os.WTERMSIG(status)).name}: {last}")
    return msgspec.json.decode(said, type=Seen)


def _read_all(reading: int) -> tuple[bytes, bool]:
    """What a child says until it ends; whether it was waited for in vain."""
    said = b""
    until = time.monotonic() + SECONDS_MAX
    try:
        while select.select([reading], [], [], max(0.0, until - time.monotonic()))[0]:
            part = os.read(reading, 65_536)
            if not part:
                return said, False
            said += part
        return said, True
    finally:
        os.close(reading)


def _main(answer: Callable[[bytes], object]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        answer(msgspec.json.encode(in_child(msgspec.json.decode(line, type=Job))) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _main(sys.stdout.buffer.write)
