"""What is damaged is named and made whole where that can be proven; nothing is deleted, or given up unasked."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from engram_bus.backup import repairing
from engram_bus.backup.making import backup
from engram_bus.backup.repairing import repair
from engram_bus.backup.restoring import restore
from engram_bus.errors import BackupError, DataDirectoryError
from engram_bus.log.index import Table, seq_key
from engram_bus.log.record import parse, redact, seal
from engram_bus.verify import verify
from tests.backup.logs import epochs_of, fill, plain, raws_of
from tests.disk import image, opened, stored, tampering, tenant
from tests.values import SALT, unit_id


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A closed log of twelve units, three to a command; its backup holds nine."""
    path = tmp_path / "there" / "data"
    fill(path, range(1, 10), group=3)
    backup(path, tmp_path / "backup")
    fill(path, range(10, 13), group=3)
    return path


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "backup"


def destroy(path: Path, *seqs: int) -> None:
    """Break a record where each of its bytes counts."""
    with tampering(path, "log") as txn:
        for seq in seqs:
            raw = bytearray(stored(txn, seq_key(seq)))
            raw[70] ^= 4
            txn.put(seq_key(seq), bytes(raw))


def remove(path: Path, *seqs: int) -> None:
    with tampering(path, "log") as txn:
        for seq in seqs:
            txn.delete(seq_key(seq))


def siblings(path: Path) -> list[str]:
    return sorted(one.name for one in path.parent.iterdir())


def refused(data: Path, why: str, **how: object) -> None:
    """And nothing was changed."""
    before, around = image(data), siblings(data)
    with pytest.raises(BackupError, match=why):
        repair(data, **how)  # type: ignore[arg-type]
    assert (image(data), siblings(data)) == (before, around)


# --- What is whole, and what cannot be asked -------------------------------------------------------------------------


def test_what_is_whole_is_left_alone(data: Path, kept: Path) -> None:
    before = image(data)
    for drop_after in (None, 3):
        repaired = repair(data, backup=kept, drop_after=drop_after)
        assert (repaired.damage, repaired.done, repaired.moved_to) == ((), (), None)
        assert image(data) == before


def test_what_cannot_be_asked_is_refused(data: Path, kept: Path, tmp_path: Path) -> None:
    (tmp_path / "export.ndjson").write_text("")
    refused(
        data,
        r"an export has no digests, so nothing proves that it is of the same history",
        backup=tmp_path / "export.ndjson",
    )
    refused(data, "is no backup: it has no manifest.json", backup=tmp_path)
    with pytest.raises(BackupError, match="is no data directory"):
        repair(kept)
    with opened(data), pytest.raises(DataDirectoryError, match="is in use by process"):
        repair(data)
    (data / "tenants" / "other").mkdir()
    refused(data, r"logs of other tenants \(other\)")


# --- What is folded again --------------------------------------------------------------------------------------------


def test_a_damaged_index_is_moved_aside_and_folded_again(data: Path) -> None:
    with tampering(data, "index", Table.IDS) as txn:
        txn.delete(unit_id(3).encode())
    epochs = epochs_of(data)
    repaired = repair(data)
    assert [(damage.file, damage.seq) for damage in repaired.damage] == [("tenants/default/index", 3)]
    assert [one.partition(" ")[0] for one in repaired.done] == ["index", "search"]
    assert repaired.report.is_whole
    assert any(one.name.startswith("index.damaged-") for one in tenant(data).iterdir())
    assert epochs_of(data) == epochs
    with opened(data) as log:
        assert log.seq_of_id(unit_id(3)) == 3


def test_an_index_that_ends_its_reader_is_moved_aside(data: Path) -> None:
    os.truncate(tenant(data) / "index" / "data.mdb", 8_192)
    assert repair(data).report.is_whole


@pytest.mark.parametrize("content", [None, b"{"])
@pytest.mark.parametrize("file", ["identity", "tenants/default/identity"])
def test_a_lost_identity_is_written_again(data: Path, file: str, content: bytes | None) -> None:
    whole = json.loads((data / file).read_bytes())
    (data / file).unlink()
    if content is not None:
        (data / file).write_bytes(content)
    repaired = repair(data)
    assert repaired.damage[0].file == file
    assert repaired.report.is_whole
    assert json.loads((data / file).read_bytes()).keys() == whole.keys()
    if file != "identity":
        assert json.loads((data / file).read_bytes()) == whole
    assert len(raws_of(data)) == 12


def test_an_identity_of_another_directory_is_made_anew(data: Path, tmp_path: Path) -> None:
    fill(tmp_path / "other", [1])
    shutil.copy(tmp_path / "other" / "identity", data / "identity")
    repaired = repair(data)
    assert [damage.file for damage in repaired.damage] == ["identity"]
    assert repaired.report.is_whole
    assert len(raws_of(data)) == 12


