"""What is stored by itself (records, backups, exports, settings), and what may come of any bytes in its place."""

from collections.abc import Callable, Iterator
from typing import TypeVar
from zlib import crc32

import msgspec
import yaml

from engram_bus.backup import lines, manifest, segments
from engram_bus.backup.checking import check_backup
from engram_bus.backup.manifest import MANIFEST, SEGMENTS, Segment, new_digest
from engram_bus.errors import BackupError, EngramError
from engram_bus.log.history import History
from engram_bus.log.record import (
    NOTHING_PRIVATE,
    Record,
    RecordError,
    body_of,
    chain_follows,
    parse,
    redact,
    seal,
)
from engram_bus.settings import Settings, SettingsError, load
from engram_bus.units import WorkUnit, is_own_kind
from tests.fuzz.world import World, require

_CRC = slice(4, 8)
_PRIVATE_AT = 74
_SEALED = 1
"""The bit of an input's first byte that says: make the checksum anew, so that what lies behind it is read too."""


# --- Records ---------------------------------------------------------------------------------------------------------


def record_seeds(world: World) -> Iterator[bytes]:
    for raw in world.raws:
        yield b"\0" + raw
        yield b"\1" + raw
        yield b"\1" + _redacted(raw)


def _redacted(raw: bytes) -> bytes:
    record = parse(raw, int.from_bytes(raw[8:16], "big"))
    return raw if is_own_kind(record.unit.kind) else redact(record)


def check_record(world: World, data: bytes) -> str:
    """A record is one that was written, or a RecordError; what is read of it can be written again."""
    is_sealed, raw = data[:1] == bytes([_SEALED]), data[1:]
    if is_sealed and len(raw) >= _CRC.stop:
        raw = (
            raw[: _CRC.start] + crc32(raw[_CRC.stop :], crc32(raw[: _CRC.start])).to_bytes(4, "big") + raw[_CRC.stop :]
        )
    seq = int.from_bytes(raw[8:16], "big")
    body = _read_or_refused(lambda: body_of(raw, seq))
    record = _read_or_refused(lambda: parse(raw, seq))
    if record is None:
        return "refused"
    require(record.body == body, "parse and body_of read another body")
    is_written = any(raw in (one, _redacted(one)) for one in world.raws[seq - 1 : seq])
    require(is_sealed or is_written, "a record that nobody wrote passes for one")
    _check_written_again(record, world.chain_before(seq))
    return "read"


T = TypeVar("T")


