"""Recorded file operations become a lock workload, and what became of it becomes figures."""

from typing import Any

import msgspec
import pytest

from engram_bus.cli.replay.locks.contention import Contention, contention
from engram_bus.cli.replay.locks.fold import LockFold
from engram_bus.cli.replay.locks.workload import HOLD_SECONDS_MAX, Workload, parse
from engram_bus.cli.replay.recording import RecordingError
from engram_bus.limits import RESOURCE_BYTES_MAX
from tests.cli.test_lock_fold import HONEST, wrote


def workload(*rows: dict[str, Any], **how: Any) -> Workload:
    lines = [msgspec.json.encode({"agent": "ann", "op": "edit", "path": "a.py", **row}) for row in rows]
    return parse(b"\n".join(lines), **{"run": "r", **how})


def at(*seconds: int, **row: Any) -> list[dict[str, Any]]:
    return [{"ts": f"2026-01-01T00:{second // 60:02}:{second % 60:02}Z", **row} for second in seconds]


def test_who_writes_takes_the_file_under_the_name_of_the_run() -> None:
    found = workload({"op": "read"}, {"agent": "bob", "op": "write", "path": "src/./b.py", "bytes": 7})
    (edit,) = found.edits
    assert (edit.place, edit.agent_id, edit.op, edit.resource, edit.size_bytes) == (1, "bob", "write", "r/src/b.py", 7)
    assert (found.operations, list(found.by_agent)) == (2, ["bob"])


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "//etc/./passwd", "etc//passwd/"])
def test_no_path_leads_out_of_the_run(path: str) -> None:
    assert workload({"path": path}).edits[0].resource == "r/etc/passwd"


def test_a_long_path_is_cut_to_what_the_bus_takes() -> None:
    assert len(workload({"path": "é" * RESOURCE_BYTES_MAX}).edits[0].resource.encode()) <= RESOURCE_BYTES_MAX


def test_a_lock_is_held_until_its_agents_next_operation_as_recorded_and_not_for_ever() -> None:
    rows = [*at(0), *at(1, agent="bob"), *at(4, op="read"), *at(5), *at(300)]
    assert [edit.hold_seconds for edit in workload(*rows).edits] == [4, *[HOLD_SECONDS_MAX] * 3]


def test_pauses_are_cut_unless_all_of_them_are_wanted() -> None:
    rows = at(0, 1, 100)
    assert [edit.due_seconds for edit in workload(*rows).edits] == [0, 0.5, 1]
    assert [edit.due_seconds for edit in workload(*rows, pause_seconds_max=None).edits] == [0, 1, 100]


def test_a_workload_is_as_long_as_its_holds() -> None:
    assert workload(*at(0, 1), *at(2, agent="bob")).seconds == 0 + 1 + HOLD_SECONDS_MAX
    assert workload({"op": "read"}).seconds == 0


def test_without_times_every_agent_takes_a_step_a_second() -> None:
    found = workload({}, {"agent": "bob"}, {"agent": "bob"}, {})
    assert [(edit.agent_id, edit.due_seconds) for edit in found.edits] == [
        ("ann", 0),
        ("bob", 0),
        ("bob", 1),
        ("ann", 1),
    ]
    assert [edit.hold_seconds for edit in found.edits] == [1, 1, HOLD_SECONDS_MAX, HOLD_SECONDS_MAX]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"op": "delete"}, "line 2: op 'delete' is not one of read, edit, write"),
        ({"path": None}, "line 2 has no text in 'path'; every step needs agent and op and path"),
        ({"ts": "noon"}, "line 2: ts 'noon' is not a time"),
    ],
)
def test_what_is_no_operation_is_named_with_its_line(row: dict[str, Any], told: str) -> None:
    with pytest.raises(RecordingError) as caught:
        workload({}, row)
    assert str(caught.value) == told


# --- Figures ---------------------------------------------------------------------------------------------------------

EDITS = workload({}, {"agent": "bob"})


def figures(*units: Any, refusals: dict[str, int] | None = None, last_version: int = 8) -> Contention:
    fold = LockFold()
    for unit in units:
        fold.take(unit)
    return contention(EDITS, fold, refusals=refusals or {}, seconds=2.0, last_version=last_version)


def test_the_figures_of_an_honest_log() -> None:
    found = figures(*HONEST)
    assert found.is_clean
    assert (found.locks, found.waits, found.longest_queue, found.written, found.units) == (2, 1, 1, 2, 8)
    assert found.wait_ms is not None
    assert (found.wait_ms.p50, found.units_per_second, found.agents, found.files) == (4000, 4, 2, 1)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (figures(*HONEST[:7]), ["only 7 of 8 units came to the subscriber", "1 locks are held still"]),
        (figures(*HONEST[:2], refusals={"LOCK_HELD": 2}, last_version=2), ["1 locks are held still", "1 still wait"]),
        (figures(last_version=0), ["of 2 edits 0 were written and 0 refused"]),
        (figures(*HONEST, wrote("bob", "a", at=9), last_version=9), None),
    ],
    ids=["lost", "left behind", "not done", "broken promise"],
)
def test_what_is_missing_at_the_end_is_a_violation_too(found: Contention, told: list[str] | None) -> None:
    assert not found.is_clean
    assert found.violations == len(found.violations_told)
    if told is not None:
        assert list(found.violations_told) == told


def test_edits_that_a_lock_refused_are_no_violation() -> None:
    assert figures(refusals={"LOCK_HELD": 1, "FENCE_STALE": 1}, last_version=0).is_clean
