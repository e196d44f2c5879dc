"""What a runner keeps is what the log says, however often it is stopped, damaged or folded again."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engram_bus.log.memory import MemoryLog
from engram_bus.log.record import RecordError
from engram_bus.projections import runner as running
from engram_bus.projections.contract import Damaged
from engram_bus.projections.runner import (
    ASKED_SECONDS,
    BEHIND_UNITS,
    COMMIT_SECONDS,
    COMMIT_UNITS,
    DOUBT_SECONDS,
    REACH_SECONDS,
    REST,
    SLICE_UNITS,
    Runner,
)
from engram_bus.units import WorkUnit
from tests.values import sealed, unit

NAME = "tally-1"


class Said(msgspec.Struct):
    """What a tally is."""

    cursor: int = 0
    by_agent: dict[str, int] = {}
    last_id: str = ""


class Tally:
    """How many units each agent said, in a file."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._file = path / "tally"
        self.said = msgspec.json.decode(self._file.read_bytes(), type=Said) if self._file.exists() else Said()
        self.cursor = self.said.cursor
        self.inherited: object = None
        self.is_closed = False
        self.is_damaged = False

    @property
    def taken(self) -> int:
        return self.said.cursor

    @property
    def uncommitted(self) -> int:
        return self.taken - self.cursor

    def is_of(self, source: object, head: int) -> bool:
        assert isinstance(source, InMemory)
        return self.cursor <= head and (self.cursor == 0 or source.unit(self.cursor).id == self.said.last_id)

    def take(self, units: Sequence[WorkUnit]) -> None:
        for one in units:
            assert one.seq == self.taken + 1
            self.said.by_agent[one.agent_id] = self.said.by_agent.get(one.agent_id, 0) + 1
            self.said.cursor, self.said.last_id = one.seq, one.id

    def check(self) -> None:
        if self.is_damaged:
            raise Damaged("the tally is not what was written")

    def commit(self) -> None:
        written = self._file.with_suffix(".new")
        written.write_bytes(msgspec.json.encode(self.said))
        written.replace(self._file)
        self.cursor = self.taken

    def succeed(self, older: "Tally") -> None:
        self.inherited = older.inherited

    def close(self) -> None:
        self.is_closed = True


class InMemory:
    """A log in memory as a source, of which a unit may be unreadable."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        self.unreadable: int | None = None

    def say(self, count: int) -> None:
        head = self.head
        units = [unit(seq, agent_id=f"agent{seq % 3}") for seq in range(head + 1, head + count + 1)]
        self.log.append(sealed(self.log, units))

    @property
    def head(self) -> int:
        return self.log.head

    def units(self, after: int, *, units_max: int, bytes_max: int) -> list[WorkUnit]:
        if self.unreadable == after + 1:
            raise RecordError("the checksum is wrong")
        found = [entry.unit for entry in self.log.read(after, units_max=units_max, bytes_max=bytes_max)]
        return [one for one in found if self.unreadable is None or one.seq < self.unreadable]

    def unit(self, seq: int) -> WorkUnit:
        return self.log.record(seq).unit

    def chain(self, seq: int) -> bytes:
        return self.log.record(seq).chain

    def before(self, unit: WorkUnit, count: int) -> Sequence[WorkUnit]:
        raise AssertionError("a tally does not look back")

    def told(self, head: int) -> dict[str, int]:
        counts: dict[str, int] = {}
        for seq in range(1, head + 1):
            agent = self.unit(seq).agent_id
            counts[agent] = counts.get(agent, 0) + 1
        return counts


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def until_idle(runner: Runner[Tally], clock: Clock) -> None:
    while (seconds := runner.idle_seconds()) is not None:
        clock.seconds += seconds
        runner.step()


class Kept:
    """A runner in a directory, its log and its clock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = InMemory()
        self.clock = Clock()
        self.runner = self.opened()

    def opened(self) -> Runner[Tally]:
        return Runner(self.source, self.path, NAME, Tally, now=self.clock)

    def idle(self) -> Tally:
        until_idle(self.runner, self.clock)
        return self.runner.projection

    def say(self, count: int) -> None:
        self.source.say(count)
        self.runner.hear(self.source.head)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