def test_an_identity_of_a_later_format_is_no_damage(data: Path) -> None:
    identity = tenant(data) / "identity"
    identity.write_text(identity.read_text().replace('"format":2', '"format":3'))
    before = image(data)
    with pytest.raises(DataDirectoryError, match="has format 3, this version reads format 2"):
        repair(data)
    assert image(data) == before


# --- The log ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seqs", [[1], [2, 3, 9], list(range(1, 10))])
def test_damaged_units_come_from_a_backup(data: Path, kept: Path, seqs: Sequence[int]) -> None:
    whole, (old,) = raws_of(data), epochs_of(data)
    destroy(data, *seqs)
    damaged = image(data)
    repaired = repair(data, backup=kept)
    assert repaired.damage[0].seq == seqs[0]
    assert repaired.report.is_whole
    assert raws_of(data) == whole
    assert [epoch.first_seq for epoch in epochs_of(data)] == [1, 13]
    assert epochs_of(data)[0] == old
    assert repaired.moved_to is not None
    moved = image(Path(repaired.moved_to))
    assert {name: moved[name] for name in damaged if name != "lock"} == {
        name: content for name, content in damaged.items() if name != "lock"
    }
    assert siblings(data) == ["data", Path(repaired.moved_to).name]


def test_missing_units_come_from_a_backup(data: Path, kept: Path) -> None:
    whole = raws_of(data)
    remove(data, 4, 5)
    repaired = repair(data, backup=kept)
    assert raws_of(data) == whole
    assert "units 4 to 5 came from the backup" in repaired.done


def test_a_rewritten_unit_is_told_from_the_one_that_was_written(data: Path, kept: Path) -> None:
    """Its checksum and its digest are right; that the next unit does not follow it tells."""
    whole = raws_of(data)
    with tampering(data, "log") as txn:
        before, old = (parse(stored(txn, seq_key(seq)), seq) for seq in (4, 5))
        group = {"group_units": 3, "group_index": 1}
        forged = seal(plain(5, 9), previous=before.chain, salt=SALT, private=old.private, **group)
        txn.put(seq_key(5), forged.raw)
    assert verify(data).damage[0].seq == 6
    assert "unit 5 came from the backup" in repair(data, backup=kept).done
    assert raws_of(data) == whole


def test_what_is_redacted_in_the_log_stays_redacted(data: Path, kept: Path) -> None:
    with tampering(data, "log") as txn:
        txn.put(seq_key(2), redact(parse(stored(txn, seq_key(2)), 2)))
    destroy(data, 5)
    repair(data, backup=kept)
    assert parse(raws_of(data)[1], 2).redacted


def test_a_lost_header_needs_no_backup(data: Path) -> None:
    whole = raws_of(data)
    remove(data, 0)
    repaired = repair(data)
    assert repaired.report.is_whole
    assert raws_of(data) == whole


def test_secrets_are_kept(data: Path, kept: Path) -> None:
    (data / "keys" / "signing").write_bytes(b"secret")
    destroy(data, 5)
    repair(data, backup=kept)
    assert (data / "keys" / "signing").read_bytes() == b"secret"
    assert (data / "keys").stat().st_mode & 0o777 == 0o700


# --- What is lost ----------------------------------------------------------------------------------------------------


def test_without_a_backup_it_says_what_is_lost(data: Path) -> None:
    destroy(data, 5, 6, 10)
    refused(
        data,
        r"units 4 to 12 are lost: units 5 to 6, unit 10 cannot be read, and nothing proves that what can be read "
        r"follows unit 3; name a backup that has them .*, or give them up: `--drop-after 3` keeps the log up to there",
    )


def test_a_backup_that_does_not_cover_the_damage_is_not_enough(data: Path, kept: Path) -> None:
    destroy(data, 5, 11)
    refused(data, r"units 10 to 12 are lost: unit 11 .* goes up to unit 9 and does not have them", backup=kept)


@pytest.mark.parametrize(("drop_after", "head"), [(9, 9), (8, 6), (3, 3)])
def test_what_is_lost_is_given_up_when_it_is_said(data: Path, kept: Path, drop_after: int, head: int) -> None:
    whole = raws_of(data)
    destroy(data, 5, 11)
    repaired = repair(data, backup=kept, drop_after=drop_after)
    assert repaired.report.is_whole
    assert raws_of(data) == whole[:head]
    assert [epoch.first_seq for epoch in epochs_of(data)] == [1, head + 1]


def test_no_more_is_given_up_than_is_needed_nor_less_than_is_lost(data: Path, kept: Path) -> None:
    destroy(data, 5)
    refused(data, "nothing has to be dropped: all of 12 units can be repaired", backup=kept, drop_after=9)
    refused(data, "can be kept up to unit 3 at most, not up to 4", drop_after=4)
    refused(data, "can be kept up to unit 3 at most, not up to 0", drop_after=0)
    refused(data, "unit 2 is within the first command: nothing would be left", drop_after=2)
    destroy(data, 1)
    refused(data, "units 1 to 12 are lost: .* nothing before them can be kept")