def _read_or_refused(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except RecordError:
        return None


def _check_written_again(record: Record, previous: bytes) -> None:
    unit, raw = record.unit, record.raw
    encoded = msgspec.msgpack.encode(unit)
    require(msgspec.msgpack.decode(encoded, type=WorkUnit) == unit, "the unit is not what its encoding says")
    follows = chain_follows(record, previous)
    History().take(record)
    if not is_own_kind(unit.kind):
        redacted = parse(redact(record), unit.seq)
        require(redacted.redacted and not any(redacted.unit.payload), "what is redacted keeps its payload")
        require(chain_follows(redacted, previous) == follows, "redacting breaks the chain")
    kept = msgspec.msgpack.encode(record.private) if record.private is not NOTHING_PRIVATE else b""
    if follows and not record.redacted and raw[_PRIVATE_AT:] == kept + encoded:
        place = {"group_units": record.group_units, "group_index": record.group_index}
        again = seal(unit, previous=previous, salt=raw[58:_PRIVATE_AT], private=record.private, **place)
        require(again.raw == raw, "sealed again it has other bytes")


# --- Backups ---------------------------------------------------------------------------------------------------------


def manifest_seeds(world: World) -> Iterator[bytes]:
    sealed = (world.backup / MANIFEST).read_bytes()
    yield b"\0" + sealed
    yield b"\1" + msgspec.json.encode(manifest.load(world.backup))
    yield b"\1" + msgspec.json.encode(manifest.empty("default", manifest.load(world.backup).epochs, "2026"))


def check_manifest(world: World, data: bytes) -> str:
    """It is the one that was written, or a BackupError; and a check of the backup says what is wrong, and no more."""
    content = data[1:]
    with world.copied(world.backup) as path:
        if data[:1] == bytes([_SEALED]):
            # The digest stands over exactly these bytes, whatever they are.
            content = b'{"blake2b":"%s","engram_backup":%s}' % (manifest._digest(content).encode(), content)
        (path / MANIFEST).write_bytes(content)
        try:
            found = manifest.load(path)
        except BackupError as exc:
            require(MANIFEST in str(exc) or "of format" in str(exc), f"the refusal does not name the file: {exc}")
            require(not check_backup(path).is_whole, "a backup that cannot be loaded is said to be whole")
            return "refused"
        report = check_backup(path)
        is_the_same = msgspec.structs.replace(found, written_at="") == msgspec.structs.replace(
            manifest.load(world.backup), written_at=""
        )
        if data[:1] != bytes([_SEALED]):
            require(is_the_same, "a manifest that nobody wrote passes for one")
        require(report.is_whole or not is_the_same, f"the same backup is damaged: {report.damage}")
        return "read"


def segment_seeds(world: World) -> Iterator[bytes]:
    raw = (world.backup / SEGMENTS / manifest.load(world.backup).segments[0].name).read_bytes()
    yield b"\0" + raw
    yield b"\1" + raw


def check_segment(world: World, data: bytes) -> str:
    """What is read of a segment was written, up to a BackupDamaged. Sealed, its digest is that of the bytes."""
    told, raw = manifest.load(world.backup), data[1:]
    segment = told.segments[0]
    if is_sealed := data[:1] == bytes([_SEALED]):
        raw = _frames_sealed(raw)
        digest = new_digest()
        digest.update(raw)
        segment = Segment(segment.name, segment.first_seq, segment.last_seq, len(raw), digest.hexdigest())
    with world.copied(world.backup) as path:
        (path / SEGMENTS / segment.name).write_bytes(raw)
        manifest.save(path, msgspec.structs.replace(told, segments=(segment,)))
        found: list[bytes] = []
        try:
            found.extend(record.raw for record in segments.segment_records(path, segment))
        except manifest.BackupDamaged as exc:
            require(segment.name in str(exc), f"the refusal does not name the file: {exc}")
            require(not check_backup(path).is_whole, "a backup whose segment is damaged is said to be whole")
            outcome = "refused"
        else:
            outcome = "read"
            require(len(found) == len(world.raws), "a shorter segment passes for the whole")
            require(is_sealed or found == world.raws, "an altered segment passes")
        require(is_sealed or found == world.raws[: len(found)], "an altered record passes")
        return outcome


def _frames_sealed(raw: bytes) -> bytes:
    """The same with the checksum of each frame made anew, as far as its length leads."""
    sealed, at = bytearray(raw), 16
    while at + 8 <= len(sealed):
        size = int.from_bytes(sealed[at : at + 4], "big")
        content = bytes(sealed[at + 8 : at + 8 + size])
        sealed[at + 4 : at + 8] = crc32(content, crc32(bytes(sealed[at : at + 4]))).to_bytes(4, "big")
        at += 8 + size
    return bytes(sealed)


# --- Exports ---------------------------------------------------------------------------------------------------------


def export_seeds(world: World) -> Iterator[bytes]:
    yield b'{"engram_export": 1, "tenant": "default", "epochs": [{"name": "e0", "first_seq": 1}], "head": 32}'
    yield b'{"engram_export_end": {"units": 32, "blake2b": "00"}}'
    yield from (lines.unit_line(parse(raw, seq).unit) for seq, raw in enumerate(world.raws, start=1))


def check_export(world: World, data: bytes) -> str:
    """A line is refused with an EngramError, or what it says can be exported again and says the same."""
    for read in (lines.parse_header, lines.parse_end):
        try:
            read(data)
        except EngramError:
            continue
        return "read"
    try:
        unit = lines.parse_unit(data)
    except EngramError:
        return "refused"
    require(lines.parse_unit(lines.unit_line(unit)) == unit, "exported again it is another unit")
    return "read"


# --- Settings --------------------------------------------------------------------------------------------------------


def settings_seeds(world: World) -> Iterator[bytes]:
    told = msgspec.to_builtins(Settings(allow_origins=("https://example.org:8443",), grpc_port=1))
    yield b"\0" + yaml.safe_dump(told).encode()
    yield b"\0host: localhost\nallow_origins: [https://a.example]\ngrpc: off\nport: 0x10\n"
    yield b"\1" + "\n".join(f"ENGRAM_{name.upper()}={value}" for name, value in told.items()).encode()


def check_settings(world: World, data: bytes) -> str:
    """A file or an environment gives settings that are allowed, or a SettingsError."""
    try:
        text = data[1:].decode()
    except UnicodeDecodeError:
        return "refused"  # `engram serve` says so before.
    pairs = (line.partition("=") for line in text.splitlines())
    environment = {name: value for name, _, value in pairs} if data[:1] == b"\1" else {}
    try:
        settings = load(flags={}, environment=environment, file=None if environment else text)
    except SettingsError:
        return "refused"
    told = yaml.safe_dump(msgspec.to_builtins(settings))
    require(load(flags={}, environment={}, file=told) == settings, "written to a file they are other settings")
    return "read"