class Life(RuleBasedStateMachine):
    """A runner that is rung, asked, stopped, damaged and told to fold again, in any order."""

    @initialize()
    def begin(self) -> None:
        self.directory = TemporaryDirectory()
        self.kept = Kept(Path(self.directory.name))

    @rule(count=st.integers(1, 3 * SLICE_UNITS))
    def say(self, count: int) -> None:
        self.kept.source.say(count)

    @rule()
    def hear(self) -> None:
        self.kept.runner.hear(self.kept.source.head)

    @rule(times=st.integers(1, 8))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.kept.runner.step()

    @rule(seconds=st.sampled_from([0.1, COMMIT_SECONDS]))
    def wait(self, seconds: float) -> None:
        self.kept.clock.seconds += seconds

    @rule()
    def ask(self) -> None:
        head = self.kept.source.head
        if self.kept.runner.reach(head):
            assert self.kept.runner.projection.taken == head
        else:
            assert head - self.kept.runner.projection.taken > BEHIND_UNITS

    @rule()
    def rebuild(self) -> None:
        self.kept.runner.rebuild()

    @rule()
    def die(self) -> None:
        self.kept.runner = self.kept.opened()

    @rule(which=st.integers(0, 1), raw=st.sampled_from([b"", b"{", b'{"cursor": 1000000}']))
    def die_and_be_damaged(self, which: int, raw: bytes) -> None:
        files = sorted(self.kept.path.glob(f"{NAME}.*/tally"))
        if len(files) > which:
            files[which].write_bytes(raw)
        self.kept.runner = self.kept.opened()

    @rule()
    def idle(self) -> None:
        projection = self.kept.idle()
        assert projection.cursor == projection.taken == self.kept.runner.head
        assert self.kept.runner.progress.rebuilt is None
        assert [one.name for one in self.kept.path.iterdir()] == [f"{NAME}.{self.kept.runner.progress.generation}"]

    @invariant()
    def what_answers_is_what_the_log_says(self) -> None:
        projection, progress = self.kept.runner.projection, self.kept.runner.progress
        assert projection.said.by_agent == self.kept.source.told(projection.taken)
        assert progress.cursor <= progress.taken <= self.kept.runner.head <= self.kept.source.head
        assert not projection.is_closed

    def teardown(self) -> None:
        self.directory.cleanup()


TestLife = Life.TestCase


def test_it_commits_by_number_and_by_time(kept: Kept) -> None:
    kept.say(COMMIT_UNITS + SLICE_UNITS)
    while kept.runner.is_behind:
        kept.runner.step()
    assert COMMIT_UNITS <= kept.runner.progress.cursor < COMMIT_UNITS + SLICE_UNITS
    assert kept.runner.idle_seconds() == COMMIT_SECONDS
    assert kept.idle().cursor == COMMIT_UNITS + SLICE_UNITS


def test_who_asks_waits_for_some_units_and_not_for_very_many(kept: Kept) -> None:
    kept.source.say(BEHIND_UNITS + 1)
    assert not kept.runner.reach(kept.source.head)
    assert kept.runner.reach(BEHIND_UNITS)
    assert kept.runner.projection.taken >= BEHIND_UNITS


def test_who_asks_does_not_wait_for_units_that_take_long(kept: Kept) -> None:
    class Slow(Tally):
        def take(self, units: Sequence[WorkUnit]) -> None:
            super().take(units)
            kept.clock.seconds += REACH_SECONDS / 2

    kept.runner = Runner(kept.source, kept.path / "slow", NAME, Slow, now=kept.clock)
    kept.source.say(3 * SLICE_UNITS)
    assert not kept.runner.reach(3 * SLICE_UNITS)
    assert kept.runner.projection.taken == 2 * SLICE_UNITS
    assert kept.runner.reach(3 * SLICE_UNITS)


