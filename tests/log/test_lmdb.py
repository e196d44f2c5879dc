"""The log on the disk: what it refuses to open, what it says of damage, and what it does when the disk refuses."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from engram_bus.errors import DataDirectoryError, LogDamaged, StorageFailed, StorageFull, StorageReadOnly
from engram_bus.limits import DISK_RESERVE_BYTES, SEGMENT_BYTES, TAIL_BYTES_MAX
from engram_bus.log.contract import Sizes, Snapshot
from engram_bus.log.index import seq_key
from engram_bus.log.lmdb import LmdbLog, cells
from engram_bus.log.lmdb import index as lmdb_index
from engram_bus.log.lmdb import log as lmdb_log
from tests.disk import opened, stored, tampering, tenant
from tests.values import sealed, unit, unit_id

PLENTY = {"units_max": 100, "bytes_max": 1_000_000}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed log of ten units."""
    with opened(tmp_path) as log:
        log.append(sealed(log, [unit(seq) for seq in range(1, 11)]))
    return tmp_path


def flip(path: Path, seq: int, at: int = -1) -> None:
    with tampering(path, "log") as txn:
        raw = bytearray(stored(txn, seq_key(seq)))
        raw[at] ^= 1
        txn.put(seq_key(seq), bytes(raw))


# --- What is not opened ----------------------------------------------------------------------------------------------


def test_a_missing_or_empty_log_is_not_a_new_one(path: Path) -> None:
    os.truncate(tenant(path) / "log" / "data.mdb", 0)
    with pytest.raises(DataDirectoryError, match="missing or empty, but this log was written before"), opened(path):
        pass
    shutil.rmtree(tenant(path) / "log")
    with pytest.raises(DataDirectoryError, match="missing or empty, but this log was written before"), opened(path):
        pass


def test_a_log_that_was_cut_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.append(sealed(log, [unit(seq, payload=bytes(3_000)) for seq in range(1, 30)]))
    file = tenant(tmp_path) / "log" / "data.mdb"
    os.truncate(file, file.stat().st_size - 5_000)
    with pytest.raises(DataDirectoryError, match="bytes shorter than its pages: it was cut"), opened(tmp_path):
        pass


def test_a_file_that_is_no_environment_is_refused(path: Path) -> None:
    (tenant(path) / "log" / "data.mdb").write_bytes(b"not LMDB" * 4_096)
    with pytest.raises(DataDirectoryError, match="cannot be opened"), opened(path):
        pass


