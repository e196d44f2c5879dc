"""`verify` passes what is whole, names the first of what is not, and changes nothing."""

import json
import os
import random
import re
import shutil
import struct
from pathlib import Path

import anyio
import lmdb
import msgspec
import pytest

from engram_bus.decisions.contexts import Contexts
from engram_bus.decisions.locks import Locks
from engram_bus.embedded import Bus
from engram_bus.errors import LockHeld, LogDamaged
from engram_bus.log import directory
from engram_bus.log.contract import Snapshot
from engram_bus.log.index import Table, context_key, seq_key, target_prefix
from engram_bus.log.record import Private, Record, parse, redact, seal
from engram_bus.log.verify import Damage, LogReport, walk
from engram_bus.units import WorkUnit
from engram_bus.verify import Reading, VerifyReport, verify
from tests.disk import image, opened, stored, tampering, tenant
from tests.simulation.damage_pages import places
from tests.values import SALT, sealed, unit, unit_id

CONTEXTS = Contexts.name
PAGE_BYTES = 4_096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed log of twelve units in three contexts, with relationships, keys, an atomic group and a snapshot."""
    with opened(tmp_path) as log:
        state = Contexts()
        for seq in range(1, 10):
            one = unit(seq, context_id=f"c{seq % 3}", version=(seq + 2) // 3, relates_to=[unit_id(1)])
            log.append(sealed(log, [one], private=Private(key=f"k{seq}", body_digest=b"d")))
            state.evolve(one)
            if seq == 7:
                log.save_snapshot(CONTEXTS, Snapshot(7, state.snapshot()))
        log.append(sealed(log, [unit(10 + n, context_id="group", version=n + 1) for n in range(3)], atomic=True))
    return tmp_path


def looked_at(path: Path) -> LogReport:
    """What a walk in this process sees."""
    return walk(tenant(path), "default", (Contexts(),), lambda file, seq: None)


def first_damage(path: Path) -> Damage:
    """The first damage; looking changes nothing."""
    before = image(path)
    report = looked_at(path)
    assert image(path) == before
    return report.damage[0]


def change(path: Path, seq: int, **changes: object) -> None:
    """Write a record again with a changed unit, a right checksum and a right chain up to it."""
    with tampering(path, "log") as txn:
        previous = parse(stored(txn, seq_key(seq - 1)), seq - 1)
        old = parse(stored(txn, seq_key(seq)), seq)
        group = {"group_units": changes.pop("group_units", old.group_units)}
        group["group_index"] = changes.pop("group_index", old.group_index)
        new = reseal(msgspec.structs.replace(old.unit, **changes), previous, old, **group)  # type: ignore[arg-type]
        txn.put(seq_key(seq), new.raw)


def reseal(one: WorkUnit, previous: Record, old: Record, **group: int) -> Record:
    return seal(one, previous=previous.chain, salt=SALT, private=old.private, **group)


# --- What is whole ---------------------------------------------------------------------------------------------------


def test_a_whole_log_is_whole_and_left_as_it_is(path: Path) -> None:
    before = image(path)
    report = verify(path)
    assert image(path) == before
    assert report.is_whole
    assert (report.logs[0].head, report.logs[0].whole_units, report.logs[0].contexts) == (12, 12, 4)
    assert (report.logs[0].index, report.logs[0].snapshots) == ("current", {CONTEXTS: 7})
    with opened(path) as log:
        assert report.logs[0].chain == log.chain.hex()
    assert report.text().splitlines()[:2] == [f"{path}: whole", "  default: 12 of 12 units whole, in 4 contexts"]


def test_an_empty_log_and_one_never_written_are_whole(tmp_path: Path) -> None:
    with opened(tmp_path / "empty"):
        pass
    assert looked_at(tmp_path / "empty").damage == ()
    (tmp_path / "new" / "tenants" / "default").mkdir(parents=True)
    shutil.copy(tmp_path / "empty" / "identity", tmp_path / "new")
    identity = json.loads((tenant(tmp_path / "empty") / "identity").read_text())
    (tenant(tmp_path / "new") / "identity").write_text(json.dumps(identity | {"established": False}))
    assert looked_at(tmp_path / "new").damage == ()
    (tenant(tmp_path / "new") / "identity").unlink()
    assert looked_at(tmp_path / "new").damage == ()


def test_a_log_that_was_only_begun_is_whole(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    identity = tenant(tmp_path) / "identity"
    identity.write_text(identity.read_text().replace('"established":true', '"established":false'))
    assert looked_at(tmp_path).damage == ()
    with tampering(tmp_path, "log") as txn:
        txn.delete(seq_key(0))
    assert looked_at(tmp_path).damage == ()


def test_a_redacted_record_is_whole(path: Path) -> None:
    with tampering(path, "log") as txn:
        txn.put(seq_key(5), redact(parse(stored(txn, seq_key(5)), 5)))
    assert looked_at(path).damage == ()


async def test_a_bus_that_appends_meanwhile_is_whole(tmp_path: Path) -> None:
    async with Bus.open(tmp_path) as bus, anyio.create_task_group() as tasks:
        for number in range(2_000):
            await bus.append(f"c{number % 7}", b"x" * 100, agent_id="ann", idempotency_key=f"k{number}")
        reports: list[VerifyReport] = []

        async def look() -> None:
            reports.append(await anyio.to_thread.run_sync(verify, tmp_path))

        tasks.start_soon(look)
        while not reports:
            await bus.append("c0", b"y", agent_id="bob", idempotency_key=f"later{bus.head}")
            await anyio.sleep(0)
        assert reports[0].damage == ()
        assert 2_000 <= reports[0].logs[0].whole_units <= bus.head


def test_progress_is_told(path: Path) -> None:
    told: list[Reading] = []
    verify(path, tell=told.append)
    assert Reading("tenants/default/log", 1) in told
    assert told[-1] == Reading("tenants/default/index", 12)


def test_an_index_that_is_behind_is_not_damage(path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    older = tmp_path_factory.mktemp("older")
    shutil.copytree(tenant(path) / "index", older / "index")
    with opened(path) as log:
        log.append(sealed(log, [unit(13, context_id="late", version=1)]))
    shutil.rmtree(tenant(path) / "index")
    shutil.copytree(older / "index", tenant(path) / "index")
    report = looked_at(path)
    assert report.damage == ()
    assert report.index == "1 units behind, folded again at the next start"


def test_an_index_that_cannot_be_trusted_or_is_gone_is_not_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.mark_index(tenant(path) / "index", clean=False)
    monkeypatch.setattr(directory, "boot_id", lambda: "another boot")
    assert looked_at(path).damage == ()
    assert looked_at(path).index.endswith("folded again at the next start")
    (tenant(path) / "index" / "data.mdb").unlink()
    assert looked_at(path).damage == ()
    assert looked_at(path).index == "missing, folded again at the next start"


def test_an_index_that_was_only_begun_is_behind(path: Path) -> None:
    shutil.rmtree(tenant(path) / "index")
    (tenant(path) / "index").mkdir()
    with tampering(path, "index"):
        pass
    directory.mark_index(tenant(path) / "index", clean=False)
    assert looked_at(path).damage == ()
    assert looked_at(path).index == "12 units behind, folded again at the next start"


# --- Damage of the log -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["identity", "tenants/default/identity", "tenants/default/log/data.mdb"])
def test_a_file_that_is_gone_is_named(path: Path, file: str) -> None:
    (path / file).unlink()
    report = verify(path)
    assert not report.is_whole
    assert report.damage[0].file in file
    assert report.text().splitlines()[0] == f"{path}: DAMAGED"


def test_what_is_no_data_directory_is_damage(tmp_path: Path) -> None:
    assert verify(tmp_path).damage[0].file == "identity"
    assert verify(tmp_path / "nowhere").damage[0].file == "identity"


@pytest.mark.parametrize("part", [0, 1, 60, -1])
def test_a_flipped_bit_in_a_record_names_its_unit(path: Path, part: int) -> None:
    with tampering(path, "log") as txn:
        raw = bytearray(stored(txn, seq_key(5)))
        raw[part] ^= 4
        txn.put(seq_key(5), bytes(raw))
    damage = first_damage(path)
    assert (damage.file, damage.seq) == ("tenants/default/log", 5)


def test_a_missing_record_is_named(path: Path) -> None:
    with tampering(path, "log") as txn:
        txn.delete(seq_key(5))
    assert first_damage(path) == Damage("tenants/default/log", "is missing", 5)


def test_a_rewritten_record_breaks_the_chain_where_history_was_left(path: Path) -> None:
    change(path, 5, payload=b"ho")
    assert first_damage(path) == Damage("tenants/default/log", "the digest chain does not hold", 6)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"version": 3}, "it has version 3 of context 'c2', 2 is next"),
        ({"context_id": "new"}, "it has version 2 of context 'new', 1 is next"),
        ({"ts": "1970-01-01T00:00:00.000001Z"}, "does not follow 1970-01-01T00:00:00.000004Z"),
        ({"ts": "yesterday"}, "its time yesterday does not follow"),
        ({"group_units": 2, "group_index": 1}, "it is 1 of 2 units of a command, after 0 of 1"),
        ({"group_units": 0}, "it is 0 of 0 units"),
    ],
)
def test_a_unit_that_does_not_follow_is_named(path: Path, changes: dict[str, object], what: str) -> None:
    change(path, 5, **changes)
    damage = first_damage(path)
    assert (damage.file, damage.seq) == ("tenants/default/log", 5)
    assert what in damage.what


def test_a_command_without_its_end_is_named(path: Path) -> None:
    change(path, 12, group_units=4, group_index=2)
    assert first_damage(path).seq == 12
    with tampering(path, "log") as txn:
        txn.delete(seq_key(12))
    damage = first_damage(path)
    assert damage == Damage("tenants/default/log", "the command it is part of was not recorded whole", 11)


def test_a_log_that_lost_its_end_is_told_by_its_index(path: Path) -> None:
    with tampering(path, "log") as txn:
        for seq in (10, 11, 12):
            txn.delete(seq_key(seq))
    assert first_damage(path).what == "it knows 12 units, the log holds 9: the log lost its end"


@pytest.mark.parametrize("header", [None, b"\xc1", b"\x80", msgspec.msgpack.encode({"format": 1})])
def test_a_lost_header_is_named(path: Path, header: bytes | None) -> None:
    with tampering(path, "log") as txn:
        if header is None:
            txn.delete(seq_key(0))
        else:
            txn.put(seq_key(0), header)
    assert "header" in first_damage(path).what


def test_a_foreign_key_in_the_log_is_named(path: Path) -> None:
    with tampering(path, "log") as txn:
        txn.put(b"zzz", b"")
    assert first_damage(path).what == "ends with a key of 3 bytes"


def test_an_identity_of_another_directory_is_named(path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    with opened(other):
        pass
    (path / "identity").write_bytes((other / "identity").read_bytes())
    (damage,) = verify(path).damage
    assert damage.file == "identity"
    assert "is of data directory" in damage.what


def test_a_swapped_identity_is_named(path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    with opened(other):
        pass
    shutil.copy(tenant(other) / "identity", tenant(path) / "identity")
    assert first_damage(path).what == "this is another log than the identity beside it says"


@pytest.mark.parametrize("part", ["log", "index"])
@pytest.mark.parametrize("pages", [0, 1, 2, 3, 5])
def test_a_cut_file_is_named(path: Path, part: str, pages: int) -> None:
    os.truncate(tenant(path) / part / "data.mdb", pages * PAGE_BYTES)
    report = verify(path)
    assert [damage.file for damage in report.damage] == [f"tenants/default/{part}"]


def test_damage_that_kills_the_reader_is_told(path: Path) -> None:
    """A length that leads past the end of the file: reading that value ends the process."""
    with opened(path) as log:
        log.append(sealed(log, [unit(13, context_id="big", version=1, payload=bytes(9_000))]))
    file = tenant(path) / "log" / "data.mdb"
    on_pages_of_its_own = struct.pack("<HH", 1, 8) + seq_key(13)
    content = bytearray(file.read_bytes())
    for found in re.finditer(re.escape(on_pages_of_its_own), content):
        struct.pack_into("<H", content, found.start() - 2, 0x3FFF)  # The upper half of the value's length.
    file.write_bytes(content)
    report = verify(path)
    assert report.damage[0].file == "tenants/default/log"
    assert "reading it ended in SIG" in report.damage[0].what


def units_of(path: Path) -> list[bytes]:
    with opened(path) as log:
        return [log.record(seq).raw for seq in range(1, log.head + 1)]


@pytest.mark.parametrize("seed", [*range(12), pytest.param(-1, marks=pytest.mark.long)])
def test_bytes_flipped_in_the_raw_file_never_pass_silently(path: Path, seed: int) -> None:
    """Either the damage is named, or what was hit is not in use, and all that is read is as it was."""
    file = tenant(path) / "log" / "data.mdb"
    whole, units = file.read_bytes(), units_of(path)
    whole = file.read_bytes()
    for one in range(1_000, 1_300) if seed < 0 else [seed]:
        dice = random.Random(one)
        damaged = bytearray(whole)
        for _ in range(dice.choice([1, 1, 8, 64])):
            damaged[dice.randrange(len(damaged))] ^= dice.randrange(1, 256)
        file.write_bytes(damaged)
        if not verify(path).damage:
            assert units_of_child(path) == units, f"seed {one}"


def units_of_child(path: Path) -> list[bytes]:
    copy = path / "copy"
    shutil.copytree(path, copy)
    try:
        return units_of(copy)
    finally:
        shutil.rmtree(copy)


@pytest.fixture
def tall(tmp_path: Path) -> Path:
    """A closed log of more records than one page holds."""
    with opened(tmp_path / "tall") as log:
        for seq in range(1, 101):
            log.append(sealed(log, [unit(seq, version=seq, payload=b"x" * 100)]))
    return tmp_path / "tall"


def test_a_record_that_no_branch_leads_to_is_named(tall: Path) -> None:
    """One after the other they are all there; a look-up by seq takes the branches."""
    file = tenant(tall) / "log" / "data.mdb"
    content = bytearray(file.read_bytes())
    content[places(bytes(content), has_records=True)["branch page: key"][1].end - 1] -= 3
    file.write_bytes(content)
    assert "is not found by its seq" in looked_at(tall).damage[0].what


def test_a_page_that_is_no_leaf_is_damage_and_ends_nobody(tall: Path) -> None:
    file = tenant(tall) / "log" / "data.mdb"
    content = bytearray(file.read_bytes())
    leaf = places(bytes(content), has_records=True)["leaf page: header"][3].first
    content[leaf : leaf + PAGE_BYTES] = bytes(PAGE_BYTES)
    file.write_bytes(content)
    with opened(tall) as log:
        whole = log.read(0, units_max=1_000, bytes_max=10**6)
        assert 0 < len(whole) < 100
        with pytest.raises(LogDamaged):
            log.read(len(whole), units_max=1_000, bytes_max=10**6)
    assert len(whole) + 1 in [damage.seq for damage in looked_at(tall).damage]


# --- Damage of what is derived ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "key", "value", "what", "seq"),
    [
        (Table.IDS, unit_id(3).encode(), None, "it is not found in ids", 3),
        (Table.IDS, unit_id(3).encode(), seq_key(4), "ids leads elsewhere", 3),
        (Table.CONTEXTS, context_key("c1", 2), seq_key(5), "contexts leads elsewhere", 4),
        (Table.TARGETS, target_prefix(unit_id(1)) + seq_key(6), None, "it is not found in targets", 6),
        (Table.IDS, unit_id(99).encode(), seq_key(3), "ids leads to it under a key it does not have", 3),
        (Table.CONTEXTS, context_key("c1", 4), seq_key(99), "contexts leads to unit 99, which", 99),
        (Table.TARGETS, target_prefix("x") + seq_key(4), b"", "targets leads to it under a key", 4),
        (Table.KEYS, b"k" * 16, seq_key(2), "keys leads to it under a key it does not have", 2),
        (Table.KEYS, b"k" * 16, b"", "keys leads to unit 0", 0),
    ],
)
def test_the_index_is_compared_both_ways(
    path: Path, table: Table, key: bytes, value: bytes | None, what: str, seq: int
) -> None:
    with tampering(path, "index", table) as txn:
        if value is None:
            assert txn.delete(key)
        else:
            txn.put(key, value)
    damage = first_damage(path)
    assert (damage.file, damage.seq) == ("tenants/default/index", seq)
    assert what in damage.what


def test_a_lost_table_is_named(path: Path) -> None:
    with lmdb.open(str(tenant(path) / "index"), map_size=10**7, max_dbs=9) as env:
        keys = env.open_db(Table.KEYS.value.encode())
        with env.begin(write=True) as txn:
            txn.drop(keys)
    assert first_damage(path) == Damage("tenants/default/index", "it is not found in keys", 1)


def test_a_damaged_log_does_not_hide_a_damaged_index(path: Path) -> None:
    with tampering(path, "index", Table.IDS) as txn:
        txn.delete(unit_id(3).encode())
    with tampering(path, "log") as txn:
        txn.delete(seq_key(5))
    assert {(damage.file, damage.seq) for damage in looked_at(path).damage} == {
        ("tenants/default/index", 3),
        ("tenants/default/log", 5),
    }


def test_a_snapshot_that_is_not_the_fold_is_named(path: Path) -> None:
    state = Contexts()
    state.evolve(unit(1, context_id="c1"))
    with opened(path) as log:
        log.save_snapshot(CONTEXTS, Snapshot(7, state.snapshot()))
    assert first_damage(path) == Damage(
        "tenants/default/index", f"the snapshot of {CONTEXTS} is not what its log folds to", 7
    )
    with opened(path) as log:
        log.save_snapshot(CONTEXTS, Snapshot(7, b"\xc1"))
    assert first_damage(path).seq == 7


def test_a_damaged_snapshot_is_named(path: Path) -> None:
    with tampering(path, "index", Table.STATE) as txn:
        name = b"snapshot:" + CONTEXTS.encode()
        txn.put(name, stored(txn, name)[:-1])
    assert first_damage(path).what == f"the snapshot of {CONTEXTS} does not match its checksum"


# --- The child -------------------------------------------------------------------------------------------------------


def test_a_child_that_fails_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    assert verify(path).damage[0].what == "reading it ended in exit code 1"


def test_a_child_goes_with_who_asked(path: Path) -> None:
    def stop(_: Reading) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(path, tell=stop)


async def test_what_locks_left_is_folded_and_compared(tmp_path: Path) -> None:
    """A lock that is held, one that is waited for and one that is gone, in the log and in a snapshot of them."""
    async with Bus.open(tmp_path) as bus:
        await bus.acquire_lock("a", agent_id="ann")
        gone = await bus.acquire_lock("b", agent_id="bob")
        await bus.release_lock(gone.lock_id, agent_id="bob")
        with pytest.raises(LockHeld):
            await bus.acquire_lock("a", agent_id="bob", wait_seconds=0.01)
        head = bus.head
    report = await anyio.to_thread.run_sync(verify, tmp_path)
    assert report.damage == ()
    assert report.logs[0].snapshots == {Contexts.name: head, Locks.name: head}
