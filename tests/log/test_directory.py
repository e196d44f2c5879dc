"""The data directory: one process writes it, it knows who it is, and it refuses what would lose writes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from engram_bus.errors import DataDamaged, DataDirectoryError
from engram_bus.log import directory
from engram_bus.log.contract import Epoch
from engram_bus.log.directory import (
    DataDirectory,
    FileStamp,
    TenantIdentity,
    index_is_as_closed,
    index_is_trusted,
    load_tenant,
    mark_index,
    new_epoch,
    write_durably,
)
from tests.disk import CREATED_AT, image, opened, tenant
from tests.values import sealed, unit


def open_directory(path: Path) -> DataDirectory:
    return DataDirectory(path, created_at=CREATED_AT)


def test_a_new_directory_has_everything(tmp_path: Path) -> None:
    with opened(tmp_path / "data"):
        pass
    found = {str(path.relative_to(tmp_path / "data")) for path in (tmp_path / "data").rglob("*")}
    assert found == {
        "identity",
        "lock",
        "keys",
        "tenants",
        "tenants/default",
        "tenants/default/identity",
        "tenants/default/log",
        "tenants/default/log/data.mdb",
        "tenants/default/log/lock.mdb",
        "tenants/default/log/segment",
        "tenants/default/index",
        "tenants/default/index/mark",
        "tenants/default/index/data.mdb",
        "tenants/default/index/lock.mdb",
        "tenants/default/search",
    }
    identity = json.loads((tenant(tmp_path / "data") / "identity").read_text())
    directory = json.loads((tmp_path / "data" / "identity").read_text())["id"]
    assert identity | {"epochs": []} == {
        "format": 2,
        "tenant": "default",
        "epochs": [],
        "established": True,
        "directory": directory,
    }
    assert [epoch.keys() for epoch in identity["epochs"]] == [{"name", "first_seq"}]
    assert (tmp_path / "data" / "keys").stat().st_mode & 0o777 == 0o700


def test_the_identity_is_made_once(tmp_path: Path) -> None:
    first = open_directory(tmp_path)
    first.close()
    again = DataDirectory(tmp_path, created_at="2030-01-01T00:00:00.000000Z")
    again.close()
    assert again.identity == first.identity
    assert again.identity.created_at == CREATED_AT


# --- One process -----------------------------------------------------------------------------------------------------


def test_a_second_opener_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    first = open_directory(tmp_path)
    with pytest.raises(DataDirectoryError, match=f"in use by process {os.getpid()}: one process writes"):
        open_directory(tmp_path)
    first.close()
    first.close()
    open_directory(tmp_path).close()


def test_another_process_is_refused_and_the_lock_goes_with_its_holder(tmp_path: Path) -> None:
    code = "import sys; from tests.disk import *; d = DataDirectory(Path(sys.argv[1]), created_at=CREATED_AT); input()"
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(root)},
    ) as holder:
        wait_until_locked(tmp_path)
        with pytest.raises(DataDirectoryError, match=f"process {holder.pid}"):
            open_directory(tmp_path)
        holder.kill()
    open_directory(tmp_path).close()


def wait_until_locked(path: Path) -> None:
    while not (path / "identity").exists():
        os.sched_yield()


# --- Who it is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["identity", "tenants/default/identity"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"format": 1}'])
def test_a_damaged_identity_is_refused(tmp_path: Path, file: str, content: bytes) -> None:
    fill(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataDirectoryError, match=r"identity cannot be read .*: restore it from a backup"):
        fill(tmp_path)


@pytest.mark.parametrize("file", ["identity", "tenants/default/identity"])
def test_a_missing_identity_beside_a_log_is_refused_and_nothing_is_made(tmp_path: Path, file: str) -> None:
    fill(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(DataDirectoryError, match="is missing beside a log: restore it from a backup"):
        fill(tmp_path)
    assert not (tmp_path / file).exists()


@pytest.mark.parametrize(
    ("names", "told"), [(["manifest.json", "segments"], "manifest.json"), (["lock", "src"], "src"), ([".git"], ".git")]
)
def test_what_holds_something_else_is_refused_and_left_as_it_is(tmp_path: Path, names: list[str], told: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataDirectoryError, match=rf"is no data directory and not empty \(it holds '{told}'"):
        open_directory(tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == names


def test_what_a_start_left_that_was_cut_off_is_taken_and_so_is_a_new_file_system(tmp_path: Path) -> None:
    for name in ("keys", "lost+found", "tenants"):
        (tmp_path / name).mkdir()
    (tmp_path / "identity.new").touch()
    open_directory(tmp_path).close()
    assert (tmp_path / "identity").exists()


@pytest.mark.parametrize("file", ["identity", "tenants/default/identity"])
def test_a_later_format_is_refused(tmp_path: Path, file: str) -> None:
    fill(tmp_path)
    identity = json.loads((tmp_path / file).read_text())
    later = identity["format"] + 1
    (tmp_path / file).write_text(json.dumps(identity | {"format": later}))
    with pytest.raises(DataDirectoryError, match=f"has format {later}, this version reads format {later - 1}"):
        fill(tmp_path)


def test_keys_that_a_later_version_added_are_passed_over(tmp_path: Path) -> None:
    fill(tmp_path)
    for file in (tmp_path / "identity", tenant(tmp_path) / "identity"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"later": [1]}))
    fill(tmp_path)


def test_a_tenant_that_was_moved_is_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    tenant(tmp_path).rename(tmp_path / "tenants" / "other")
    with pytest.raises(DataDirectoryError, match="is of tenant 'default': its log was moved here"):
        load_tenant(tmp_path / "tenants" / "other", "other", writable=True)


def test_the_identity_of_another_directory_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "one")
    fill(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "identity", tmp_path / "one" / "identity")
    before = image(tmp_path / "one")
    with pytest.raises(DataDamaged, match="one/identity is of data directory"):
        fill(tmp_path / "one")
    assert image(tmp_path / "one") | {"lock": b""} == before | {"lock": b""}


def test_a_log_that_names_no_directory_names_it_from_the_next_start_on(tmp_path: Path) -> None:
    fill(tmp_path)
    whole = (tenant(tmp_path) / "identity").read_text()
    named = json.loads(whole)
    del named["directory"]
    (tenant(tmp_path) / "identity").write_text(json.dumps(named))
    fill(tmp_path)
    assert (tenant(tmp_path) / "identity").read_text() == whole


def test_a_log_without_an_epoch_is_refused(tmp_path: Path) -> None:
    write_durably(tmp_path / "identity", msgspec.json.encode(TenantIdentity(1, "default", [], True)))
    with pytest.raises(DataDirectoryError, match="names no epoch"):
        load_tenant(tmp_path, "default", writable=True)


def test_a_new_log_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataDirectoryError, match="holds no log and is read-only"):
        load_tenant(tmp_path, "default", writable=False)


def test_epochs_are_letters_and_digits_and_never_the_same() -> None:
    names = {new_epoch() for _ in range(100)}
    assert len(names) == 100
    assert all(name.isalnum() and name.isascii() for name in names)


def test_an_epoch_is_a_map_that_may_grow() -> None:
    assert msgspec.json.decode(b'{"name": "e1", "first_seq": 1, "later": 2}', type=Epoch) == Epoch("e1", 1)


# --- Where it lies ---------------------------------------------------------------------------------------------------


def test_a_network_file_system_is_refused_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "_file_system", lambda path: "nfs4")
    with pytest.raises(DataDirectoryError, match=r"on a network file system \(nfs4\).*--data-dir"):
        open_directory(tmp_path)


def test_the_file_system_is_that_of_the_nearest_mount() -> None:
    assert directory._file_system(Path("/proc/self")) == "proc"
    assert directory._file_system(Path("/")) != ""


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(DataDirectoryError, match="cannot be made"):
        open_directory(tmp_path / "data")
    with pytest.raises(DataDirectoryError, match="cannot be made"):
        open_directory(tmp_path / "data" / "inner")


def test_a_lock_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(DataDirectoryError, match="cannot be used"):
        open_directory(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    write_durably(tmp_path / "file", b"old")
    (tmp_path / "file.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_durably(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


# --- Whether the index can be trusted --------------------------------------------------------------------------------


def test_an_index_is_trusted_in_the_same_boot_or_after_a_clean_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not index_is_trusted(tmp_path)
    (tmp_path / "data.mdb").touch()
    mark_index(tmp_path, clean=False)
    assert index_is_trusted(tmp_path)
    monkeypatch.setattr(directory, "boot_id", lambda: "another boot")
    assert not index_is_trusted(tmp_path)
    mark_index(tmp_path, clean=True)
    monkeypatch.setattr(directory, "boot_id", lambda: "a third boot")
    assert index_is_trusted(tmp_path)


def test_an_index_is_the_one_that_was_closed_as_long_as_no_bit_of_it_changed(tmp_path: Path) -> None:
    assert index_is_as_closed(tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"index")
    mark_index(tmp_path, clean=True)
    assert index_is_as_closed(tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"indeX")
    assert not index_is_as_closed(tmp_path)
    (tmp_path / "data.mdb").unlink()
    assert not index_is_as_closed(tmp_path)
    mark_index(tmp_path, clean=False)
    assert index_is_as_closed(tmp_path)


def test_an_index_that_nobody_touched_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    close_with_another_checksum(tmp_path, later_ns=10**9)
    assert index_is_as_closed(tmp_path), "its checksum would not match"
    os.utime(tmp_path / "data.mdb", ns=(0, (tmp_path / "data.mdb").stat().st_mtime_ns))
    assert not index_is_as_closed(tmp_path), "touched"
    close_with_another_checksum(tmp_path, later_ns=10**9)
    monkeypatch.setattr(directory, "boot_id", lambda: "another boot")
    assert not index_is_as_closed(tmp_path), "what is read now comes from the disk"


def test_an_index_that_was_written_just_now_is_read_again(tmp_path: Path) -> None:
    """Within one tick of the clock a further write leaves the same times."""
    close_with_another_checksum(tmp_path, later_ns=10**6)
    assert not index_is_as_closed(tmp_path)


def test_where_times_are_whole_seconds_an_index_is_read_again(tmp_path: Path) -> None:
    close_with_another_checksum(tmp_path, later_ns=10**9)
    mark = json.loads((tmp_path / "mark").read_text())
    stamp = FileStamp(**mark["stamp"])
    assert directory._is_telling(stamp, stamp.changed_ns + 10**9)
    seconds = msgspec.structs.replace(stamp, changed_ns=stamp.changed_ns // 10**9 * 10**9)
    assert not directory._is_telling(seconds, stamp.changed_ns + 10**9)


def close_with_another_checksum(path: Path, *, later_ns: int) -> None:
    """As an index is closed, so much after its last write: only the checksum says that it is another file."""
    file = path / "data.mdb"
    file.write_bytes(b"index")
    mark_index(path, clean=True, now_ns=lambda: file.stat().st_ctime_ns + later_ns)
    mark = json.loads((path / "mark").read_text())
    (path / "mark").write_text(json.dumps(mark | {"crc": mark["crc"] ^ 1}))


def test_a_mark_of_an_earlier_version_is_taken_at_its_word(tmp_path: Path) -> None:
    (tmp_path / "mark").write_text('{"format":1,"boot":"x","clean":true}')
    assert index_is_trusted(tmp_path)
    assert index_is_as_closed(tmp_path)


@pytest.mark.parametrize("mark", [b"", b"{", b"\xff", b'{"format": 2, "boot": "x", "clean": true}'])
def test_an_index_with_an_odd_mark_is_not_trusted(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "mark").write_bytes(mark)
    assert not index_is_trusted(tmp_path)


def test_a_mark_that_cannot_be_written_is_taken_away(tmp_path: Path) -> None:
    """A full disk: better folded again than trusted by mistake."""
    (tmp_path / "data.mdb").touch()
    mark_index(tmp_path, clean=True)
    (tmp_path / "mark.new").mkdir()
    mark_index(tmp_path, clean=False)
    assert not index_is_trusted(tmp_path)


def fill(path: Path) -> None:
    with opened(path) as log:
        log.append(sealed(log, [unit(log.head + 1)]))
