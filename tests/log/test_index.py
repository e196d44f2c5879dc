"""The index is only what folding the log gives: made again when it cannot be trusted, refused when the log lost."""

import logging
import os
import shutil
from pathlib import Path
from typing import NoReturn

import lmdb
import pytest

from engram_bus.errors import DataDirectoryError, LogDamaged, StorageFull
from engram_bus.log import directory
from engram_bus.log.contract import Snapshot
from engram_bus.log.index import (
    RECORD_TABLES,
    Table,
    context_key,
    entry_seq,
    idempotency_key,
    key_seq,
    may_be_name,
    puts,
    seq_key,
    target_prefix,
)
from engram_bus.log.lmdb import LmdbLog
from engram_bus.log.lmdb import index as lmdb_index
from engram_bus.log.lmdb import log as lmdb_log
from engram_bus.log.memory import MemoryLog
from engram_bus.log.record import Private, Record
from tests.disk import opened, stored, tampering, tenant
from tests.values import sealed, unit, unit_id

ALL = {"after": 0, "before": None, "reverse": False, "units_max": 999, "bytes_max": 10**6}


def fill(path: Path, units: int = 5, agent_id: str = "ann") -> None:
    """Units 1, 2, ... each of which relates to unit 1; the first has the idempotency key `k`."""
    with opened(path) as log:
        for seq in range(log.head + 1, log.head + 1 + units):
            private = Private(key="k", body_digest=b"d") if seq == 1 else Private()
            log.append(sealed(log, [unit(seq, agent_id=agent_id, relates_to=[unit_id(1)])], private=private))
        log.save_snapshot("a.1", Snapshot(log.head, b"state"))


def lookups_are_right(log: LmdbLog, units: int = 5, agent_id: str = "ann") -> bool:
    seqs = list(range(1, units + 1))
    return (
        [log.seq_of_id(unit_id(seq)) for seq in seqs] == seqs
        and log.seqs_relating_to(unit_id(1), units_max=999) == seqs
        and [entry.seq for entry in log.read_context("plan", **ALL)] == seqs  # type: ignore[arg-type]
        and log.context_ids("", prefix="", limit=9) == ["plan"]
        and log.seq_of_key(agent_id, "k") == 1
    )


# --- The keys --------------------------------------------------------------------------------------------------------


def test_a_record_is_found_under_each_of_its_keys() -> None:
    record = sealed(MemoryLog(), [unit(1, relates_to=["x", "y", "x"])], private=Private(key="k"))[0]
    seq = seq_key(1)
    found = puts([record])
    assert {table: sorted(entries) for table, entries in found.items()} == {
        Table.IDS: [(unit_id(1).encode(), seq)],
        Table.CONTEXTS: [(b"plan\0" + seq, seq)],
        Table.TARGETS: [(b"x\0" + seq, b""), (b"y\0" + seq, b"")],
        Table.KEYS: [(idempotency_key("ann", "k"), seq)],
    }
    assert {entry_seq(table, *entry) for table, entries in found.items() for entry in entries} == {1}
    assert set(found) == set(RECORD_TABLES)


def test_keys_lie_in_the_order_of_the_log_and_no_name_holds_another() -> None:
    assert sorted([context_key("a", 256), context_key("a", 2), context_key("a:b", 1), context_key("a b", 1)]) == [
        context_key("a", 2),
        context_key("a", 256),
        context_key("a b", 1),
        context_key("a:b", 1),
    ]
    assert key_seq(context_key("a", 256)) == 256
    assert not context_key("a:b", 1).startswith(target_prefix("a"))
    assert idempotency_key("ab", "c") != idempotency_key("a", "bc")


def test_what_may_be_a_name() -> None:
    assert all(may_be_name(name) for name in ("a", "é", "x" * 256))
    assert not any(may_be_name(name) for name in ("", "x" * 257, "é" * 129, "a\0", "\ud800"))


# --- Folded again ----------------------------------------------------------------------------------------------------


def test_after_a_power_cut_it_is_folded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    kill_minus_9(tmp_path)
    with tampering(tmp_path, "index", Table.IDS) as txn:
        txn.put(unit_id(3).encode(), seq_key(1))  # What a power cut tore may say anything.
    monkeypatch.setattr(directory, "boot_id", lambda: "another boot")
    with opened(tmp_path) as log:
        assert lookups_are_right(log)
        assert log.load_snapshot("a.1") is None


def test_after_a_clean_end_another_boot_uses_it_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    monkeypatch.setattr(directory, "boot_id", lambda: "another boot")
    with opened(tmp_path) as log:
        assert log.load_snapshot("a.1") == Snapshot(5, b"state")
        assert '"clean":false' in (tenant(tmp_path) / "index" / "mark").read_text()


