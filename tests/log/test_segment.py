"""What a segment made durable is found, once and in order; what was torn was not; what was damaged is told."""

import contextlib
import logging
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.backup.repairing import repair
from engram_bus.backup.source import Source
from engram_bus.errors import BackupError, DataDirectoryError, StorageFull
from engram_bus.limits import SEGMENT_BYTES
from engram_bus.log.beside import beginning_beside, raws_beside
from engram_bus.log.directory import mark_index
from engram_bus.log.lmdb import LmdbLog, LogReader, readers
from engram_bus.log.memory import MemoryLog
from engram_bus.log.record import Record
from engram_bus.log.segment import (
    MISSING,
    SEGMENT,
    Segment,
    SegmentDamaged,
    content_of,
    make_segment,
    records_after,
)
from engram_bus.verify import verify
from tests.disk import opened, tenant
from tests.values import sealed, unit, unit_id

FIRST = 4_096
PLENTY = {"units_max": 99, "bytes_max": 10**7}


def commits(*sizes: int, payload: bytes = b"hi") -> list[list[Record]]:
    """The records of commits of so many units, which follow one another."""
    log = MemoryLog()
    made = []
    for size in sizes:
        made.append(sealed(log, [unit(log.head + 1 + index, payload=payload) for index in range(size)]))
        log.append(made[-1])
    return made


def fill(file: Path, made: list[list[Record]]) -> list[int]:
    """Write them; gives where each begins, and where the next would."""
    make_segment(file)
    segment = Segment(file)
    chain, places = bytes(32), [FIRST]
    for records in made:
        segment.append(records, chain)
        chain = records[-1].chain
        places.append(segment._at)
    segment.close()
    return places


def found(file: Path, head: int = 0) -> list[int]:
    content = content_of(file)
    assert content is not None
    return [seq for seq, _ in records_after(content, head)]


def test_what_was_appended_is_found_behind_the_head(tmp_path: Path) -> None:
    made = commits(1, 3, 2)
    fill(tmp_path / "s", made)
    content = content_of(tmp_path / "s")
    assert content is not None
    assert list(records_after(content, 0)) == [(record.unit.seq, record.raw) for records in made for record in records]
    assert [found(tmp_path / "s", head) for head in (1, 2, 6)] == [[2, 3, 4, 5, 6], [3, 4, 5, 6], []]
    assert content_of(tmp_path / "none") is None


def test_a_new_round_ends_before_what_is_left_of_the_last(tmp_path: Path) -> None:
    made = commits(1, 1, 1, 1)
    make_segment(tmp_path / "s")
    segment = Segment(tmp_path / "s")
    chain = bytes(32)
    for index, records in enumerate(made):
        if index == 3:
            segment.restart()  # The log has taken over the first three.
        segment.append(records, chain)
        chain = records[-1].chain
    segment.close()
    assert found(tmp_path / "s", 3) == [4]
    segment = Segment(tmp_path / "s")
    segment.close(is_empty=True)
    assert found(tmp_path / "s", 4) == []


