"""Rows in a file are what was written, or refused."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.projections.search.tables import AppendedFile, Damaged, Table

FIELDS: list[Any] = [("seq", "<i8"), ("row", "i1", (3,))]


def rows(table: Table) -> list[tuple[int, list[int]]]:
    return list(zip(table.column("seq").tolist(), table.column("row").tolist(), strict=True))


@given(st.lists(st.integers(0, 2_000), max_size=4))
def test_what_was_flushed_is_there_again(tmp_path_factory: pytest.TempPathFactory, batches: list[int]) -> None:
    path = tmp_path_factory.mktemp("table") / "rows"
    written: list[tuple[int, list[int]]] = []
    for count in batches:
        table = Table(path, FIELDS, len(written))
        assert rows(table) == written
        for number in range(count):
            table.add(seq=number, row=[number % 100, 0, -1])
            written.append((number, [number % 100, 0, -1]))
        assert table.unwritten == count
        table.flush()
        assert (table.unwritten, table.count) == (0, len(written))
    assert rows(Table(path, FIELDS, len(written))) == written
    assert Table(path, FIELDS, len(written)).last("seq") == (written[-1][0] if written else 0)


def test_what_was_not_counted_goes(tmp_path: Path) -> None:
    table = Table(tmp_path / "rows", FIELDS, 0)
    for number in range(5):
        table.add(seq=number)
        table.flush()
    table = Table(tmp_path / "rows", FIELDS, 3)
    table.add(seq=30)
    table.flush()
    assert Table(tmp_path / "rows", FIELDS, 4).column("seq").tolist() == [0, 1, 2, 30]


def test_every_flipped_bit_and_every_missing_byte_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    table = Table(path, FIELDS, 0)
    for number in range(3):
        table.add(seq=number)
    table.flush()
    raw = path.read_bytes()
    for at in range(len(raw)):
        for bit in range(8):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :])
            with pytest.raises(Damaged):
                Table(path, FIELDS, 3)
        path.write_bytes(raw[:at])
        with pytest.raises(Damaged):
            Table(path, FIELDS, 3)


def test_what_failed_is_written_in_its_place_when_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    table = Table(path, FIELDS, 0)
    table.add(seq=1)
    table.flush()
    raw = path.read_bytes()
    path.unlink()
    table.add(seq=2)
    with pytest.raises(FileNotFoundError):
        table.flush()
    path.write_bytes(raw)
    table.flush()
    assert Table(path, FIELDS, 2).column("seq").tolist() == [1, 2]


def test_a_write_that_came_out_short_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = AppendedFile(tmp_path / "file", 0)
    monkeypatch.setattr("os.pwrite", lambda file, raw, at: len(raw) - 1)
    with pytest.raises(OSError, match="took 2 of 3"):
        file.append(b"abc")
