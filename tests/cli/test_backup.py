"""backup, restore, export, import, repair and verify on the command line: what they print, and how they end."""

import json
from pathlib import Path

import pytest

from engram_bus.log.index import Table, seq_key
from tests.backup.logs import epochs_of, fill, raws_of, records_of
from tests.disk import stored, tampering
from tests.process import engram
from tests.values import unit_id


@pytest.fixture
def data(tmp_path: Path) -> Path:
    fill(tmp_path / "data", range(1, 7), group=3)
    return tmp_path / "data"


def done(*arguments: object) -> list[str]:
    """The lines of a command that works."""
    ended = engram(*map(str, arguments))
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def failed(*arguments: object, code: int = 1) -> str:
    ended = engram(*map(str, arguments))
    assert ended.returncode == code, (ended.returncode, ended.stderr)
    assert ended.stderr.startswith("engram: ")
    return ended.stderr


def test_a_backup_and_what_is_restored_of_it(data: Path, tmp_path: Path) -> None:
    kept, restored = tmp_path / "backup", tmp_path / "restored"
    epoch = epochs_of(data)[0].name
    chain = records_of(data)[-1].chain.hex()
    told = done("backup", data, kept)
    assert told[0] == f"{kept}: everything up to {epoch}.6, chain {chain}"
    assert told[1].startswith("  6 units more, ")
    assert done("backup", data, kept)[1].endswith("  0 units more, 0 bytes; 1 segment")
    assert json.loads(done("backup", data, kept, "--json")[0])["head"] == 6
    assert done("verify", kept)[0] == f"{kept}: backup, whole"
    assert json.loads(done("verify", kept, "--json")[0])["damage"] == []
    told = done("restore", kept, restored, "--to-seq", 5)
    new = epochs_of(restored)[-1].name
    assert told[:2] == [f"{restored}: whole", "  default: 3 of 3 units whole, in 3 contexts"]
    assert told[-2] == "  2 units more were asked for, but only together with later ones: left out"
    assert told[-1] == f"  epoch {new} begins: cursors up to 3 go on, later ones are told EPOCH_CHANGED"
    assert json.loads(done("restore", kept, tmp_path / "second", "--json")[0])["head"] == 6
    assert done("restore", kept, tmp_path / "third", "--to-time", "1970-01-01T00:00:04Z")[1].startswith(
        "  default: 3 of"
    )


def test_what_is_wrong_with_them_is_one_line(data: Path, tmp_path: Path) -> None:
    kept = tmp_path / "backup"
    done("backup", data, kept)
    assert "is no data directory (it has no identity) and no backup" in failed("verify", tmp_path, code=2)
    for other in (tmp_path / "none", kept):
        told = f"engram: {other} is no data directory: it has no identity\n"
        assert failed("backup", other, tmp_path / "b") == failed("export", other) == told
    for other in (tmp_path / "none", data):
        told = f"engram: {other} is no backup: it has no manifest.json\n"
        assert failed("restore", other, tmp_path / "r") == failed("repair", data, "--from", other) == told
    assert "exclude each other" in failed("restore", kept, tmp_path / "r", "--to-seq", 1, "--to-time", "x", code=2)
    assert "is not a time as RFC 3339 writes it" in failed("restore", kept, tmp_path / "r", "--to-time", "x", code=2)
    assert "holds units 1 to 6, not unit 9" in failed("restore", kept, tmp_path / "r", "--to-seq", 9)
    assert "is not empty: name a new directory" in failed("restore", kept, data)
    (kept / "manifest.json").write_bytes(b"{}")
    assert "is damaged: manifest.json: it cannot be read" in failed("restore", kept, tmp_path / "r")
    assert "is damaged: keep it, and make another one elsewhere" in failed("verify", kept)


def test_an_export_and_what_is_imported_of_it(data: Path, tmp_path: Path) -> None:
    exported = engram("export", str(data))
    assert exported.returncode == 0
    assert exported.stderr.startswith(f"everything up to {epochs_of(data)[0].name}.6, ")
    (tmp_path / "x.ndjson").write_text(exported.stdout)
    told = done("import", tmp_path / "x.ndjson", tmp_path / "imported")
    assert told[0] == f"{tmp_path / 'imported'}: whole"
    assert told[-1] == f"  epoch {epochs_of(tmp_path / 'imported')[-1].name} begins: cursors up to 6 go on"
    lines = exported.stdout.splitlines(keepends=True)
    piped = engram("import", "-", str(tmp_path / "piped"), said="".join(lines[:-1]))
    assert piped.stdout.endswith(
        "  the file has no last line with a checksum: what was changed in it could not be told\n"
    )
    assert [record.unit for record in records_of(tmp_path / "piped")] == [record.unit for record in records_of(data)]
    (tmp_path / "x.ndjson").write_text("".join(lines[:2] + lines[3:]))
    assert "line 3, field seq: seq 3, 2 is next" in failed("import", tmp_path / "x.ndjson", tmp_path / "refused")
    assert "cannot be read: No such file" in failed("import", tmp_path / "none", tmp_path / "refused", code=2)
    assert not (tmp_path / "refused").exists()


def test_a_repair_and_what_it_cannot_do(data: Path, tmp_path: Path) -> None:
    kept, whole = tmp_path / "backup", raws_of(data)
    done("backup", data, kept)
    assert done("repair", data)[0] == f"{data}: whole"
    told = done("repair", data, "--drop-after", 5)
    assert told[:2] == ["the log is whole: nothing has to be dropped, and nothing was", f"{data}: whole"]
    with tampering(data, "log") as txn:
        txn.put(seq_key(5), stored(txn, seq_key(5))[:-1])
    told = failed("verify", data)
    assert f"is damaged: `engram repair {data}` says what can be done" in told
    told = failed("backup", data, tmp_path / "another")
    assert "unit 5 of" in told
    assert "`engram verify` says what is damaged, `engram repair` what can be done" in told
    assert "--drop-after 3` keeps the log up to there" in failed("repair", data)
    told = "\n".join(done("repair", data, "--from", kept))
    assert "damaged: tenants/default/log, unit 5: does not match its checksum" in told
    assert "repaired: unit 5 came from the backup" in told
    assert "the damaged directory is kept at " in told
    assert f"{data}: whole" in told
    assert raws_of(data) == whole
    with tampering(data, "index", Table.IDS) as txn:
        txn.delete(unit_id(3).encode())
    assert json.loads(done("repair", data, "--json")[0])["report"]["damage"] == []
