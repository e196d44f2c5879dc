"""An export gives every unit exactly; an import names the line and field of what no bus can have recorded."""

import io
import json
import shutil
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from engram_bus.backup.exporting import export
from engram_bus.backup.importing import import_lines
from engram_bus.backup.lines import parse_unit, unit_line
from engram_bus.codec import unit_json
from engram_bus.errors import BackupError, DataDamaged, ImportRefused
from engram_bus.limits import EXPORT_LINE_BYTES_MAX
from engram_bus.log.index import seq_key
from engram_bus.units import FORMAT_JSON, WorkUnit
from tests.backup.logs import COMMANDS, epochs_of, fill, records_of, write
from tests.disk import opened, stored, tampering
from tests.values import unit, units


def exported(path: Path) -> bytes:
    out = io.BytesIO()
    assert export(path, out).bytes == len(out.getvalue())
    return out.getvalue()


def imported(lines: bytes, path: Path) -> list[WorkUnit]:
    import_lines(io.BytesIO(lines), path)
    return units_of(path)


def units_of(path: Path) -> list[WorkUnit]:
    return [record.unit for record in records_of(path)]


@pytest.fixture
def lines(tmp_path: Path) -> list[bytes]:
    """The export of six units, in two commands."""
    fill(tmp_path / "data", range(1, 7), group=3)
    return exported(tmp_path / "data").splitlines(keepends=True)


# --- Round trips -----------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commands=COMMANDS)
def test_any_log_comes_back_unit_by_unit(commands: list[list[WorkUnit]], tmp_path: Path) -> None:
    for name in ("any", "any-imported"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    write(tmp_path / "any", commands)
    lines = exported(tmp_path / "any")
    assert imported(lines, tmp_path / "any-imported") == units_of(tmp_path / "any")
    assert exported(tmp_path / "any-imported").splitlines()[1:-1] == lines.splitlines()[1:-1]


@given(units())
def test_any_unit_is_a_line(one: WorkUnit) -> None:
    line = unit_line(one)
    assert line.count(b"\n") == 1
    assert parse_unit(line) == one


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b' {"a":1}',
        b"[1]\n",
        b"[1,\n2]",
        b'{"a": 1,   "b":"\\u0041"}',
        b"1.50",
        b"1e400",
        b"NaN",
        b'"\xff"',
        b"",
        b"\0\0",
    ],
)
def test_a_payload_of_json_is_exact(payload: bytes) -> None:
    one = msgspec.structs.replace(unit(), content_type=FORMAT_JSON, payload=payload)
    line = unit_line(one)
    said = json.loads(line)
    assert ("payload" in said) != ("payload_base64" in said)
    if payload not in (b"1e400", b"NaN", b'"\xff"'):  # No bus records those.
        assert parse_unit(line).payload == payload


def test_a_line_is_the_unit_as_it_is_on_the_wire(lines: list[bytes], tmp_path: Path) -> None:
    assert [line.rstrip() for line in lines[1:-1]] == [unit_json(one) for one in units_of(tmp_path / "data")]
    header, end = json.loads(lines[0]), json.loads(lines[-1])
    assert header == {
        "engram_export": 1,
        "tenant": "default",
        "epochs": [{"name": epochs_of(tmp_path / "data")[0].name, "first_seq": 1}],
        "head": 6,
    }
    digest = blake2b(b"".join(lines[:-1]), digest_size=32).hexdigest()
    assert end == {"engram_export_end": {"units": 6, "blake2b": digest}}


def test_an_import_is_a_new_epoch_behind_its_head(lines: list[bytes], tmp_path: Path) -> None:
    report = import_lines(io.BytesIO(b"".join(lines)), tmp_path / "imported")
    old, new = epochs_of(tmp_path / "imported")
    assert [old] == epochs_of(tmp_path / "data")
    assert (report.cursor, new.first_seq, report.is_sealed) == (f"{new.name}.6", 7, True)


def test_without_its_last_line_it_is_taken_and_that_is_said(lines: list[bytes], tmp_path: Path) -> None:
    assert not import_lines(io.BytesIO(b"".join(lines[:-1])), tmp_path / "imported").is_sealed


def test_an_empty_log_is_exported_and_imported(tmp_path: Path) -> None:
    with opened(tmp_path / "data"):
        pass
    assert imported(exported(tmp_path / "data"), tmp_path / "imported") == []


# --- Refused ---------------------------------------------------------------------------------------------------------


def change(**fields: Any) -> Callable[[list[bytes]], None]:
    """Of unit 4, which is in line 5; None takes a field away."""

    def changed(lines: list[bytes]) -> None:
        said = json.loads(lines[4]) | fields
        lines[4] = json.dumps({name: value for name, value in said.items() if value is not None}).encode() + b"\n"

    return changed


