"""The writer: each command answered once, after its commit, the same again for its key, and the state is the disk."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.bus import writer as writer_module
from engram_bus.bus.admission import admit
from engram_bus.bus.writer import NOOP, Answer, Writer
from engram_bus.clock import Clock
from engram_bus.codec import Entry
from engram_bus.decisions.contexts import Contexts
from engram_bus.errors import (
    Busy,
    ContextClosed,
    EngramError,
    IdempotencyConflict,
    IdTaken,
    InternalError,
    LogDamaged,
    ShuttingDown,
    StorageFailed,
    StorageFull,
    StorageReadOnly,
    VersionMoved,
)
from engram_bus.limits import BATCH_UNITS_MAX, MIB, QUEUE_COMMANDS_MAX
from engram_bus.log.contract import Log, Snapshot
from engram_bus.log.directory import DataDirectory
from engram_bus.log.index import seq_key
from engram_bus.log.lmdb import LmdbLog
from engram_bus.log.memory import MemoryLog
from engram_bus.log.record import Record, parse, redact
from engram_bus.units import Append, AppendAtomic, Command, Draft, UnitType, UpdateContext, WorkUnit, ts_text
from tests.damaged import DamagedLog
from tests.disk import CREATED_AT, opened, stored, tampering
from tests.values import append, unit_id

pytestmark = pytest.mark.anyio

FULL = StorageFull("no room", limit=1)
Outcome = Answer | EngramError


class RefusingLog:
    """Beside a real log, whose disk refuses when it is told to: at a chosen append, or from now on."""

    refusal: EngramError | None = None
    refuse_at: int | None = None
    appends = 0

    def append(self, records: Sequence[Record]) -> None:
        self.appends += 1
        if self.appends == self.refuse_at:
            raise FULL
        self.probe()
        super().append(records)  # type: ignore[misc]

    def probe(self) -> None:
        if self.refusal is not None:
            raise self.refusal


class RefusingMemoryLog(RefusingLog, MemoryLog):
    pass


class RefusingDamagedLog(RefusingLog, DamagedLog):
    pass


class RefusingLmdbLog(RefusingLog, LmdbLog):
    pass


class Desk:
    """A writer, its log, and what it told."""

    def __init__(self, log: Log, clock: Callable[[int], Clock] = Clock) -> None:
        self.log: Any = log  # With the switches of a RefusingLog.
        self.told: list[Entry] = []
        self.writer = Writer(log, clock=clock, tell=self.told.extend)

    def submit(self, command: Command) -> "asyncio.Future[Outcome]":
        """Queue a command; its outcome is checked to be durable when it comes."""
        answered: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def done(outcome: Outcome) -> None:
            assert not isinstance(outcome, Answer) or all(entry.seq <= self.log.head for entry in outcome.entries)
            answered.set_result(outcome)

        self.writer.submit(command, admit(command), done)
        return answered

    async def ask(self, *commands: Command) -> list[Outcome]:
        """The outcomes of commands that arrive in one turn of the loop."""
        return await asyncio.gather(*[self.submit(command) for command in commands])

    async def ask_one(self, command: Command) -> Answer:
        (outcome,) = await self.ask(command)
        if isinstance(outcome, EngramError):
            raise outcome
        return outcome

    def restart(self) -> "Desk":
        """Another writer on the same log, as after a stop that kept no snapshot."""
        return Desk(self.log)


@pytest.fixture(params=["memory", "lmdb"])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    with log_of(request.param, tmp_path) as log:
        yield Desk(log)


@contextlib.contextmanager
def log_of(kind: str, path: Path) -> Iterator[Log]:
    if kind == "memory":
        yield RefusingMemoryLog()
        return
    directory = DataDirectory(path, created_at=CREATED_AT)
    log = RefusingLmdbLog(directory.tenant())
    yield log
    log.close()
    directory.close()


def units_of(log: Log) -> list[WorkUnit]:
    return [log.record(seq).unit for seq in range(1, log.head + 1)]


def folded(log: Log) -> bytes:
    """The state that the log alone gives."""
    state = Contexts()
    for unit in units_of(log):
        state.evolve(unit)
    return state.snapshot()


def seqs(answer: Outcome) -> list[int]:
    assert isinstance(answer, Answer), answer
    return [entry.seq for entry in answer.entries]


def update(context_id: str = "plan", *, key: str | None = None, **changes: Any) -> UpdateContext:
    return UpdateContext(context_id=context_id, agent_id="ann", idempotency_key=key, **changes)


def atomic(*appends: Any, key: str | None = None) -> AppendAtomic:
    return AppendAtomic(appends=appends, idempotency_key=key)


# --- One commit a turn -----------------------------------------------------------------------------------------------


async def test_what_arrives_in_one_turn_is_one_commit(desk: Desk) -> None:
    outcomes = await desk.ask(*[append(payload=b"%d" % number) for number in range(10)])
    assert [seqs(outcome) for outcome in outcomes] == [[seq] for seq in range(1, 11)]
    assert (desk.writer.commits, desk.log.appends) == (1, 1)
    assert [entry.seq for entry in desk.told] == list(range(1, 11))


async def test_a_lone_append_is_committed_at_once(desk: Desk) -> None:
    answered = desk.submit(append())
    await asyncio.sleep(0)
    assert answered.done()


async def test_refusals_and_replays_alone_need_no_commit(desk: Desk) -> None:
    await desk.ask(append(key="k"))
    replayed, refused = await desk.ask(append(key="k"), append(expected_version=7))
    assert isinstance(refused, VersionMoved)
    assert isinstance(replayed, Answer)
    assert (desk.writer.commits, len(desk.told)) == (1, 1)


async def test_a_commit_is_bounded_and_the_rest_follows(desk: Desk) -> None:
    outcomes = await desk.ask(*[append() for _ in range(BATCH_UNITS_MAX + 1)])
    assert desk.writer.commits == 2
    assert seqs(outcomes[-1]) == [BATCH_UNITS_MAX + 1]


async def test_an_atomic_batch_is_never_split_over_commits(desk: Desk) -> None:
    thousand = [append() for _ in range(1_000)]
    outcomes = await desk.ask(*[atomic(*thousand) for _ in range(3)])
    assert [seqs(outcome)[::999] for outcome in outcomes] == [[1, 1000], [1001, 2000], [2001, 3000]]
    assert desk.writer.commits == 2
    last = desk.log.record(3_000)
    assert (last.group_units, last.group_index) == (1_000, 999)


async def test_a_commit_is_bounded_in_bytes(desk: Desk) -> None:
    await desk.ask(*[append(payload=bytes(MIB - 1_000)) for _ in range(40)])
    assert desk.writer.commits == 2


async def test_who_asks_is_answered_before_subscribers_are_told(desk: Desk) -> None:
    order: list[str] = []
    desk.writer._tell = lambda entries: order.append(f"told {entries[-1].seq}")
    desk.writer.submit(append(), 1, lambda outcome: order.append("answered"))
    await desk.ask(append())
    assert order == ["answered", "told 2"]


async def test_one_callers_fault_keeps_nobody_from_an_answer(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    def fail(outcome: Outcome) -> None:
        raise RuntimeError("gone")

    desk.writer.submit(append(), 1, fail)
    (outcome,) = await desk.ask(append())
    assert seqs(outcome) == [2]
    assert "an answer could not be given" in caplog.text


# --- Taking over -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("latest_seconds", "waits"), [(60, True), (0, False)])
async def test_the_log_takes_over_once_appends_pause_or_go_on_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, latest_seconds: int, waits: bool
) -> None:
    monkeypatch.setattr(writer_module, "SETTLE_QUIET_SECONDS", 0)
    monkeypatch.setattr(writer_module, "SETTLE_SECONDS", latest_seconds)
    with log_of("lmdb", tmp_path) as log:
        told: asyncio.Queue[int] = asyncio.Queue()
        desk = Desk(log)
        desk.writer = Writer(log, tell=desk.told.extend, tell_settled=told.put_nowait)
        for _ in range(20):  # One in each turn of the loop, and in each the timer's quiet has passed.
            desk.submit(append())
            await asyncio.sleep(0)
        assert told.empty() == waits
        async with asyncio.timeout(10):
            while await told.get() < log.head:
                pass
        assert log.settled == log.head == 20


# --- What is not recorded --------------------------------------------------------------------------------------------


async def test_a_refusal_leaves_no_unit_and_the_others_go_on(desk: Desk) -> None:
    await desk.ask(update(closed=True))
    head = desk.log.head
    closed, moved, fine = await desk.ask(append(), append("other", expected_version=1), append("other"))
    assert isinstance(closed, ContextClosed)
    assert isinstance(moved, VersionMoved)
    assert seqs(fine) == [head + 1]


async def test_an_expected_version_counts_what_came_before_it_in_the_batch(desk: Desk) -> None:
    outcomes = await desk.ask(*[append(expected_version=version) for version in (0, 1, 1, 2)])
    assert [isinstance(outcome, VersionMoved) for outcome in outcomes] == [False, False, True, False]
    assert outcomes[2].details == {"current_version": 2}  # type: ignore[union-attr]


async def test_an_id_is_taken_once(desk: Desk) -> None:
    first, second = await desk.ask(append(id=unit_id(7)), append(id=unit_id(7)))
    assert seqs(first) == [1]
    assert isinstance(second, IdTaken)
    (third,) = await desk.restart().ask(append(id=unit_id(7)))
    assert isinstance(third, IdTaken)


async def test_an_atomic_batch_is_refused_as_a_whole_and_names_the_unit(desk: Desk) -> None:
    twice, moved = await desk.ask(
        atomic(append(id=unit_id(1)), append(id=unit_id(2)), append(id=unit_id(1))),
        atomic(append(), append(expected_version=0)),
    )
    assert isinstance(twice, IdTaken)
    assert isinstance(moved, VersionMoved)
    assert (twice.index, moved.index) == (2, 1)
    assert desk.log.head == 0


async def test_ids_are_of_version_7_unique_and_in_order(desk: Desk) -> None:
    for _ in range(5):
        await desk.ask(*[append() for _ in range(50)])
    ids = [unit.id for unit in units_of(desk.log)]
    assert len(set(ids)) == 250
    assert {(unit[14], unit[19] in "89ab") for unit in ids} == {("7", True)}
    assert ids == sorted(ids, key=lambda unit: unit[:18])


# --- Idempotency -----------------------------------------------------------------------------------------------------

COMMANDS = [
    append(key="k"),
    atomic(append(), append("other"), append(), key="k"),
    update(key="k", add_agents=("bob",), meta={"a": "1"}),
]


@pytest.mark.parametrize("command", COMMANDS, ids=["append", "atomic", "update"])
async def test_a_repeat_is_answered_the_same_in_its_batch_later_and_after_a_restart(
    desk: Desk, command: Command
) -> None:
    first, same_batch = await desk.ask(command, command)
    head = desk.log.head
    (later,) = await desk.ask(command)
    (after_restart,) = await desk.restart().ask(command)
    assert isinstance(first, Answer)
    assert not first.replayed
    for repeat in (same_batch, later, after_restart):
        assert isinstance(repeat, Answer)
        assert repeat.replayed
        assert repeat.context == first.context
        assert [entry.body for entry in repeat.entries] == [entry.body for entry in first.entries]
    assert desk.log.head == head


@pytest.mark.parametrize(
    ("command", "other"),
    [
        (append(key="k"), append(key="k", payload=b"ho")),
        (append(key="k"), append("other", key="k")),
        (append(key="k"), append(key="k", expected_version=0)),
        (append(key="k"), atomic(append(), key="k")),
        (append(key="k"), update(key="k")),
        (atomic(append(), append(), key="k"), atomic(append(), append(payload=b"ho"), key="k")),
        (atomic(append(), append(), key="k"), atomic(append(), key="k")),
        (update(key="k", closed=True), update(key="k")),
    ],
)
async def test_another_command_under_the_same_key_is_a_conflict(desk: Desk, command: Command, other: Command) -> None:
    outcomes = await desk.ask(command, other)
    outcomes += await desk.ask(other)
    outcomes += await desk.restart().ask(other)
    assert [type(outcome) for outcome in outcomes] == [Answer, *[IdempotencyConflict] * 3]


async def test_a_key_is_its_agents(desk: Desk) -> None:
    outcomes = await desk.ask(append(key="k", agent_id="ann"), append(key="k", agent_id="bob"))
    assert [seqs(outcome) for outcome in outcomes] == [[1], [2]]


async def test_refusals_are_not_remembered(desk: Desk) -> None:
    command = append(key="k", expected_version=1)
    first, _, second = await desk.ask(command, append(), command)
    assert isinstance(first, VersionMoved)
    assert seqs(second) == [2]


async def test_a_keyed_command_that_changes_nothing_is_answered_the_same_ever_after(desk: Desk) -> None:
    await desk.ask(update(add_agents=("bob",)))
    unchanged = update(key="k", add_agents=("bob",))
    first = await desk.ask_one(unchanged)
    assert [entry.unit.kind for entry in first.entries] == [NOOP]
    await desk.ask(update(add_agents=("eve",)))
    again = await desk.restart().ask_one(unchanged)
    assert again.replayed
    assert again.context == first.context
    assert again.context is not None
    assert again.context.agent_ids == ["bob"]


async def test_without_a_key_what_changes_nothing_leaves_nothing(desk: Desk) -> None:
    first = await desk.ask_one(update())
    second = await desk.ask_one(update())
    assert (desk.log.head, second.entries, second.context) == (1, (), first.context)


async def test_after_a_redaction_the_repeat_is_still_answered(tmp_path: Path) -> None:
    """Its payload can no longer be compared; everything else is."""
    command = append(key="k", payload=b"secret")
    with opened(tmp_path) as log:
        await Desk(log).ask(command)
    with tampering(tmp_path, "log") as txn:
        record = parse(stored(txn, seq_key(1)), 1)
        assert msgspec.msgpack.encode(record.private).find(b"secret") == -1
        txn.put(seq_key(1), redact(record))
    with opened(tmp_path) as log:
        same, other = await Desk(log).ask(command, append("other", key="k", payload=b"secret"))
        assert isinstance(same, Answer)
        assert same.replayed
        assert same.entries[0].unit.payload == bytes(6)
        assert isinstance(other, IdempotencyConflict)


# --- When the disk refuses -------------------------------------------------------------------------------------------


async def test_a_failed_commit_answers_everyone_and_the_state_is_the_disks(desk: Desk) -> None:
    await desk.ask(append())
    desk.log.refuse_at = 2
    outcomes = await desk.ask(append(), update(add_agents=("bob",)), append("other", expected_version=9))
    assert outcomes == [FULL, FULL, FULL]
    assert desk.writer.state.contexts.snapshot() == folded(desk.log)
    assert desk.writer.state.contexts.version("plan") == 1
    assert len(desk.told) == 1
    with pytest.raises(StorageFull):
        desk.submit(append())


async def test_what_waits_behind_a_failed_commit_is_answered_too(desk: Desk) -> None:
    desk.log.refuse_at = 1
    outcomes = await desk.ask(*[append() for _ in range(BATCH_UNITS_MAX + 5)])
    assert set(outcomes) == {FULL}
    assert (desk.log.head, desk.writer.queue_commands) == (0, 0)


@pytest.mark.parametrize("refusal", [FULL, StorageReadOnly("read-only")])
async def test_appends_go_on_by_themselves_when_the_disk_takes_them_again(
    desk: Desk, refusal: EngramError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "STORAGE_RETRY_SECONDS", 0.001)
    desk.log.refusal = refusal
    assert await desk.ask(append(key="k")) == [refusal]
    desk.writer.check()
    assert desk.writer.refusal is refusal
    desk.log.refusal = None
    async with asyncio.timeout(10):
        while desk.writer.refusal is not None:
            await asyncio.sleep(0.001)
    answer = await desk.ask_one(append(key="k"))
    assert (seqs(answer), answer.replayed) == ([1], False)
    desk.writer.close()


async def test_a_failed_disk_is_not_asked_again(desk: Desk) -> None:
    failed = StorageFailed("the disk failed")
    desk.log.refusal = failed
    assert await desk.ask(append()) == [failed]
    assert desk.writer._probe is None
    with pytest.raises(StorageFailed):
        desk.submit(append())


async def test_a_disk_that_refuses_at_the_start_is_told_at_the_first_append() -> None:
    log = RefusingMemoryLog()
    log.refusal = FULL
    desk = Desk(log)
    assert desk.writer.refusal is FULL
    log.refusal = None
    desk.writer.check()
    assert seqs(await desk.ask_one(append())) == [1]


async def test_our_own_mistake_costs_one_commit(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await desk.ask(append())
    with monkeypatch.context() as mistaken:
        mistaken.setattr(writer_module, "seal", raise_mistake)
        outcomes = await desk.ask(append(), append())
    assert [type(outcome) for outcome in outcomes] == [InternalError] * 2
    assert desk.writer.state.contexts.snapshot() == folded(desk.log)
    assert seqs(await desk.ask_one(append())) == [2]
    assert "could not be decided" in caplog.text


async def test_a_mistake_before_anything_is_decided_costs_one_command(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    check = Contexts.check_append
    monkeypatch.setattr(
        Contexts, "check_append", lambda *args: raise_mistake() if args[1].expected_version == 9 else check(*args)
    )
    fine, mistaken = await desk.ask(append(), append(expected_version=9))
    assert seqs(fine) == [1]
    assert isinstance(mistaken, InternalError)
    assert "could not be decided" in caplog.text


async def test_a_log_that_makes_a_mistake_answers_too(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as mistaken:
        mistaken.setattr(type(desk.log), "append", raise_mistake)
        outcomes = await desk.ask(append(), append())
    assert [type(outcome) for outcome in outcomes] == [InternalError] * 2
    assert seqs(await desk.ask_one(append())) == [1]
    assert "a commit failed" in caplog.text


async def test_a_log_that_cannot_be_folded_again_takes_no_more(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    await desk.ask(append())
    damaged = LogDamaged("record 1 is damaged", seq=1)
    desk.log.refuse_at = 2
    with monkeypatch.context() as broken:
        broken.setattr(type(desk.log), "read", lambda *args, **kwargs: raise_(damaged))
        assert await desk.ask(append()) == [FULL]
        desk.writer.check()
        assert desk.writer.refusal is damaged
    desk.writer.check()
    assert seqs(await desk.ask_one(append())) == [2]
    assert desk.writer.state.contexts.snapshot() == folded(desk.log)
    desk.writer.close()


async def test_a_state_that_cannot_be_folded_again_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    log = RefusingDamagedLog()
    desk = Desk(log)
    await desk.ask(append(), append(), append("b"))
    log.damaged = (3,)
    log.refuse_at = 2
    assert await desk.ask(append()) == [FULL]
    with pytest.raises(LogDamaged, match="record 3"):
        _ = desk.writer.state
    # Nor is what can be read folded again, and again, while it leads no further.
    folds: list[Any] = []
    with monkeypatch.context() as watched:
        watched.setattr(Contexts, "restore", lambda *args: folds.append(args))
        desk.writer.check()
    assert (folds, type(desk.writer.refusal)) == ([], LogDamaged)
    log.damaged = ()
    desk.writer.check()
    assert (desk.writer.refusal, desk.writer.state.contexts.snapshot()) == (None, folded(log))
    desk.writer.close()


async def test_why_there_is_no_state_is_told_also_while_the_disk_is_full() -> None:
    log = RefusingDamagedLog()
    desk = Desk(log)
    await desk.ask(append())
    log.damaged = (1,)
    log.refusal = FULL
    await desk.ask(append())
    desk.writer.check()
    assert desk.writer.refusal is FULL
    with pytest.raises(LogDamaged):
        _ = desk.writer.state
    desk.writer.close()
    with pytest.raises(LogDamaged):
        _ = desk.writer.state


def raise_mistake(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError


def raise_(error: Exception) -> None:
    raise error


# --- Bounds ----------------------------------------------------------------------------------------------------------


async def test_a_full_queue_is_busy_and_then_not(desk: Desk) -> None:
    waiting = [desk.submit(append()) for _ in range(QUEUE_COMMANDS_MAX)]
    with pytest.raises(Busy) as caught:
        desk.submit(append())
    assert caught.value.limit == QUEUE_COMMANDS_MAX
    await asyncio.gather(*waiting)
    assert seqs(await desk.ask_one(append())) == [QUEUE_COMMANDS_MAX + 1]


async def test_a_queue_is_bounded_in_bytes_too(desk: Desk) -> None:
    waiting = [desk.submit(append(payload=bytes(MIB - 2_100))) for _ in range(64)]
    with pytest.raises(Busy, match="bytes wait"):
        desk.submit(append(payload=bytes(MIB - 2_100)))
    await asyncio.gather(*waiting)
    await desk.ask_one(append(payload=bytes(MIB - 2_100)))
    assert desk.log.head == 65


# --- Stop and start --------------------------------------------------------------------------------------------------


async def test_closing_commits_what_waits_and_refuses_from_then_on(desk: Desk) -> None:
    waiting = [desk.submit(append()) for _ in range(BATCH_UNITS_MAX + 1)]
    desk.writer.close()
    assert [seqs(answered.result()) for answered in waiting][-1] == [BATCH_UNITS_MAX + 1]
    assert desk.writer.is_closed
    with pytest.raises(ShuttingDown):
        desk.submit(append())
    await asyncio.sleep(0)


async def test_a_snapshot_and_the_rest_is_the_whole_fold(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SNAPSHOT_UNITS", 6)
    for number in range(20):
        await desk.ask(append(f"c{number % 3}"), update(f"c{number % 3}", meta={"n": str(number)}))
    kept = desk.log.load_snapshot(Contexts.name)
    assert kept is not None
    assert 0 < kept.seq < desk.log.head
    restarted = desk.restart()
    assert restarted.writer.state.contexts.snapshot() == desk.writer.state.contexts.snapshot() == folded(desk.log)
    desk.writer.close()
    kept = desk.log.load_snapshot(Contexts.name)
    assert kept is not None
    assert kept.seq == desk.log.head


@pytest.mark.parametrize("state", [b"", b"\xc1", b"\x81\xa1\xff\x01", b"\x81\xa1x\x81" + b"\x91" * 3_000])
async def test_a_snapshot_that_cannot_be_read_is_folded_again(desk: Desk, state: bytes) -> None:
    await desk.ask(append(), append())
    for part in desk.writer.state.parts:
        desk.log.save_snapshot(part.name, Snapshot(desk.log.head, state))
    assert desk.restart().writer.state.contexts.snapshot() == folded(desk.log)


async def test_a_snapshot_that_is_there_is_not_kept_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    await desk.ask(append())
    desk.writer.close()
    restarted = desk.restart()
    monkeypatch.setattr(type(desk.log), "save_snapshot", raise_mistake)
    restarted.writer.close()


async def test_time_does_not_go_back_over_a_restart(desk: Desk) -> None:
    now_us = 1_000_000

    def clock_at(start_us: int) -> Callable[[int], Clock]:
        return lambda not_before_us: Clock(not_before_us, boot_us=lambda: now_us, wall_us=lambda: start_us)

    await Desk(desk.log, clock_at(5_000_000)).ask(append())
    await Desk(desk.log, clock_at(2_000_000)).ask(append())
    await Desk(desk.log, clock_at(9_000_000)).ask(append())
    assert [unit.ts for unit in units_of(desk.log)] == [ts_text(us) for us in (5_000_000, 5_000_000, 9_000_000)]


# --- Everything at once ----------------------------------------------------------------------------------------------

CONTEXT = st.sampled_from(["a", "b", "a/b"])
DRAFTS = st.builds(
    Draft,
    context_id=CONTEXT,
    agent_id=st.sampled_from(["ann", "bob"]),
    type=st.just(UnitType.MESSAGE),
    payload=st.sampled_from([b"", b"hi", b"ho"]),
    id=st.none() | st.integers(0, 5).map(unit_id),
)
VERSION = st.none() | st.integers(0, 6)
KEY = st.none() | st.sampled_from(["k1", "k2", "k3"])


def append_of(one: Draft, version: int | None, key: str | None) -> Append:
    return Append(draft=one, expected_version=version, idempotency_key=key)


APPENDS = st.builds(append_of, DRAFTS, VERSION, KEY)
UPDATES = st.builds(
    UpdateContext,
    context_id=CONTEXT,
    agent_id=st.just("ann"),
    add_agents=st.lists(st.sampled_from(["x", "y"]), max_size=2).map(tuple),
    meta=st.dictionaries(st.sampled_from("pq"), st.none() | st.sampled_from("12"), max_size=2),
    closed=st.none() | st.booleans(),
    expected_version=VERSION,
    idempotency_key=KEY,
)
ATOMICS = st.builds(
    AppendAtomic,
    appends=st.lists(st.builds(append_of, DRAFTS, VERSION, st.none()), min_size=1, max_size=3).map(tuple),
    idempotency_key=KEY,
)
TURNS = st.lists(
    st.tuples(
        st.lists(APPENDS | UPDATES | ATOMICS, min_size=1, max_size=6),
        st.sampled_from(["commits", "commits", "commits", "fails", "restarts"]),
    ),
    max_size=12,
)


@given(TURNS)
def test_whatever_is_asked_and_whatever_fails_the_answers_are_the_log(
    turns: list[tuple[list[Command], str]],
) -> None:
    asyncio.run(play(turns))


async def play(turns: list[tuple[list[Command], str]]) -> None:
    log = RefusingMemoryLog()
    desk = Desk(log)
    first_answers: dict[tuple[str, str], list[bytes]] = {}
    acknowledged: dict[int, bytes] = {}
    for commands, event in turns:
        log.refusal = FULL if event == "fails" else None
        head = log.head
        for command, outcome in zip(commands, await desk.ask(*commands), strict=True):
            if not isinstance(outcome, Answer):
                continue
            bodies = [entry.body for entry in outcome.entries]
            acknowledged |= {entry.seq: entry.body for entry in outcome.entries}
            if command.idempotency_key is not None:
                agent_id = command.draft.agent_id if isinstance(command, Append) else command.agent_id
                first = first_answers.setdefault((agent_id, command.idempotency_key), bodies)
                assert (first == bodies, outcome.replayed) == (True, first is not bodies)
            elif outcome.entries:
                assert outcome.entries[0].seq > head, "a command without a key is never a repeat"
        assert desk.writer.state.contexts.snapshot() == folded(log)
        log.refusal = None
        desk.writer.check()
        if event == "restarts":
            told = desk.told
            desk = desk.restart()
            desk.told.extend(told)
            assert desk.writer.state.contexts.snapshot() == folded(log)
    check_log(log, acknowledged, desk.told)
    desk.writer.close()


def check_log(log: Log, acknowledged: dict[int, bytes], told: Iterable[Entry]) -> None:
    """What was acknowledged and told is what is there, in order, without a gap."""
    bodies = {seq: log.record(seq).body for seq in range(1, log.head + 1)}
    assert acknowledged == bodies
    assert [(entry.seq, entry.body) for entry in told] == list(bodies.items())
    versions: dict[str, list[int]] = {}
    for unit in units_of(log):
        versions.setdefault(unit.context_id, []).append(unit.version)
    assert all(found == list(range(1, len(found) + 1)) for found in versions.values())
    assert len({unit.id for unit in units_of(log)}) == log.head


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