def test_a_log_that_lost_its_end_is_filled_or_refused(data: Path, kept: Path) -> None:
    whole = raws_of(data)
    remove(data, 8, 9, 10, 11, 12)
    refused(data, r"units 7 to 12 are lost: units 8 to 12 cannot be read")
    refused(data, r"units 10 to 12 are lost, and cannot be read; the backup .* goes up to unit 9", backup=kept)
    repair(data, backup=kept, drop_after=9)
    assert raws_of(data) == whole[:9]


def test_a_lost_end_that_the_backup_has_is_filled(data: Path, kept: Path) -> None:
    whole = raws_of(data)
    backup(data, kept)
    remove(data, 11, 12)
    repair(data, backup=kept)
    assert raws_of(data) == whole


@pytest.mark.parametrize("pages", [0, 2])
def test_a_cut_log_is_made_of_its_backup_when_that_is_said(data: Path, kept: Path, pages: int) -> None:
    whole = raws_of(data)
    os.truncate(tenant(data) / "log" / "data.mdb", pages * 4_096)
    shutil.rmtree(tenant(data) / "index")
    refused(data, "how far the log went cannot be told; what is known of it ends with unit 9", backup=kept)
    assert repair(data, backup=kept, drop_after=9).report.is_whole
    assert raws_of(data) == whole[:9]


def test_a_log_and_an_identity_that_are_gone_are_made_of_a_backup(data: Path, kept: Path) -> None:
    (tenant(data) / "log" / "data.mdb").unlink()
    (tenant(data) / "identity").unlink()
    with pytest.raises(BackupError, match="which log this is, only a backup can tell"):
        repair(data)
    assert repair(data, backup=kept, drop_after=9).report.is_whole


# --- What is of another history --------------------------------------------------------------------------------------


def test_the_backup_of_another_log_is_not_used(data: Path, tmp_path: Path) -> None:
    fill(tmp_path / "other", range(1, 13), payload_bytes=5)
    backup(tmp_path / "other", tmp_path / "others")
    destroy(data, 5)
    refused(data, "units 4 to 12 are lost", backup=tmp_path / "others")


def test_a_backup_helps_up_to_where_the_log_was_restored(data: Path, kept: Path, tmp_path: Path) -> None:
    """A restored log and its ancestor's backup: of one history up to the fork, of two behind it."""
    backup(data, kept)
    path = tmp_path / "here" / "data"
    path.parent.mkdir()
    restore(kept, path, to_seq=9)
    fill(path, range(10, 13), payload_bytes=5)
    whole = raws_of(path)
    destroy(path, 4)
    repair(path, backup=kept)
    assert raws_of(path) == whole
    destroy(path, 10)
    refused(path, "units 10 to 12 are lost: unit 10 cannot be read", backup=kept)


def test_a_copy_that_went_its_own_way_is_told_from_a_damaged_log(data: Path, kept: Path, tmp_path: Path) -> None:
    """Of one epoch, for the directory was copied by hand: the units that can be read speak against the backup."""
    path = tmp_path / "here" / "data"
    path.parent.mkdir()
    shutil.copytree(data, path)
    fill(path, range(13, 19), payload_bytes=5)
    fill(data, range(13, 19))
    backup(data, kept)
    destroy(path, 14)
    refused(path, r"units 14 to 18 are lost: unit 14 cannot be read.* has another history behind unit 13", backup=kept)


def test_a_swapped_identity_is_decided_by_the_backup(data: Path, kept: Path, tmp_path: Path) -> None:
    fill(tmp_path / "other", range(1, 4))
    shutil.copy(tenant(tmp_path / "other") / "identity", tenant(data) / "identity")
    whole = [parse(raw, seq).raw for seq, raw in enumerate(_raws(data), start=1)]
    refused(data, "is another log than .* says, and no backup was named")
    backup(tmp_path / "other", tmp_path / "others")
    repair(data, backup=kept)
    assert raws_of(data) == whole


def _raws(path: Path) -> list[bytes]:
    with tampering(path, "log") as txn:
        return [stored(txn, seq_key(seq)) for seq in range(1, 13)]


# --- Taking its place ------------------------------------------------------------------------------------------------


def test_a_system_that_cannot_swap_names_renames_twice(data: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairing, "_exchange", lambda one, other: False)
    whole = raws_of(data)
    destroy(data, 5)
    repaired = repair(data, backup=kept)
    assert raws_of(data) == whole
    assert siblings(data) == ["data", Path(str(repaired.moved_to)).name]


def test_a_directory_that_cannot_be_renamed_is_left_and_the_copy_is_named(
    data: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_a_mount_point(one: Path, other: Path) -> bool:
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(repairing, "_exchange", is_a_mount_point)
    destroy(data, 5)
    before = image(data)
    with pytest.raises(BackupError, match=r"cannot be renamed \(Device or resource busy\).* stands at .*repaired"):
        repair(data, backup=kept)
    assert image(data) == before
    (copy,) = (one for one in data.parent.iterdir() if one != data)
    assert verify(copy).is_whole