def line(number: int, content: bytes | None) -> Callable[[list[bytes]], None]:
    def changed(lines: list[bytes]) -> None:
        lines[number - 1 : number] = [] if content is None else [content]

    return changed


@pytest.mark.parametrize(
    ("break_it", "at", "field", "why"),
    [
        (line(1, None), 1, "engram_export", "this is no export of engram"),
        (line(1, b""), 1, "engram_export", "this is no export of engram"),
        (
            line(1, b'{"engram_export": 2, "tenant": "default", "epochs": [], "head": 6}\n'),
            1,
            "engram_export",
            "format 2",
        ),
        (
            line(1, b'{"engram_export": 1, "tenant": "default", "epochs": [], "head": 6}\n'),
            1,
            "epochs",
            "epochs do not",
        ),
        (line(4, None), 4, "seq", "seq 4, 3 is next"),
        (line(4, b"\n"), 4, None, "cannot be read"),
        (line(4, b"{\n"), 4, None, "cannot be read"),
        (line(4, b"\xff\n"), 4, None, "cannot be read"),
        (line(7, None), 7, "units", "it says 6 units, 5 lines are before it"),
        (change(seq=5), 5, "seq", "seq 5, 4 is next"),
        (change(version=3), 5, "version", "version 3 of 'c1', 2 is next"),
        (change(ts="1970-01-01T00:00:01.000000Z"), 5, "ts", "is before 1970-01-01T00:00:03.000000Z"),
        (change(ts="yesterday"), 5, "ts", "'yesterday' is not like 2026-01-31T12:00:00.000000Z"),
        (change(id="00000000-0000-7000-8000-000000000002"), 5, "id", "is taken by an earlier unit"),
        (change(id="4"), 5, "id", "is not a lower-case UUID"),
        (change(type="LOUD"), 5, "type", "Invalid enum value"),
        (change(agent_id=None), 5, "agent_id", "missing required field"),
        (change(context_id="a\nb"), 5, "context_id", "control character"),
        (change(payload=None), 5, "payload", "payload and payload_base64 are both missing"),
        (change(payload_base64="YQ=="), 5, "payload_base64", "exclude each other"),
        (change(payload=None, payload_base64="?"), 5, "payload_base64", "is not base64"),
        (change(payload={"a": 1}), 5, "payload", ""),
        (change(content_type="image/png"), 5, "payload", "goes into payload_base64"),
        (change(colour="red"), 5, "colour", "unknown field"),
        (change(kind="Loud"), 5, "kind", "is not dotted lower case"),
        (change(kind="lock.granted"), 5, "type", "is SYSTEM, not MESSAGE"),
        (change(kind="lock.granted", type="SYSTEM"), 5, "payload", "a lock.granted that no bus can have written"),
        (change(meta={str(n): "v" for n in range(65)}), 5, "meta", "at most 64"),
        (change(payload="x" * EXPORT_LINE_BYTES_MAX), 5, None, "it has more than"),
        (change(payload="changed"), 8, "blake2b", "are not those that were written"),
        (line(9, b"x"), 9, None, "nothing comes after the last line"),
    ],
)
def test_what_is_not_an_export_is_named_by_line_and_field(
    lines: list[bytes], tmp_path: Path, break_it: Callable[[list[bytes]], None], at: int, field: str | None, why: str
) -> None:
    break_it(lines)
    with pytest.raises(ImportRefused) as refused:
        imported(b"".join(lines), tmp_path / "imported")
    assert (refused.value.line, refused.value.field) == (at, field), str(refused.value)
    assert why in str(refused.value)
    assert not (tmp_path / "imported").exists()


def test_what_was_cut_off_anywhere_is_refused(lines: list[bytes], tmp_path: Path) -> None:
    whole = b"".join(lines)
    for end in range(0, len(b"".join(lines[:-2])) + 10, 37):
        with pytest.raises(ImportRefused):
            imported(whole[:end], tmp_path / "imported")


def test_a_used_directory_is_refused_before_anything_is_read(lines: list[bytes], tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="is not empty"):
        imported(b"".join(lines), tmp_path / "data")


def test_an_export_ends_at_a_damaged_unit_and_is_then_no_export(tmp_path: Path) -> None:
    fill(tmp_path / "data", range(1, 7))
    with tampering(tmp_path / "data", "log") as txn:
        txn.put(seq_key(4), stored(txn, seq_key(4))[:-1])
    out = io.BytesIO()
    with pytest.raises(DataDamaged, match=r"unit 4 of .* does not match its checksum"):
        export(tmp_path / "data", out)
    assert len(out.getvalue().splitlines()) == 4
    with pytest.raises(ImportRefused, match="the file ends after unit 3, its first line says 6"):
        imported(out.getvalue(), tmp_path / "imported")