def timed(kept: Kept) -> Runner[Tally]:
    """One that takes a second for each step."""

    class Timed(Tally):
        def take(self, units: Sequence[WorkUnit]) -> None:
            super().take(units)
            kept.clock.seconds += 1.0

    return Runner(kept.source, kept.path / "timed", NAME, Timed, now=kept.clock)


def test_where_the_log_outruns_it_the_bus_has_the_processor(kept: Kept) -> None:
    kept.runner = timed(kept)
    kept.say(BEHIND_UNITS)
    kept.runner.step()
    assert kept.runner.idle_seconds() == 0.0, "it can keep up with what it has seen"
    kept.say(BEHIND_UNITS)
    kept.runner.step()
    assert kept.runner.idle_seconds() == REST
    kept.runner.step()
    assert kept.runner.progress.taken == 2 * SLICE_UNITS
    kept.clock.seconds += REST
    kept.runner.step()
    assert kept.runner.progress.taken == 3 * SLICE_UNITS
    assert kept.runner.idle_seconds() == 0.0, "no more was said meanwhile"
    assert kept.idle().cursor == 2 * BEHIND_UNITS


def test_it_does_not_rest_from_somebody_who_asks(kept: Kept) -> None:
    kept.runner = timed(kept)
    kept.say(2 * BEHIND_UNITS)
    kept.runner.step()
    kept.say(BEHIND_UNITS)
    kept.runner.step()
    assert kept.runner.idle_seconds() == REST
    assert not kept.runner.reach(kept.source.head), "it is too far behind for an answer"
    asked_until = kept.clock.seconds + ASKED_SECONDS
    while kept.clock.seconds + 1.0 < asked_until:
        assert kept.runner.idle_seconds() == 0.0
        kept.say(BEHIND_UNITS)
        kept.runner.step()
    kept.say(BEHIND_UNITS)
    kept.runner.step()
    assert kept.runner.idle_seconds() == REST, "nobody asked lately"


def test_the_old_one_answers_until_the_new_one_has_all(kept: Kept) -> None:
    kept.say(10 * SLICE_UNITS)
    old = kept.idle()
    old.inherited = object()
    kept.runner.rebuild()
    new = None
    while new is None:
        assert kept.runner.projection is old
        kept.say(1)
        assert kept.runner.reach(kept.source.head)
        assert kept.runner.progress.rebuilt is not None
        kept.runner.step()
        if kept.runner.progress.rebuilt is None:
            new = kept.runner.projection
    assert new is not old
    assert (old.is_closed, new.inherited) == (True, old.inherited)
    assert (new.taken, kept.runner.progress.generation) == (kept.source.head, 2)
    assert [one.name for one in kept.path.iterdir()] == [f"{NAME}.2"]


