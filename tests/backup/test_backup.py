"""A backup holds the log as it lies on the disk, grows with it, and says so when something is not as it was."""

import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from engram_bus.backup import making
from engram_bus.backup.checking import check_backup
from engram_bus.backup.making import backup
from engram_bus.backup.manifest import BackupDamaged, is_backup, load, save
from engram_bus.backup.restoring import parse_time, restore
from engram_bus.backup.segments import records
from engram_bus.errors import BackupError, DataDamaged, DataDirectoryError
from engram_bus.log.contract import Epoch
from engram_bus.log.index import seq_key
from engram_bus.log.record import parse, redact
from engram_bus.units import WorkUnit
from engram_bus.verify import verify
from tests.backup.logs import COMMANDS, epochs_of, fill, raws_of, records_of, write
from tests.disk import image, opened, small_disk, stored, tampering


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A closed log of twelve units, three to a command."""
    fill(tmp_path / "data", range(1, 13), group=3)
    return tmp_path / "data"


def held(path: Path) -> list[bytes]:
    return [record.raw for record in records(path, load(path))]


# --- Round trips -----------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commands=COMMANDS)
def test_any_log_comes_back_byte_for_byte(commands: list[list[WorkUnit]], tmp_path: Path) -> None:
    for name in ("any", "any-backup", "any-restored"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    write(tmp_path / "any", commands)
    made = backup(tmp_path / "any", tmp_path / "any-backup")
    assert check_backup(tmp_path / "any-backup").damage == ()
    restored = restore(tmp_path / "any-backup", tmp_path / "any-restored")
    assert restored.head == made.head == sum(map(len, commands))
    assert raws_of(tmp_path / "any-restored") == raws_of(tmp_path / "any")


def test_a_redacted_unit_stays_redacted_and_keys_stay(data: Path, tmp_path: Path) -> None:
    with tampering(data, "log") as txn:
        txn.put(seq_key(5), redact(parse(stored(txn, seq_key(5)), 5)))
    backup(data, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")
    found = records_of(tmp_path / "restored")
    assert found[4].redacted
    assert [record.private.key for record in found[::3]] == ["k1", "k4", "k7", "k10"]
    with opened(tmp_path / "restored") as log:
        assert log.seq_of_key("ann", "k4") == 4


def test_a_backup_leaves_the_log_as_it_is(data: Path, tmp_path: Path) -> None:
    before = image(data)
    backup(data, tmp_path / "backup")
    assert image(data) == before


def test_a_log_that_was_never_written_is_backed_up_and_restored(tmp_path: Path) -> None:
    with opened(tmp_path / "data"):
        pass
    made = backup(tmp_path / "data", tmp_path / "backup")
    assert (made.head, made.new_units, made.segments) == (0, 0, 0)
    assert restore(tmp_path / "backup", tmp_path / "restored").head == 0
    assert len(epochs_of(tmp_path / "restored")) == 2


# --- Incremental -----------------------------------------------------------------------------------------------------


def test_a_second_run_adds_only_what_is_new(data: Path, tmp_path: Path) -> None:
    first = backup(data, tmp_path / "backup")
    again = backup(data, tmp_path / "backup")
    assert (again.new_units, again.new_bytes) == (0, 0)
    old = (tmp_path / "backup" / "segments" / "00000000000000000001.segment").read_bytes()
    fill(data, range(13, 16))
    made = backup(data, tmp_path / "backup")
    assert (first.new_units, made.new_units, made.head) == (12, 3, 15)
    assert (tmp_path / "backup" / "segments" / "00000000000000000001.segment").read_bytes()[: len(old)] == old
    assert held(tmp_path / "backup") == raws_of(data)


def test_a_full_segment_is_left_alone_and_ends_with_a_command(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "BACKUP_SEGMENT_BYTES", 500)
    backup(data, tmp_path / "backup")
    segments = load(tmp_path / "backup").segments
    assert len(segments) > 2
    assert all(segment.last_seq % 3 == 0 for segment in segments)
    fill(data, range(13, 16))
    backup(data, tmp_path / "backup")
    assert load(tmp_path / "backup").segments[: len(segments) - 1] == segments[:-1]
    assert check_backup(tmp_path / "backup").is_whole
    assert held(tmp_path / "backup") == raws_of(data)


def test_another_log_is_refused(data: Path, tmp_path: Path) -> None:
    backup(data, tmp_path / "backup")
    fill(tmp_path / "other", range(1, 13))
    with pytest.raises(BackupError, match="is a backup of another log: it is of epochs"):
        backup(tmp_path / "other", tmp_path / "backup")
    assert held(tmp_path / "backup") == raws_of(data)


def test_a_log_whose_chain_is_another_is_refused(data: Path, tmp_path: Path) -> None:
    """The same epoch, but not the same units: a copy that was written by a second bus."""
    shutil.copytree(data, tmp_path / "copy")
    fill(data, range(13, 16), payload_bytes=9)
    fill(tmp_path / "copy", range(13, 17))
    backup(data, tmp_path / "backup")
    with pytest.raises(BackupError, match="another history: the digest chains differ at unit 15"):
        backup(tmp_path / "copy", tmp_path / "backup")


def test_an_older_copy_of_the_log_is_refused(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "older")
    fill(data, range(13, 16))
    backup(data, tmp_path / "backup")
    with pytest.raises(BackupError, match=r"goes up to unit 15, the log of .* only to 12: it is an older copy"):
        backup(tmp_path / "older", tmp_path / "backup")


def test_a_restored_log_continues_its_backup_where_it_began_at_the_head(data: Path, tmp_path: Path) -> None:
    backup(data, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "whole")
    restore(tmp_path / "backup", tmp_path / "part", to_seq=6)
    fill(tmp_path / "whole", range(13, 16))
    fill(tmp_path / "part", range(7, 16))
    with pytest.raises(BackupError, match="has a history of its own since unit 6"):
        backup(tmp_path / "part", tmp_path / "backup")
    assert backup(tmp_path / "whole", tmp_path / "backup").new_units == 3
    assert load(tmp_path / "backup").epochs == tuple(epochs_of(tmp_path / "whole"))
    fill(data, range(13, 16))
    with pytest.raises(BackupError, match="is a backup of another log"):
        backup(data, tmp_path / "backup")


# --- What it refuses -------------------------------------------------------------------------------------------------


def test_a_directory_that_is_something_else_is_refused_and_left_alone(data: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"jpg")
    for path in (tmp_path / "photos", data.parent / "data" / "backup", data):
        before = image(tmp_path)
        with pytest.raises(BackupError, match=r"is no backup and not empty|lies in .* itself"):
            backup(data, path)
        assert image(tmp_path) == before
    with pytest.raises(BackupError, match="cannot be written"):
        backup(data, tmp_path / "photos" / "a.jpg")


def test_what_is_no_data_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(DataDirectoryError, match="none is no data directory: it has no identity"):
        backup(tmp_path / "none", tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_a_directory_with_more_than_one_log_is_refused(data: Path, tmp_path: Path) -> None:
    (data / "tenants" / "other").mkdir()
    with pytest.raises(BackupError, match=r"logs of other tenants \(other\)"):
        backup(data, tmp_path / "backup")


def test_two_runs_at_once_are_refused(data: Path, tmp_path: Path) -> None:
    with making._held(tmp_path / "backup"), pytest.raises(BackupError, match=r"another backup into .* is running"):
        backup(data, tmp_path / "backup")


def test_damage_ends_a_run_that_keeps_what_is_before_it(data: Path, tmp_path: Path) -> None:
    with tampering(data, "log") as txn:
        txn.put(seq_key(8), b"x" + stored(txn, seq_key(8))[1:])
    with pytest.raises(DataDamaged, match=r"unit 8 of .*; the backup .* holds what is before it, up to 6"):
        backup(data, tmp_path / "backup")
    assert check_backup(tmp_path / "backup").is_whole
    assert load(tmp_path / "backup").head == 6


def test_a_later_format_is_refused(data: Path, tmp_path: Path) -> None:
    backup(data, tmp_path / "backup")
    save(tmp_path / "backup", msgspec.structs.replace(load(tmp_path / "backup"), format=2))
    with pytest.raises(BackupError, match="is a backup of format 2, this version reads format 1"):
        backup(data, tmp_path / "backup")
    assert "format 2" in str(check_backup(tmp_path / "backup").damage[0])


# --- Cut off ---------------------------------------------------------------------------------------------------------


def test_a_run_that_is_cut_off_at_any_byte_is_the_backup_before_it(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "backup"
    backup(data, path)
    before, whole = load(path), image(path)
    fill(data, range(13, 15))
    backup(data, path)
    (name,) = (name for name in image(path) if name.endswith(".segment"))
    longer, start = image(path)[name], len(whole[name])
    for end in range(start, len(longer) + 1):
        (path / name).write_bytes(longer[:end])
        (path / "manifest.json").write_bytes(whole["manifest.json"])
        (path / "manifest.new").write_bytes(b'{"blake2b"'[: end % 11])
        report = check_backup(path)
        assert (report.damage, report.head, report.unnamed_bytes) == ((), before.head, end - start)
        if end % 71 == 0 or end == len(longer):
            assert backup(data, path).new_units == 2
            assert check_backup(path).is_whole
            assert held(path) == raws_of(data)


def test_a_first_run_that_is_cut_off_is_begun_again(data: Path, tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "manifest.new").write_bytes(b'{"bl')
    assert backup(data, tmp_path / "backup").head == 12


def test_a_new_segment_that_was_cut_off_is_written_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "BACKUP_SEGMENT_BYTES", 10)
    backup(data, tmp_path / "backup")
    fill(data, range(13, 16))
    (tmp_path / "backup" / "segments" / "00000000000000000013.segment").write_bytes(bytes(100_000))
    assert check_backup(tmp_path / "backup").is_whole
    backup(data, tmp_path / "backup")
    assert check_backup(tmp_path / "backup").unnamed_bytes == 0
    assert held(tmp_path / "backup") == raws_of(data)


def test_a_manifest_that_is_cut_off_is_named(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "backup"
    backup(data, path)
    manifest = (path / "manifest.json").read_bytes()
    for end in range(len(manifest)):
        (path / "manifest.json").write_bytes(manifest[:end])
        assert [damage.file for damage in check_backup(path).damage] == ["manifest.json"]
    with pytest.raises(BackupDamaged, match=r"manifest.json: it cannot be read"):
        backup(data, path)
    (path / "manifest.json").unlink()
    assert is_backup(path)
    with pytest.raises(BackupDamaged, match=r"manifest.json: it cannot be read"):
        backup(data, path)


@pytest.mark.parametrize("file", ["manifest.json", "segments/00000000000000000001.segment"])
def test_a_flipped_bit_anywhere_is_named(data: Path, tmp_path: Path, file: str) -> None:
    path = tmp_path / "backup"
    backup(data, path)
    content = (path / file).read_bytes()
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        (path / file).write_bytes(flipped)
        assert [damage.file for damage in check_backup(path).damage] == [file], at


def test_each_damaged_segment_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "BACKUP_SEGMENT_BYTES", 10)
    path = tmp_path / "backup"
    backup(data, path)
    names = [segment.name for segment in load(path).segments]
    (path / "segments" / names[1]).write_bytes(b"")
    (path / "segments" / names[3]).unlink()
    report = check_backup(path)
    assert [damage.file for damage in report.damage] == [f"segments/{names[1]}", f"segments/{names[3]}"]
    assert report.whole_units == 3
    assert report.text().splitlines()[0] == f"{path}: backup, DAMAGED"
    fill(data, range(13, 16))
    backup(data, path)
    with pytest.raises(BackupDamaged, match=names[1]):
        restore(path, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_a_damaged_last_segment_is_not_added_to(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "backup"
    backup(data, path)
    (segment,) = load(path).segments
    content = bytearray((path / "segments" / segment.name).read_bytes())
    content[40] ^= 1
    (path / "segments" / segment.name).write_bytes(content)
    fill(data, range(13, 16))
    with pytest.raises(BackupDamaged, match="does not match its checksum"):
        backup(data, path)
    (path / "segments" / segment.name).unlink()
    with pytest.raises(BackupDamaged, match="it is missing"):
        backup(data, path)


def test_a_backup_that_was_put_together_by_hand_is_named(data: Path, tmp_path: Path) -> None:
    """Right checksums everywhere, wrong history."""
    path = tmp_path / "backup"
    backup(data, path)
    whole = load(path)
    for wrong in (
        {"chain": "00" * 32},
        {"head": 11},
        {"epochs": ()},
        {"segments": (msgspec.structs.replace(whole.segments[0], name="../identity"),)},
    ):
        save(path, msgspec.structs.replace(whole, **wrong))
        assert [damage.file for damage in check_backup(path).damage] == ["manifest.json"], wrong


# --- A full disk -----------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_backup_as_it_was(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_mib=4) as disk:
        path = disk.path / "backup"
        fill(tmp_path / "data", range(1, 10))
        backup(tmp_path / "data", path)
        fill(tmp_path / "data", range(10, 500), payload_bytes=4_000)
        disk.fill(1_000_000)
        with pytest.raises(BackupError, match="cannot be written: No space left on device"):
            backup(tmp_path / "data", path)
        assert check_backup(path).damage == ()
        assert load(path).head == 9
        disk.free()
        assert backup(tmp_path / "data", path).head == 499
        assert held(path) == raws_of(tmp_path / "data")
        disk.fill()
        with pytest.raises((BackupError, DataDirectoryError), match="No space left on device"):
            restore(path, disk.path / "restored")
        assert not (disk.path / "restored").exists()


# --- Restored --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("to_seq", "head"), [(3, 3), (4, 3), (5, 3), (6, 6), (11, 9), (12, 12)])
def test_up_to_a_seq_without_parting_a_command(data: Path, tmp_path: Path, to_seq: int, head: int) -> None:
    backup(data, tmp_path / "backup")
    restored = restore(tmp_path / "backup", tmp_path / "restored", to_seq=to_seq)
    assert (restored.head, restored.left_out) == (head, to_seq - head)
    assert raws_of(tmp_path / "restored") == raws_of(data)[:head]


@pytest.mark.parametrize("to_seq", [-1, 0, 13])
def test_a_seq_that_is_not_there_is_refused(data: Path, tmp_path: Path, to_seq: int) -> None:
    backup(data, tmp_path / "backup")
    with pytest.raises(BackupError, match=f"holds units 1 to 12, not unit {to_seq}"):
        restore(tmp_path / "backup", tmp_path / "restored", to_seq=to_seq)
    with pytest.raises(BackupError, match="nothing would be left, unit 2 is within the first command"):
        restore(tmp_path / "backup", tmp_path / "restored", to_seq=2)
    assert not (tmp_path / "restored").exists()


@pytest.mark.parametrize("segment_bytes", [10, 10**6])
@pytest.mark.parametrize(
    ("time", "head"),
    [
        ("1970-01-01T00:00:09Z", 9),
        ("1970-01-01T01:00:08.999999+01:00", 6),
        ("1970-01-01T00:00:03.000001Z", 3),
        ("2030-01-01T00:00:00Z", 12),
    ],
)
def test_up_to_a_time(
    data: Path, tmp_path: Path, time: str, head: int, segment_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "BACKUP_SEGMENT_BYTES", segment_bytes)
    backup(data, tmp_path / "backup")
    assert restore(tmp_path / "backup", tmp_path / "restored", to_ts=parse_time(time)).head == head


def test_a_time_before_everything_and_what_is_no_time_is_refused(data: Path, tmp_path: Path) -> None:
    backup(data, tmp_path / "backup")
    with pytest.raises(BackupError, match=r"holds no unit at or before 1970-01-01T00:00:00\.999999Z"):
        restore(tmp_path / "backup", tmp_path / "restored", to_ts=parse_time("1970-01-01T00:00:00.999999Z"))
    for text in ("yesterday", "12:00"):
        with pytest.raises(BackupError, match="is not a time as RFC 3339 writes it"):
            parse_time(text)
    with pytest.raises(BackupError, match="does not say its zone"):
        parse_time("2026-01-01T00:00:00")


def test_a_restored_log_is_a_new_epoch_behind_its_head(data: Path, tmp_path: Path) -> None:
    (old,) = epochs_of(data)
    backup(data, tmp_path / "backup")
    for to_seq in (None, 6):
        path = tmp_path / f"restored-{to_seq}"
        restored = restore(tmp_path / "backup", path, to_seq=to_seq)
        new = Epoch(restored.epoch, restored.head + 1)
        assert epochs_of(path) == [old, new]
        assert new.name != old.name
        assert restored.cursor == f"{new.name}.{restored.head}"
    backup(tmp_path / "restored-None", tmp_path / "second")
    restore(tmp_path / "second", tmp_path / "again", to_seq=6)
    names = [epoch.name for epoch in epochs_of(tmp_path / "restored-None")]
    assert epochs_of(tmp_path / "again")[:2] == [Epoch(names[0], 1), Epoch(names[1], 7)], "it ends at the fork too"


def test_a_directory_that_is_not_empty_is_refused_and_left_alone(data: Path, tmp_path: Path) -> None:
    backup(data, tmp_path / "backup")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    for path, why in ((tmp_path / "used", "is not empty"), (data, "is not empty"), (data / "lock", "not a directory")):
        before = image(tmp_path)
        with pytest.raises(BackupError, match=why):
            restore(tmp_path / "backup", path)
        assert image(tmp_path) == before
    (tmp_path / "empty").mkdir()
    assert restore(tmp_path / "backup", tmp_path / "empty").report.is_whole


def test_what_was_not_finished_is_refused_by_a_bus_and_by_a_second_restore(data: Path, tmp_path: Path) -> None:
    backup(data, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")
    (tmp_path / "restored" / "identity").unlink()
    with pytest.raises(DataDamaged, match="identity is missing beside a log"), opened(tmp_path / "restored"):
        pass
    with pytest.raises(BackupError, match="was not finished when it was made"):
        restore(tmp_path / "backup", tmp_path / "restored")


def test_an_error_in_the_middle_takes_away_what_was_made(data: Path, tmp_path: Path) -> None:
    backup(data, tmp_path / "backup")

    def stop(seq: int, head: int) -> None:
        raise KeyboardInterrupt

    fill(data, range(13, 10_030), group=1_000)
    backup(data, tmp_path / "backup")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "new", tmp_path / "empty"):
        with pytest.raises(KeyboardInterrupt):
            restore(tmp_path / "backup", path, tell=stop)
    assert not (tmp_path / "new").exists()
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_restored_log_is_whole_and_goes_on(data: Path, tmp_path: Path) -> None:
    backup(data, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored", to_seq=9)
    fill(tmp_path / "restored", range(10, 12))
    assert verify(tmp_path / "restored").is_whole