def test_torn_pages_are_not_even_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    kill_minus_9(tmp_path)
    file = tenant(tmp_path) / "index" / "data.mdb"
    file.write_bytes(os.urandom(file.stat().st_size))
    monkeypatch.setattr(directory, "boot_id", lambda: "another boot")
    with opened(tmp_path) as log:
        assert lookups_are_right(log)


def test_after_kill_minus_9_it_is_used_as_it_is_and_only_the_rest_is_folded(tmp_path: Path) -> None:
    fill(tmp_path)
    shutil.copytree(tenant(tmp_path) / "index", tmp_path / "older")
    fill(tmp_path)
    shutil.rmtree(tenant(tmp_path) / "index")
    (tmp_path / "older").rename(tenant(tmp_path) / "index")
    kill_minus_9(tmp_path)
    with opened(tmp_path) as log:
        assert lookups_are_right(log, units=10)
        assert log.load_snapshot("a.1") == Snapshot(5, b"state")


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "no file", "no directory"])
def test_a_damaged_index_is_folded_again_not_refused(tmp_path: Path, damage: str) -> None:
    fill(tmp_path, units=200)
    file = tenant(tmp_path) / "index" / "data.mdb"
    match damage:
        case "cut":
            os.truncate(file, 3 * 4096)
        case "empty":
            os.truncate(file, 0)
        case "garbage":
            file.write_bytes(bytes(range(256)) * 64)
        case "no file":
            file.unlink()
        case _:
            shutil.rmtree(file.parent)
    with opened(tmp_path) as log:
        assert lookups_are_right(log, units=200)


def test_the_index_of_another_history_is_folded_again(tmp_path: Path) -> None:
    """A log restored to a copy that went on differently, beside the index it had before."""
    fill(tmp_path, units=2)
    shutil.copytree(tmp_path, tmp_path / "copy")
    fill(tmp_path / "copy", units=3, agent_id="bob")
    fill(tmp_path, units=3)
    shutil.rmtree(tenant(tmp_path) / "log")
    shutil.move(tenant(tmp_path / "copy") / "log", tenant(tmp_path) / "log")
    with opened(tmp_path) as log:
        assert lookups_are_right(log)
        assert log.record(5).unit.agent_id == "bob"
        assert log.load_snapshot("a.1") is None


def test_a_log_that_lost_its_end_is_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    shutil.copytree(tenant(tmp_path) / "log", tmp_path / "older")
    fill(tmp_path)
    shutil.rmtree(tenant(tmp_path) / "log")
    (tmp_path / "older").rename(tenant(tmp_path) / "log")
    with pytest.raises(DataDirectoryError, match=r"knows 10 records, .* holds 5: the log is an older copy"):
        fill(tmp_path)
    assert (tenant(tmp_path) / "index" / "data.mdb").exists()


# --- Checked when it is asked ----------------------------------------------------------------------------------------


def test_an_entry_that_leads_elsewhere_is_damage_not_an_answer(tmp_path: Path) -> None:
    fill(tmp_path)
    for table, key in [
        (Table.IDS, unit_id(3).encode()),
        (Table.CONTEXTS, context_key("plan", 2)),
        (Table.KEYS, idempotency_key("ann", "k")),
    ]:
        with tampering(tmp_path, "index", table) as txn:
            txn.put(key, seq_key(4 if table is Table.KEYS else 99))
    with opened(tmp_path) as log:
        with pytest.raises(LogDamaged, match="record 99 is missing"):
            log.seq_of_id(unit_id(3))
        with pytest.raises(LogDamaged, match="leads from idempotency key 'k' to another at 4"):
            log.seq_of_key("ann", "k")
        with pytest.raises(LogDamaged, match="record 99 is missing"):
            log.read_context("plan", **ALL | {"after": 1})  # type: ignore[arg-type]


def test_an_entry_of_another_context_is_damage(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.append(sealed(log, [unit(1), unit(2, context_id="other", version=1)]))
    with tampering(tmp_path, "index", Table.CONTEXTS) as txn:
        txn.put(context_key("plan", 1), seq_key(2))
    with opened(tmp_path) as log, pytest.raises(LogDamaged, match="record 2 is not version 1 of 'plan'") as caught:
        log.read_context("plan", **ALL)  # type: ignore[arg-type]
    assert caught.value.details == {"seq": 2}


def test_a_unit_at_another_version_of_its_context_is_damage_not_a_unit_twice(tmp_path: Path) -> None:
    fill(tmp_path)
    with tampering(tmp_path, "index", Table.CONTEXTS) as txn:
        txn.put(context_key("plan", 3), seq_key(2))
    with opened(tmp_path) as log:
        assert [entry.seq for entry in log.read_context("plan", **ALL)] == [1, 2]  # type: ignore[arg-type]
        with pytest.raises(LogDamaged, match="record 2 is not version 3 of 'plan'"):
            log.read_context("plan", **ALL | {"after": 2})  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [b"\xff\0" + seq_key(1), b"\3", b"none of its nine bytes"])
