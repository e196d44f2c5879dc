"""Every log keeps what `log/contract.py` promises, and the log on disk does as the one in memory does; one that is
followed by another process, too, however far behind LMDB is."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engram_bus.log.contract import Log, Snapshot
from engram_bus.log.memory import MemoryLog
from engram_bus.log.record import GENESIS, Private, chain_follows
from tests.contracts.followed import opened_and_followed
from tests.disk import opened
from tests.values import NAMES, sealed, unit, unit_id

PLENTY = {"units_max": 100, "bytes_max": 1_000_000}
ALL: dict[str, Any] = {"after": 0, "before": None, "reverse": False, **PLENTY}


@pytest.fixture(params=["memory", "lmdb", "followed", "followed, LMDB behind"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Log]:
    match request.param:
        case "memory":
            yield MemoryLog()
        case "lmdb":
            with opened(tmp_path) as log:
                yield log
        case _:
            with opened_and_followed(tmp_path, behind=0 if request.param == "followed" else 2) as log:
                yield log


def seqs(entries: list[Any]) -> list[int]:
    return [entry.seq for entry in entries]


def test_a_new_log_is_empty(log: Log) -> None:
    assert (log.head, log.chain) == (0, GENESIS)
    assert log.read(0, **PLENTY) == []
    assert log.read_context("plan", **ALL) == []
    assert log.context_ids("", prefix="", limit=10) == []
    assert [log.seq_of_id(unit_id(1)), log.seq_of_key("ann", "k"), log.load_snapshot("contexts.1")] == [None] * 3


def test_what_is_read_is_what_was_appended(log: Log) -> None:
    records = sealed(log, [unit(1), unit(2, payload=b"\0" * 9)], private=Private(key="k", body_digest=b"d"))
    log.append(records)
    assert (log.head, log.chain) == (2, records[1].chain)
    assert [entry.body for entry in log.read(0, **PLENTY)] == [record.body for record in records]
    assert [log.record(seq) for seq in (1, 2)] == records
    assert chain_follows(log.record(2), log.record(1).chain)


def test_an_epoch_begins_at_the_first_unit(log: Log) -> None:
    assert [epoch.first_seq for epoch in log.epochs] == [1]
    assert log.epochs[0].name.isalnum()


@pytest.mark.parametrize("seq", [1, 2, 4, 99])
def test_a_record_that_is_not_next_is_refused_and_leaves_nothing(log: Log, seq: int) -> None:
    log.append(sealed(log, [unit(1)]))
    with pytest.raises(AssertionError):
        log.append(sealed(log, [unit(2, id=unit_id(88)), unit(seq, id=unit_id(77))]))
    assert (log.head, seqs(log.read(0, **PLENTY))) == (1, [1])
    assert log.seq_of_id(unit_id(88)) is None
    log.append(sealed(log, [unit(2)]))
    assert log.head == 2


def test_a_page_ends_at_its_units_and_at_its_bytes_but_holds_one(log: Log) -> None:
    log.append(sealed(log, [unit(seq, payload=bytes(1_000)) for seq in range(1, 6)]))
    size = len(log.record(1).body)
    assert seqs(log.read(1, units_max=2, bytes_max=10**6)) == [2, 3]
    assert seqs(log.read(0, units_max=9, bytes_max=2 * size)) == [1, 2]
    assert seqs(log.read(0, units_max=9, bytes_max=2 * size - 1)) == [1]
    assert seqs(log.read(0, units_max=9, bytes_max=0)) == [1]
    page: dict[str, Any] = {"after": 1, "before": 5, "units_max": 9}
    assert seqs(log.read_context("plan", **page, reverse=False, bytes_max=0)) == [2]
    assert seqs(log.read_context("plan", **page, reverse=True, bytes_max=2 * size)) == [4, 3]


def test_a_window_that_is_empty_holds_nothing(log: Log) -> None:
    log.append(sealed(log, [unit(1), unit(2)]))
    for after, before in [(0, 0), (0, 1), (1, 2), (2, 2), (2, None), (99, None), (99, 3), (5, 1)]:
        for reverse in (False, True):
            assert log.read_context("plan", **ALL | {"after": after, "before": before, "reverse": reverse}) == []


def test_names_that_cannot_be_are_nowhere(log: Log) -> None:
    """What is asked for is not checked as what is appended is: no odd name may look like damage."""
    log.append(sealed(log, [unit(1, relates_to=["x"])]))
    for odd in ("", "\0", "plan\0", "plan\0\0\0\0\0\0\0\0\1", "plan\0\0\0\0\0\0\0\0", "x" * 600, "\ud800", "x\0"):
        assert log.read_context(odd, **ALL) == []
        assert log.seq_of_id(odd) is None
        assert log.seqs_relating_to(odd, units_max=9) == []
        assert odd == "" or log.context_ids("", prefix=odd, limit=9) == []
        assert log.context_ids(odd, prefix="", limit=9) in ([], ["plan"])


def test_a_target_is_found_once_however_often_a_unit_names_it(log: Log) -> None:
    log.append(sealed(log, [unit(1, relates_to=["x", "x", "y"]), unit(2, relates_to=["x"])]))
    assert log.seqs_relating_to("x", units_max=9) == [1, 2]
    assert log.seqs_relating_to("x", units_max=1) == [1]
    assert log.seqs_relating_to("y", units_max=9) == [1]


def test_a_key_is_its_agents(log: Log) -> None:
    log.append(sealed(log, [unit(1, agent_id="ann")], private=Private(key="k")))
    log.append(sealed(log, [unit(2, agent_id="bob")], private=Private(key="k")))
    assert [log.seq_of_key(agent, "k") for agent in ("ann", "bob", "eve")] == [1, 2, None]
    assert log.seq_of_key("an", "nk") is None


def test_the_newest_snapshot_replaces_the_older(log: Log) -> None:
    log.append(sealed(log, [unit(1), unit(2)]))
    for snapshot in (Snapshot(1, b"one"), Snapshot(2, b"two")):
        log.save_snapshot("a.1", snapshot)
        assert log.load_snapshot("a.1") == snapshot
    assert log.load_snapshot("a.2") is None


def test_closing_twice_does_nothing(log: Log) -> None:
    log.close()
    log.close()


# --- The two do the same ---------------------------------------------------------------------------------------------

SEQS = st.integers(0, 40)
UNITS_MAX = st.integers(0, 12)
BYTES_MAX = st.sampled_from([0, 300, 2_000, 10**6])


class BothLogs(RuleBasedStateMachine):
    """The log on the disk beside the reference, under the same calls, closed and opened again at any moment."""

    @initialize()
    def open(self) -> None:
        self.exit = ExitStack()
        self.path = Path(self.exit.enter_context(TemporaryDirectory(dir="/var/tmp")))
        self.memory = MemoryLog()
        self.versions: dict[str, int] = {}
        self.reopen_disk()

    def reopen_disk(self) -> None:
        self.open_disk = ExitStack()
        self.disk: Log = self.open_disk.enter_context(self.opened())

    def opened(self) -> AbstractContextManager[Log]:
        return opened(self.path)

    def teardown(self) -> None:
        if hasattr(self, "exit"):
            self.open_disk.close()
            self.exit.close()

    def same(self, call: Callable[[Log], Any]) -> None:
        assert call(self.disk) == call(self.memory)

    @rule(
        contexts=st.lists(NAMES, min_size=1, max_size=8),
        relates_to=st.lists(NAMES, max_size=2),
        agent=NAMES,
        key=st.none() | st.sampled_from(["k", "k2", "k" * 256]),
        atomic=st.booleans(),
    )
    def append(self, contexts: list[str], relates_to: list[str], agent: str, key: str | None, atomic: bool) -> None:
        if key is not None and self.memory.seq_of_key(agent, key) is not None:
            key = None
        units = []
        for seq, context_id in enumerate(contexts, start=self.memory.head + 1):
            self.versions[context_id] = self.versions.get(context_id, 0) + 1
            version = self.versions[context_id]
            units.append(unit(seq, context_id=context_id, version=version, agent_id=agent, relates_to=relates_to))
        records = sealed(self.memory, units, private=Private(key=key, body_digest=b"d"), atomic=atomic)
        self.memory.append(records)
        self.disk.append(records)

    @rule()
    def close_and_open(self) -> None:
        self.open_disk.close()
        self.reopen_disk()

    @rule(after=SEQS, units_max=UNITS_MAX, bytes_max=BYTES_MAX)
    def read(self, after: int, units_max: int, bytes_max: int) -> None:
        self.same(lambda log: bodies(log.read(after, units_max=units_max, bytes_max=bytes_max)))

    @rule(
        chosen=st.data(),
        after=SEQS,
        before=st.none() | SEQS,
        reverse=st.booleans(),
        units_max=UNITS_MAX,
        bytes_max=BYTES_MAX,
    )
    def read_context(
        self, chosen: st.DataObject, after: int, before: int | None, reverse: bool, units_max: int, bytes_max: int
    ) -> None:
        window: dict[str, Any] = {
            "after": after,
            "before": before,
            "reverse": reverse,
            "units_max": units_max,
            "bytes_max": bytes_max,
        }
        name = chosen.draw(self.some_name())
        self.same(lambda log: bodies(log.read_context(name, **window)))

    @rule(after=st.just("") | NAMES, prefix=st.just("") | NAMES, limit=st.integers(0, 5))
    def context_ids(self, after: str, prefix: str, limit: int) -> None:
        self.same(lambda log: log.context_ids(after, prefix=prefix, limit=limit))

    @rule(chosen=st.data(), units_max=st.integers(0, 3))
    def relating(self, chosen: st.DataObject, units_max: int) -> None:
        name = chosen.draw(self.some_name())
        self.same(lambda log: log.seqs_relating_to(name, units_max=units_max))

    @rule(number=SEQS, agent=NAMES, key=st.sampled_from(["k", "k2", "k" * 256]))
    def look_up(self, number: int, agent: str, key: str) -> None:
        self.same(lambda log: log.seq_of_id(unit_id(number)))
        self.same(lambda log: log.seq_of_key(agent, key))

    @rule(name=st.sampled_from(["a.1", "b.1"]), state=st.binary(max_size=9))
    def keep(self, name: str, state: bytes) -> None:
        for log in (self.memory, self.disk):
            log.save_snapshot(name, Snapshot(self.memory.head, state))

    @rule(name=st.sampled_from(["a.1", "b.1"]))
    def kept(self, name: str) -> None:
        self.same(lambda log: log.load_snapshot(name))

    @invariant()
    def stand_at_the_same_place(self) -> None:
        if hasattr(self, "disk"):
            self.same(lambda log: (log.head, log.chain))

    def some_name(self) -> st.SearchStrategy[str]:
        return st.sampled_from(sorted(self.versions)) | NAMES if self.versions else NAMES


def bodies(entries: list[Any]) -> list[tuple[int, bytes]]:
    return [(entry.seq, entry.body) for entry in entries]


TestBothLogs = BothLogs.TestCase
TestBothLogs.settings = settings(max_examples=2 * settings().max_examples, stateful_step_count=25)


class FollowedAndMemory(BothLogs):
    """The same, read as a worker reads it, with now more and now fewer of the newest records in memory alone."""

    def opened(self) -> AbstractContextManager[Log]:
        return opened_and_followed(self.path)


TestFollowedAndMemory = FollowedAndMemory.TestCase
TestFollowedAndMemory.settings = settings(stateful_step_count=25)