@given(keep=st.integers(0, 10**6))
def test_a_torn_commit_ends_what_is_found(tmp_path_factory: pytest.TempPathFactory, keep: int) -> None:
    file = tmp_path_factory.mktemp("torn") / "s"
    places = fill(file, commits(2, 1, 3))
    last = places[2]
    size = places[3] - last - 8
    content = bytearray(file.read_bytes())
    content[last + keep % size : places[3]] = bytes(places[3] - last - keep % size)
    file.write_bytes(content)
    assert found(file) == [1, 2, 3]


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_bit_that_flips_before_the_last_commit_is_told(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    file = tmp_path_factory.mktemp("flip") / "s"
    places = fill(file, commits(2, 1, 3))
    content = bytearray(file.read_bytes())
    place = FIRST + at % (places[2] - FIRST)
    content[place] ^= 1 << bit
    file.write_bytes(content)
    between_two = [1, 2, 3, 4, 5, 6]
    with contextlib.suppress(SegmentDamaged):
        assert found(file) == between_two


def test_a_payload_cannot_be_taken_for_a_commit(tmp_path: Path) -> None:
    """A segment of another log, whole, as a payload of this one, whose own commit was torn."""
    fill(tmp_path / "other", commits(9))
    evil = (tmp_path / "other").read_bytes()[FIRST : FIRST + 8_192]
    places = fill(tmp_path / "s", commits(1, 1, payload=evil))
    content = bytearray((tmp_path / "s").read_bytes())
    content[places[1] + 20] ^= 1
    (tmp_path / "s").write_bytes(content)
    assert found(tmp_path / "s") == [1]


def test_a_commit_that_was_refused_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = commits(1, 1)
    fill(tmp_path / "s", made[:1])
    segment = Segment(tmp_path / "s")
    segment._at = fill(tmp_path / "s2", made[:1])[1]
    real, calls = os.fdatasync, []

    def failing_once(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(5, "the disk says no")
        real(fd)

    monkeypatch.setattr(os, "fdatasync", failing_once)
    with pytest.raises(OSError, match="the disk says no"):
        segment.append(made[1], made[0][-1].chain)
    segment.close()
    assert found(tmp_path / "s") == [1]


def test_what_is_no_segment_is_told(tmp_path: Path) -> None:
    make_segment(tmp_path / "s")
    assert (tmp_path / "s").stat().st_blocks * 512 >= SEGMENT_BYTES, "every block is written"
    os.truncate(tmp_path / "s", 9_000)
    with pytest.raises(SegmentDamaged, match="has 9000 bytes"):
        Segment(tmp_path / "s")
    (tmp_path / "s").write_bytes(b"engramS2" + bytes(SEGMENT_BYTES))
    with pytest.raises(SegmentDamaged, match="does not begin as a segment"):
        Segment(tmp_path / "s")


# --- Of a log --------------------------------------------------------------------------------------------------------


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A data directory whose bus was killed: units 1 to 4, of which LMDB holds 2."""
    with opened(tmp_path / "running") as log:
        log.append(sealed(log, [unit(1), unit(2)]))
        log.settle()
        log.append(sealed(log, [unit(3)]))
        log.append(sealed(log, [unit(4)]))
        shutil.copytree(tmp_path / "running", tmp_path / "killed")
    return tmp_path / "killed"


def segment_of(path: Path) -> Path:
    return tenant(path) / "log" / SEGMENT


def test_what_lmdb_had_not_taken_over_is_there_after_a_kill(killed: Path) -> None:
    reader = LogReader(tenant(killed) / "log")
    assert (reader.head(), [seq for seq, _ in reader.raws(4)]) == (4, [1, 2, 3, 4])
    assert [seq for seq, _ in reader.page(1, units_max=9, bytes_max=10**6)] == [2, 3, 4]
    reader.close()
    with opened(killed) as log:
        assert log.head == 4
        log.append(sealed(log, [unit(5)]))
        assert [entry.seq for entry in log.read(0, **PLENTY)] == [1, 2, 3, 4, 5]
        assert [log.seq_of_id(unit_id(seq)) for seq in range(1, 6)] == [1, 2, 3, 4, 5]


def test_a_reader_beside_the_bus_sees_what_was_acknowledged(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        for seq in range(1, 5):
            log.append(sealed(log, [unit(seq)]))
            if seq == 3:
                log.settle()
            path = tenant(tmp_path) / "log"
            assert beginning_beside(path).head == seq
            assert [at for at, _ in raws_beside(path, after=0, last=seq)] == list(range(1, seq + 1))


@pytest.mark.parametrize("what", ["missing", "cut", "header"])
def test_a_segment_that_is_lost_is_refused_where_it_may_have_held_something(killed: Path, what: str) -> None:
    harm(segment_of(killed), what)
    refused = pytest.raises(DataDirectoryError, match=r"segment is (missing|damaged), and the log was not closed")
    with refused, opened(killed):
        pass


@pytest.mark.parametrize("what", ["missing", "cut", "header"])
def test_a_segment_that_is_lost_is_made_again_where_it_held_nothing(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    with opened(tmp_path) as log:
        log.append(sealed(log, [unit(1)]))
    harm(segment_of(tmp_path), what)
    with opened(tmp_path) as log, caplog.at_level(logging.WARNING):
        assert log.head == 1
    assert "is made again: it held nothing" in caplog.text


def harm(file: Path, what: str) -> None:
    match what:
        case "missing":
            file.unlink()
        case "cut":
            os.truncate(file, 5_000)
        case "header":
            file.write_bytes(b"\0" * 100 + file.read_bytes()[100:])


def test_a_segment_damaged_in_the_middle_is_refused(killed: Path) -> None:
    file = segment_of(killed)
    content = bytearray(file.read_bytes())
    content[FIRST + 70] ^= 1
    file.write_bytes(content)
    told = "is damaged behind unit 2: unit 4 was recorded, and is whole"
    with pytest.raises(DataDirectoryError, match=f"log/{SEGMENT}: {told}"), opened(killed):
        pass
    reader = LogReader(tenant(killed) / "log")
    assert (reader.head(), reader.segment_damage) == (2, f"{SEGMENT} {told}")
    reader.close()


def test_a_segment_of_another_log_is_refused(killed: Path, tmp_path: Path) -> None:
    with opened(tmp_path / "other") as log:
        for seq in range(1, 10):
            log.append(sealed(log, [unit(seq, payload=b"other")]))
        shutil.copy(segment_of(tmp_path / "other"), segment_of(killed))
    mark_index(tenant(killed) / "index", clean=False)  # It does not say which segment there was.
    with pytest.raises(DataDirectoryError, match="does not follow"), opened(killed):
        pass


@pytest.mark.parametrize("of", ["before", "closed"])
def test_a_segment_that_is_not_the_one_the_log_was_left_with_is_refused(tmp_path: Path, of: str) -> None:
    """An older copy of it, or the one of a log that was closed, would hide what was recorded last."""
    with opened(tmp_path / "other"):
        pass
    with opened(tmp_path / "data") as log:
        log.append(sealed(log, [unit(1)]))
    before = segment_of(tmp_path / "data").read_bytes()
    with opened(tmp_path / "data") as log:
        log.append(sealed(log, [unit(2)]))
        log.settle()
    with opened(tmp_path / "data") as log:
        log.append(sealed(log, [unit(3)]))
        shutil.copytree(tmp_path / "data", tmp_path / "killed")
    content = before if of == "before" else segment_of(tmp_path / "other").read_bytes()
    segment_of(tmp_path / "killed").write_bytes(content)
    with (
        pytest.raises(DataDirectoryError, match="is not the one that the log was left with"),
        opened(tmp_path / "killed"),
    ):
        pass
    assert "is not the one that the log was left with" in str(verify(tmp_path / "killed").damage)


def test_a_log_is_killed_and_closed_in_turns(tmp_path: Path) -> None:
    path = tmp_path / "data-0"
    for at in range(1, 7):
        with opened(path) as log:
            assert log.head == at - 1
            log.append(sealed(log, [unit(at)]))
            if at % 2:
                path = tmp_path / f"data-{at}"
                shutil.copytree(tmp_path / f"data-{at - 1 if at % 2 else at}", path)
        if at % 2 == 0:
            shutil.copytree(path, tmp_path / f"data-{at}")
            path = tmp_path / f"data-{at}"
    with opened(path) as log:
        assert [entry.seq for entry in log.read(0, **PLENTY)] == [1, 2, 3, 4, 5, 6]


def test_an_older_mark_hides_nothing(killed: Path, tmp_path: Path) -> None:
    """It says that the log was closed: the segment is looked at all the same."""
    with opened(tmp_path / "closed"):
        pass
    shutil.copy(tenant(tmp_path / "closed") / "index" / "mark", tenant(killed) / "index" / "mark")
    with opened(killed) as log:
        assert [entry.seq for entry in log.read(0, **PLENTY)] == [1, 2, 3, 4]


def test_who_only_reads_misses_a_segment_too(killed: Path) -> None:
    segment_of(killed).unlink()
    with pytest.raises(DataDirectoryError, match=MISSING):
        LmdbLog(tenant(killed), writable=False)
    for take in (Source, repair):
        with pytest.raises((DataDirectoryError, BackupError), match=MISSING):
            take(killed)


def test_what_a_start_could_not_take_over_is_not_written_over(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: LmdbLog, records: object) -> None:
        raise StorageFull("no room")

    with monkeypatch.context() as patched:
        patched.setattr(LmdbLog, "_store", full)
        log = LmdbLog(tenant(killed))
        assert (log.head, log.settled) == (4, 2)
        with pytest.raises(StorageFull):
            log.append(sealed(log, [unit(5)]))
    log.append(sealed(log, [unit(5)]))
    log.close()
    with opened(killed) as again:
        assert [entry.seq for entry in again.read(0, **PLENTY)] == [1, 2, 3, 4, 5]


def test_a_reader_looks_again_at_what_is_being_written(killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = segment_of(killed).read_bytes()
    torn = bytearray(whole)
    torn[FIRST + 70] ^= 1
    reads = iter([bytes(torn), bytes(torn), whole])
    monkeypatch.setattr(readers, "content_of", lambda file: next(reads))
    reader = LogReader(tenant(killed) / "log")
    assert (reader.head(), reader.segment_damage) == (4, "")
    reader.close()