def test_a_context_whose_name_is_none_is_damage(tmp_path: Path, key: bytes) -> None:
    fill(tmp_path)
    with tampering(tmp_path, "index", Table.CONTEXTS) as txn:
        txn.put(key, seq_key(1))
    with opened(tmp_path) as log, pytest.raises(LogDamaged, match=r"names a context|which names none"):
        log.context_ids("", prefix="", limit=9)


def test_a_lost_version_is_damage(tmp_path: Path) -> None:
    fill(tmp_path)
    with tampering(tmp_path, "index", Table.CONTEXTS) as txn:
        txn.delete(context_key("plan", 3))
    with opened(tmp_path) as log:
        with pytest.raises(LogDamaged, match="has a gap"):
            log.read_context("plan", **ALL)  # type: ignore[arg-type]
        with pytest.raises(LogDamaged, match="lost version 3"):
            log.read_context("plan", **ALL | {"after": 1, "before": 4})  # type: ignore[arg-type]


def test_a_damaged_snapshot_is_left_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path)
    with tampering(tmp_path, "index", Table.STATE) as txn:
        kept = bytearray(stored(txn, b"snapshot:a.1"))
        kept[-1] ^= 1
        txn.put(b"snapshot:a.1", bytes(kept))
    with opened(tmp_path) as log, caplog.at_level(logging.WARNING):
        assert log.load_snapshot("a.1") is None
    assert "all of the log is folded instead" in caplog.text


# --- When it has no room ---------------------------------------------------------------------------------------------


def test_a_full_index_keeps_no_append_and_catches_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as log:
        log.append(sealed(log, [unit(1)], private=Private(key="k")))
        log.settle()
        with monkeypatch.context() as full:
            full.setattr(lmdb_index, "puts", raise_map_full)
            log.append(sealed(log, [unit(2), unit(3)]))
            with pytest.raises(StorageFull, match="no room for the index"):
                log.settle()
            assert log.settled == 1, "whoever looks something up beside the bus would not find it"
            assert [entry.seq for entry in log.read(0, units_max=9, bytes_max=10**6)] == [1, 2, 3]
            with pytest.raises(StorageFull, match="no room for the index"):
                log.seq_of_id(unit_id(2))
            with pytest.raises(StorageFull, match="no room for the index"):
                log.append(sealed(log, [unit(4)]))
            assert log.head == 3
        log.settle()
        assert (log.settled, log.seq_of_id(unit_id(2))) == (3, 2)
        log.append(sealed(log, [unit(4)]))
        assert log.seq_of_id(unit_id(4)) == 4


@pytest.mark.parametrize("tail", [{"TAIL_UNITS_MAX": 2}, {"TAIL_BYTES_MAX": 1}])
def test_what_lmdb_has_not_taken_over_yet_is_found_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: dict[str, int]
) -> None:
    for name, value in tail.items():
        monkeypatch.setattr(lmdb_log, name, value)
    with opened(tmp_path) as log:
        for seq in range(1, 8):
            private = Private(key="k", body_digest=b"d") if seq == 1 else Private()
            log.append(sealed(log, [unit(seq, relates_to=[unit_id(1)])], private=private))
            assert (log.seq_of_id(unit_id(seq)), log.seq_of_key("ann", "k")) == (seq, 1)
            if seq % 3 == 0:
                assert lookups_are_right(log, seq)


def raise_map_full(record: object) -> None:
    raise lmdb.MapFullError("full")


def kill_minus_9(path: Path) -> None:
    """As if the process had not closed it: the mark of a clean end is not there."""
    directory.mark_index(tenant(path) / "index", clean=False)


def test_a_key_that_a_damaged_index_does_not_lead_to_is_found_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is not found cannot be checked against its record, and would be done again: the index is folded again."""
    fill(tmp_path)
    file = tenant(tmp_path) / "index" / "data.mdb"
    key = idempotency_key("ann", "k")
    file.write_bytes(file.read_bytes().replace(key, bytes([key[0] ^ 1]) + key[1:]))
    with opened(tmp_path) as log:
        assert log.seq_of_key("ann", "k") == 1
    assert "is not as it was closed: it is folded again" in caplog.text


def test_an_index_that_cannot_take_more_for_it_is_damaged_is_folded_again_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def corrupted(record: Record) -> NoReturn:
        raise lmdb.CorruptedError("a page is not what it should be")

    fill(tmp_path)
    shutil.rmtree(tenant(tmp_path) / "index")
    with monkeypatch.context() as patched:
        patched.setattr(lmdb_index, "puts", corrupted)
        with pytest.raises(DataDirectoryError, match="index is damaged: the next start folds it again"):
            fill(tmp_path)
    assert not (tenant(tmp_path) / "index" / "mark").exists()
    with opened(tmp_path) as log:
        assert lookups_are_right(log)
