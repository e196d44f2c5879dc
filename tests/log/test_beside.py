"""A log is read by a child that damage may end: what it cannot read is told, and what is behind it is read."""

import os
import re
import struct
from pathlib import Path

import pytest

from engram_bus.log import beside
from engram_bus.log.beside import Beginning, Wrong, beginning_beside, raws_beside
from engram_bus.log.index import seq_key
from tests.disk import opened, tampering, tenant
from tests.values import sealed, unit


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed log of nine units, of which the fifth and the seventh lie on pages of their own."""
    with opened(tmp_path) as log:
        for seq in range(1, 10):
            payload = bytes(9_000) if seq in (5, 7) else b"hi"
            log.append(sealed(log, [unit(seq, payload=payload)]))
    return tmp_path


def log_of(path: Path) -> Path:
    return tenant(path) / "log"


def raws_of(path: Path) -> dict[int, bytes]:
    with opened(path) as log:
        return {seq: log.record(seq).raw for seq in range(1, log.head + 1)}


def make_deadly(path: Path, *seqs: int) -> None:
    """Lengths that lead past the end of the file: reading those values ends the process."""
    file = log_of(path) / "data.mdb"
    content = bytearray(file.read_bytes())
    for seq in seqs:
        for found in re.finditer(re.escape(struct.pack("<HH", 1, 8) + seq_key(seq)), bytes(content)):
            struct.pack_into("<H", content, found.start() - 2, 0x3FFF)
    file.write_bytes(content)


def test_all_of_it_and_each_part_of_it(path: Path) -> None:
    raws = raws_of(path)
    assert dict(raws_beside(log_of(path), after=0, last=9)) == raws
    assert list(raws_beside(log_of(path), after=3, last=6)) == [(seq, raws[seq]) for seq in (4, 5, 6)]
    assert list(raws_beside(log_of(path), after=9, last=9)) == []
    beginning = beginning_beside(log_of(path))
    assert (beginning.head, beginning.wrong) == (9, "")
    assert beginning.header is not None


def test_missing_records_are_told_and_the_next_are_read(path: Path) -> None:
    raws = raws_of(path)
    with tampering(path, "log") as txn:
        for seq in (1, 4, 9):
            txn.delete(seq_key(seq))
    missing = Wrong("is missing")
    assert dict(raws_beside(log_of(path), after=0, last=9)) == raws | {1: missing, 4: missing, 9: missing}


def test_records_that_end_their_reader_are_told_and_the_next_are_read(path: Path) -> None:
    raws = raws_of(path)
    make_deadly(path, 5, 7)
    found = dict(raws_beside(log_of(path), after=0, last=9))
    for seq in (5, 7):
        wrong = found.pop(seq)
        assert isinstance(wrong, Wrong)
        assert wrong.what.startswith("cannot be read: reading it ended in SIG")
        del raws[seq]
    assert found == raws


def test_a_file_that_is_worse_than_that_is_taken_as_lost(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_DEATHS_MAX", 1)
    raws = raws_of(path)
    make_deadly(path, 5)
    found = dict(raws_beside(log_of(path), after=0, last=9))
    assert [seq for seq, raw in found.items() if isinstance(raw, bytes)] == [1, 2, 3, 4]
    assert found.keys() == raws.keys()


def test_what_cannot_be_opened_is_told(path: Path, tmp_path: Path) -> None:
    os.truncate(log_of(path) / "data.mdb", 3 * 4_096)
    beginning = beginning_beside(log_of(path))
    assert beginning == Beginning(wrong=beginning.wrong)
    assert "shorter than its pages: it was cut" in beginning.wrong
    assert [seq for seq, raw in raws_beside(log_of(path), after=0, last=3) if isinstance(raw, Wrong)] == [1, 2, 3]
    assert "cannot be opened" in beginning_beside(tmp_path / "nowhere").wrong


def test_a_lost_header_or_end_is_told(path: Path) -> None:
    with tampering(path, "log") as txn:
        txn.put(seq_key(0), b"\xc1")
        txn.put(b"zzz", b"")
    beginning = beginning_beside(log_of(path))
    assert (beginning.header, beginning.head) == (None, None)
    assert beginning.wrong == "the log ends with a key of 3 bytes"


def test_who_stops_listening_ends_the_child(path: Path) -> None:
    reading = raws_beside(log_of(path), after=0, last=9)
    assert next(reading)[0] == 1
    reading.close()