def test_what_is_folded_again_gets_there_even_where_the_other_one_never_does(kept: Kept) -> None:
    kept.say(20 * SLICE_UNITS)
    kept.idle()
    kept.runner.rebuild()
    while kept.runner.progress.generation == 1:
        kept.say(SLICE_UNITS // 8)
        kept.runner.hear(kept.source.head)
        kept.runner.step()
        assert kept.source.head < 100 * SLICE_UNITS
    assert kept.idle().said.by_agent == kept.source.told(kept.source.head)


def test_folding_again_goes_on_after_a_restart(kept: Kept) -> None:
    kept.say(3 * COMMIT_UNITS)
    kept.idle()
    kept.runner.rebuild()
    while (kept.runner.progress.rebuilt or 0) < 2 * COMMIT_UNITS:
        kept.runner.step()
    kept.runner = kept.opened()
    assert kept.runner.progress.rebuilt is not None
    assert kept.runner.progress.rebuilt >= COMMIT_UNITS
    assert kept.runner.progress.generation == 1
    kept.idle()
    assert kept.runner.progress.generation == 2


def test_if_the_old_one_is_damaged_the_new_one_answers(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    kept.say(2 * COMMIT_UNITS)
    kept.idle()
    kept.runner.rebuild()
    while (kept.runner.progress.rebuilt or 0) < COMMIT_UNITS + SLICE_UNITS:
        kept.runner.step()
    (kept.path / f"{NAME}.1" / "tally").write_bytes(b"?")
    kept.runner = kept.opened()
    assert (kept.runner.progress.generation, kept.runner.progress.rebuilt) == (2, None)
    assert COMMIT_UNITS <= kept.runner.projection.cursor < 2 * COMMIT_UNITS
    assert f"{NAME}.1 is built again" in caplog.text


def test_one_that_is_doubted_and_damaged_is_folded_again(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    kept.say(100)
    damaged = kept.idle()
    damaged.inherited, damaged.is_damaged = object(), True
    assert kept.runner.doubt("an answer failed")
    assert (kept.runner.projection.taken, damaged.is_closed) == (0, True)
    assert kept.runner.projection.inherited is damaged.inherited
    assert f"{NAME}.1 is built again: an answer failed; the tally is not what was written" in caplog.text
    assert kept.idle().said.by_agent == kept.source.told(100)
    assert [one.name for one in kept.path.iterdir()] == [f"{NAME}.2"]


def test_of_two_the_other_one_answers_where_one_is_damaged(kept: Kept) -> None:
    kept.say(COMMIT_UNITS)
    kept.idle().is_damaged = True
    kept.runner.rebuild()
    while not (taken := kept.runner.progress.rebuilt):
        kept.runner.step()
    assert kept.runner.doubt("an answer failed")
    assert (kept.runner.projection.taken, kept.runner.progress.rebuilt) == (taken, None)


def test_one_that_is_doubted_and_whole_stays_and_is_not_looked_at_again_soon(kept: Kept) -> None:
    kept.say(100)
    whole = kept.idle()
    assert not kept.runner.doubt("an answer failed")
    whole.is_damaged = True
    assert not kept.runner.doubt("another one failed")
    assert kept.runner.projection is whole
    kept.clock.seconds += DOUBT_SECONDS
    assert kept.runner.doubt("another one failed")


def test_one_that_does_not_even_close_is_given_up(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    class PanicException(BaseException):
        pass

    def panics() -> None:
        raise PanicException("poisoned")

    kept.say(10)
    damaged = kept.idle()
    damaged.is_damaged = True
    damaged.close = panics  # type: ignore[method-assign]
    assert kept.runner.doubt("an answer failed")
    assert f"{NAME}.1 did not close: poisoned" in caplog.text
    assert kept.idle().said.by_agent == kept.source.told(10)


def test_where_there_is_none_over_a_log_that_is_said(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    assert not caplog.text, "a new log has nothing to be built from"
    kept.say(10)
    kept.runner = kept.opened()
    assert not caplog.text, "an empty one is one"
    for directory in kept.path.iterdir():
        directory.rename(kept.path / "elsewhere")
    kept.runner = kept.opened()
    assert f"holds no {NAME}: it is built from the log" in caplog.text


def test_one_of_another_log_is_not_used(kept: Kept) -> None:
    kept.say(50)
    kept.idle()
    kept.source = InMemory()
    kept.source.say(10)
    kept.runner = kept.opened()
    assert kept.runner.progress.taken == 0
    assert kept.idle().said.by_agent == kept.source.told(10)


def test_it_ends_where_the_log_cannot_be_read_and_answers_what_is_before(kept: Kept) -> None:
    kept.source.unreadable = 40
    kept.say(100)
    assert kept.idle().cursor == 39
    assert kept.runner.reach(100)
    assert kept.runner.projection.taken == 39


def test_with_a_full_disk_it_waits_and_goes_on(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.say(100)
    kept.runner.step()
    with monkeypatch.context() as full:
        full.setattr("engram_bus.log.room.DISK_RESERVE_BYTES", 2**80)
        full.setattr("engram_bus.log.room.DISK_RESERVE_DIVISOR", 1)
        for _ in range(20):
            kept.clock.seconds += kept.runner.idle_seconds() or 0.0
            kept.runner.step()
        assert (kept.runner.progress.taken, kept.runner.progress.cursor) == (SLICE_UNITS, 0)
        assert kept.runner.idle_seconds() == pytest.approx(running.ROOM_SECONDS)
        assert not kept.runner.reach(100)
    assert kept.idle().cursor == 100
