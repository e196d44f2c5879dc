"""Pages that a write comes across: whole ones are passed, and one that is not what it should be is named beforehand."""

import struct
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from engram_bus.errors import DataDamaged
from engram_bus.log.directory import mark_index
from engram_bus.log.lmdb import IndexReader
from engram_bus.log.pages import wrong_page
from engram_bus.verify import verify
from tests.disk import opened, tenant
from tests.simulation.damage_pages import PAGE_BYTES
from tests.values import sealed, unit

UNITS = 60


def fill(path: Path, units: int = UNITS) -> Path:
    """A log whose tree has a branch, and free pages; gives its file."""
    with opened(path) as log:
        for _ in range(units):
            log.append(sealed(log, [unit(log.head + 1, payload=bytes(400))]))
    return tenant(path) / "log" / "data.mdb"


def newest(file: Path) -> tuple[bytes, int]:
    """The meta page that counts, and its transaction."""
    content = file.read_bytes()
    metas = [content[at : at + PAGE_BYTES] for at in (0, PAGE_BYTES)]
    meta = max(metas, key=transaction)
    return meta, transaction(meta)


def transaction(meta: bytes) -> int:
    return int(struct.unpack_from("<Q", meta, 144)[0])


def root(file: Path, *, is_free: bool = False) -> int:
    return int(struct.unpack_from("<Q", newest(file)[0], 80 if is_free else 128)[0])


def change(file: Path, page: int, at: int, value: bytes) -> None:
    with file.open("r+b") as content:
        content.seek(page * PAGE_BYTES + at)
        content.write(value)


def last_leaf(file: Path) -> int:
    content, at = file.read_bytes(), root(file) * PAGE_BYTES
    (lower,) = struct.unpack_from("<H", content, at + 12)
    (node,) = struct.unpack_from("<H", content, at + lower - 2)
    return int(struct.unpack_from("<I", content, at + node)[0])


def test_whole_pages_are_passed_however_a_log_came_about(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        file = tenant(tmp_path) / "log" / "data.mdb"
        reader: lmdb.Transaction | None = None
        for number in range(120):
            size_bytes = (2, 400, 9_000, 60_000)[number % 4]
            log.append(sealed(log, [unit(log.head + 1, payload=bytes(size_bytes))]))
            if number == 20:
                reader = log._env.begin()  # What it sees is not used again: the lists of free pages grow.
            assert wrong_page(file, newest(file)[1]) is None
        assert reader is not None
        reader.abort()


@pytest.mark.parametrize(
    ("page_of", "at", "value", "what"),
    [
        (root, 0, b"\xff", "says it is page"),
        (root, 10, b"\2", "is of another kind"),
        (root, 12, b"\1", "has no such room"),
        (root, 16, b"\0\0", "leads out of itself"),
        (last_leaf, 0, b"\xff", "says it is page"),
        (last_leaf, 10, b"\4", "is of another kind"),
        (lambda file: root(file, is_free=True), 0, b"\xff", "says it is page"),
        (lambda file: root(file, is_free=True), PAGE_BYTES - 8, b"\xff" * 8, "lists"),
    ],
)
def test_a_page_that_an_append_would_trip_over_is_named_at_the_start(
    tmp_path: Path, page_of: Callable[[Path], int], at: int, value: bytes, what: str
) -> None:
    file = fill(tmp_path)
    page = page_of(file)
    change(file, page, at, value)
    with pytest.raises(DataDamaged, match=rf"data\.mdb is damaged: page {page} {what}"), opened(tmp_path):
        pass
    assert f"page {page} {what}" in verify(tmp_path).text()


def test_a_branch_that_leads_out_of_the_file_is_named(tmp_path: Path) -> None:
    file = fill(tmp_path)
    content, at = file.read_bytes(), root(file) * PAGE_BYTES
    (node,) = struct.unpack_from("<H", content, at + 16)
    change(file, root(file), node, struct.pack("<HH", 0xFFFF, 0xFF))
    with pytest.raises(DataDamaged, match="page 16777215 is not in the file"), opened(tmp_path):
        pass


def test_a_count_of_records_that_is_not_theirs_is_found_by_verify_too(tmp_path: Path) -> None:
    file = fill(tmp_path)
    change(file, newest(file)[1] % 2, 120, struct.pack("<Q", 9))
    with pytest.raises(DataDamaged, match=f"holds 8 records up to seq {UNITS}"), opened(tmp_path):
        pass
    assert f"holds 8 records up to seq {UNITS}" in verify(tmp_path).text()


def test_a_page_that_is_in_use_and_listed_as_free_is_found_by_verify(tmp_path: Path) -> None:
    file = fill(tmp_path)
    free = root(file, is_free=True)
    content = file.read_bytes()[free * PAGE_BYTES :]
    (node,) = struct.unpack_from("<H", content, 16)
    (count,) = struct.unpack_from("<Q", content, node + 16)
    _, *listed = struct.unpack_from(f"<{count}Q", content, node + 24)
    listed = sorted({*listed, last_leaf(file)}, reverse=True)
    change(file, free, node + 24, struct.pack(f"<{count}Q", *listed))
    assert "is in use, and listed as free" in verify(tmp_path).text()


def test_of_a_later_transaction_nothing_is_said(tmp_path: Path) -> None:
    file = fill(tmp_path)
    change(file, root(file), 0, b"\xff")
    assert wrong_page(file, newest(file)[1] + 1) is None


def test_a_page_of_the_index_that_is_wrong_is_found_wherever_it_is(tmp_path: Path) -> None:
    fill(tmp_path)
    file = tenant(tmp_path) / "index" / "data.mdb"
    content = file.read_bytes()
    leaves = [at for at in range(2 * PAGE_BYTES, len(content), PAGE_BYTES) if content[at + 10] == 2]
    found = 0
    for leaf in leaves:
        file.write_bytes(content[: leaf + 10] + b"\2\x50" + content[leaf + 12 :])  # As of a page that is never written.
        index = IndexReader(file.parent)
        found += index.wrong_page() is not None
        index.close()
    assert 5 <= found <= len(leaves), "one of each table at least; some pages are free"


def test_an_index_whose_pages_are_wrong_is_folded_again_by_a_start(tmp_path: Path) -> None:
    file = fill(tmp_path).parent.parent / "index" / "data.mdb"
    change(file, root(file), 0, b"\xff")
    mark_index(file.parent, clean=False)
    with opened(tmp_path) as log:
        assert log.seq_of_id(unit(UNITS).id) == UNITS
    assert verify(tmp_path).is_whole