def test_a_log_beside_another_identity_is_refused(path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    with opened(other):
        pass
    identity, theirs = (json.loads((tenant(at) / "identity").read_text()) for at in (path, other))
    (tenant(path) / "identity").write_text(json.dumps(identity | {"epochs": theirs["epochs"]}))
    with pytest.raises(DataDirectoryError, match=r"is another log than .* says"), opened(path):
        pass


@pytest.mark.parametrize("header", [None, b"\xc1", b"\x80"])
def test_a_lost_or_damaged_header_is_refused(path: Path, header: bytes | None) -> None:
    with tampering(path, "log") as txn:
        if header is None:
            txn.delete(seq_key(0))
        else:
            txn.put(seq_key(0), header)
    with pytest.raises(DataDirectoryError, match=r"lost its header|damaged header"), opened(path):
        pass


def test_a_log_with_a_gap_is_refused(path: Path) -> None:
    with tampering(path, "log") as txn:
        txn.delete(seq_key(4))
    with pytest.raises(DataDirectoryError, match="holds 9 records up to seq 10: it has gaps"), opened(path):
        pass


def test_a_damaged_newest_record_is_refused(path: Path) -> None:
    flip(path, 10)
    with pytest.raises(DataDirectoryError, match="the newest record, 10, does not match its checksum"), opened(path):
        pass


def test_what_was_begun_and_not_written_is_begun_again(tmp_path: Path) -> None:
    """A crash between the identity and the log, and one between the log and the note that it exists."""
    with opened(tmp_path):
        pass
    identity = tenant(tmp_path) / "identity"
    identity.write_text(identity.read_text().replace('"established":true', '"established":false'))
    with opened(tmp_path):
        pass
    assert '"established":true' in identity.read_text()
    identity.write_text(identity.read_text().replace('"established":true', '"established":false'))
    (tenant(tmp_path) / "log" / "data.mdb").unlink()
    with opened(tmp_path) as log:
        assert log.head == 0


# --- Damage in the middle --------------------------------------------------------------------------------------------


def test_a_read_ends_before_a_damaged_record_and_names_it(path: Path) -> None:
    flip(path, 4)
    with opened(path) as log:
        assert [entry.seq for entry in log.read(0, **PLENTY)] == [1, 2, 3]
        with pytest.raises(LogDamaged, match="record 4 does not match its checksum") as caught:
            log.read(3, **PLENTY)
        assert caught.value.details == {"seq": 4}
        assert [entry.seq for entry in log.read(4, **PLENTY)] == [5, 6, 7, 8, 9, 10]
        with pytest.raises(LogDamaged, match="record 4"):
            log.seq_of_id(unit_id(4))
        window: dict[str, Any] = {"before": None, "reverse": False, **PLENTY}
        assert [entry.seq for entry in log.read_context("plan", after=0, **window)] == [1, 2, 3]
        with pytest.raises(LogDamaged, match="record 4"):
            log.read_context("plan", after=3, **window)


def test_a_record_in_the_wrong_place_is_damage(path: Path) -> None:
    with tampering(path, "log") as txn:
        txn.put(seq_key(4), stored(txn, seq_key(5)))
    with opened(path) as log, pytest.raises(LogDamaged, match="record 4 holds unit 5 instead"):
        log.read(3, **PLENTY)


def test_what_lmdb_cannot_read_is_damage_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as log:
        monkeypatch.setattr(lmdb_log, "raws", raise_corrupted)
        monkeypatch.setattr(lmdb_index, "context_places", raise_corrupted)
        with pytest.raises(LogDamaged, match="cannot be read") as caught:
            log.read(3, **PLENTY)
        assert caught.value.details == {"seq": 4}
        with pytest.raises(LogDamaged, match="cannot be read"):
            log.read_context("plan", after=0, before=None, reverse=False, **PLENTY)


def raise_corrupted(*_: object) -> Iterator[Any]:
    raise lmdb.CorruptedError("a page is not what it was")


def test_a_damaged_record_that_has_to_be_indexed_keeps_the_log_closed(path: Path) -> None:
    flip(path, 4)
    (tenant(path) / "index" / "mark").unlink()
    with pytest.raises(DataDirectoryError, match="record 4 does not match its checksum"), opened(path):
        pass


# --- When the disk refuses -------------------------------------------------------------------------------------------


def failing(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """A flush ends as if the disk had answered so; `tests/simulation/test_disk.py` has real disks."""

    def no_flush(fd: int) -> None:
        raise OSError(code, "the disk says no")

    monkeypatch.setattr(os, "fdatasync", no_flush)


def failing_lmdb(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """What LMDB is to take over, likewise."""
    error = type("Refusal", (lmdb.Error,), {"code": code})("the disk says no")

    def no_key(seq: int) -> bytes:
        raise error

    for module in (lmdb_log, cells):
        monkeypatch.setattr(module, "seq_key", no_key)


@pytest.mark.parametrize(
    ("code", "refusal"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EROFS, StorageReadOnly),
        (errno.EACCES, StorageReadOnly),
        (errno.EIO, StorageFailed),
        (errno.EINVAL, StorageFailed),
    ],
)
def test_a_failed_commit_is_typed_and_leaves_nothing(
    path: Path, code: int, refusal: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(path) as log:
        with monkeypatch.context() as patched:
            failing(patched, code)
            with pytest.raises(refusal):
                log.append(sealed(log, [unit(11)]))
        assert log.head == 10
        assert [entry.seq for entry in log.read(8, **PLENTY)] == [9, 10]
        if refusal is StorageFailed:
            with pytest.raises(StorageFailed, match="appends go on after a restart"):
                log.probe()
        else:
            log.probe()
            log.append(sealed(log, [unit(11)]))
            assert log.head == 11


@pytest.mark.parametrize(
    ("free_bytes", "refusal"), [(0, StorageFull), (DISK_RESERVE_BYTES, StorageFailed)], ids=["full", "not full"]
)
def test_a_write_that_comes_out_short_is_told_by_what_the_disk_has_left(
    path: Path, free_bytes: int, refusal: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(path) as log:
        with monkeypatch.context() as patched:
            short_writes(patched, free_bytes=free_bytes)
            with pytest.raises(refusal, match="only a part of"):
                log.append(sealed(log, [unit(11)]))
        assert log.head == 10
        if refusal is StorageFull:
            log.probe()
            log.append(sealed(log, [unit(11)]))
    with opened(path) as log:
        assert log.head == (11 if refusal is StorageFull else 10)


def test_a_failed_commit_that_may_be_there_is_not_gone_on_behind_on_a_full_disk_either(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(path) as log, monkeypatch.context() as patched:
        short_writes(patched, free_bytes=0, count=1)
        with pytest.raises(StorageFailed, match="cannot be withdrawn"):
            log.append(sealed(log, [unit(11)]))
        patched.undo()
        with pytest.raises(StorageFailed):
            log.probe()


def short_writes(monkeypatch: pytest.MonkeyPatch, *, free_bytes: int, count: int = 99) -> None:
    """A write of more than a few bytes leaves its end out, and `free_bytes` are left then; after `count` all fail."""
    real, disk = os.pwrite, os.statvfs("/")
    left = os.statvfs_result((*disk[:1], 1, 2**40, free_bytes, free_bytes, *disk[5:]))
    writes: list[int] = []

    def short(fd: int, content: bytes, at: int) -> int:
        writes.append(at)
        if len(writes) > count:
            raise OSError(errno.ENOSPC, "no room")
        monkeypatch.setattr(os, "statvfs", lambda _: left)
        return real(fd, content[:100], at)

    monkeypatch.setattr(os, "pwrite", short)


def test_appends_stop_before_the_disk_is_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as log:
        real = os.statvfs(path)
        full = os.statvfs_result((real.f_bsize, 4096, 2**28, 9, 9, 0, 0, 0, 0, 255))
        monkeypatch.setattr(os, "statvfs", lambda _: full)
        with pytest.raises(StorageFull, match="36864 bytes are free") as caught:
            log.append(sealed(log, [unit(11)]))
        assert caught.value.limit == DISK_RESERVE_BYTES
        with pytest.raises(StorageFull):
            log.probe()
        assert log.head == 10
        monkeypatch.undo()
        log.probe()


@pytest.mark.parametrize(
    ("code", "refusal"), [(errno.ENOSPC, StorageFull), (errno.EROFS, StorageReadOnly), (errno.EIO, StorageFailed)]
)
def test_what_lmdb_does_not_take_over_stays_in_the_segment(
    path: Path, code: int, refusal: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(path) as log:
        log.append(sealed(log, [unit(11), unit(12)]))
        with monkeypatch.context() as patched:
            failing_lmdb(patched, code)
            with pytest.raises(refusal):
                log.settle()
        assert log.head == 12
        assert [entry.seq for entry in log.read(9, **PLENTY)] == [10, 11, 12]
        if refusal is not StorageFailed:
            log.append(sealed(log, [unit(13)]))
            log.settle()
    with opened(path) as log:
        assert [entry.seq for entry in log.read(9, **PLENTY)][:3] == [10, 11, 12]


def test_a_full_map_is_storage_full_when_the_tail_is_long(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    log = LmdbLog(tenant(tmp_path), size_bytes_max=200_000)
    try:
        log.append(sealed(log, [unit(1, payload=bytes(TAIL_BYTES_MAX))]))
        with pytest.raises(StorageFull, match="no room for the log"):
            log.append(sealed(log, [unit(2)]))
        with pytest.raises(StorageFull, match="no room for the log"):
            log.probe()
    finally:
        log.close()
    with opened(tmp_path) as larger:
        assert larger.head == 1
        larger.append(sealed(larger, [unit(2)]))


def test_a_commit_larger_than_the_segment_is_lmdbs_own(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.append(sealed(log, [unit(1)]))
        log.append(sealed(log, [unit(2, payload=bytes(SEGMENT_BYTES))]))
        log.append(sealed(log, [unit(3)]))
        assert [entry.seq for entry in log.read(0, units_max=9, bytes_max=10**8)] == [1, 2, 3]
        assert [log.seq_of_id(unit_id(seq)) for seq in (1, 2, 3)] == [1, 2, 3]


def test_a_failed_disk_is_not_marked_clean(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as log, monkeypatch.context() as patched:
        failing(patched, errno.EIO)
        with pytest.raises(StorageFailed):
            log.append(sealed(log, [unit(11)]))
    assert '"clean":false' in (tenant(path) / "index" / "mark").read_text()


def test_a_snapshot_that_finds_no_room_is_not_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as log:
        log.save_snapshot("a.1", Snapshot(1, b"one"))
        with monkeypatch.context() as patched:
            failing_lmdb(patched, errno.ENOSPC)
            log.save_snapshot("a.1", Snapshot(2, b"two"))
        assert log.load_snapshot("a.1") == Snapshot(1, b"one")


def test_a_snapshot_ahead_of_its_log_is_left_aside(path: Path) -> None:
    with opened(path) as log:
        log.save_snapshot("a.1", Snapshot(11, b"one"))
        assert log.load_snapshot("a.1") is None


def test_sizes_are_those_of_the_disk(path: Path) -> None:
    with opened(path) as log:
        sizes = log.sizes()
    assert isinstance(sizes, Sizes)
    assert 0 < sizes.log_bytes < 10**6
    assert 0 < sizes.index_bytes < 10**6
    assert sizes.free_bytes is not None
    assert sizes.free_bytes > 0
