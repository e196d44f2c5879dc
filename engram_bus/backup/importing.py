"""`engram import`: a new data directory from an export, with its ids, seqs, versions, times and order.

An export proves nothing: it has no digests. So every line is held to what a bus records (bounds, places, times, ids
that are used once, changes that can be folded), a new digest chain is made, and a new epoch begins behind its head.
Cursors of the log it was made of resume up to there: seqs are the same.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from engram_bus.backup.building import NewLog, continued, new_directory, refuse_used
from engram_bus.backup.lines import Header, is_end, parse_end, parse_header, parse_unit
from engram_bus.backup.manifest import new_digest
from engram_bus.decisions.state import State
from engram_bus.errors import BackupError, EngramError, ImportRefused, InvalidRequest
from engram_bus.limits import EXPORT_LINE_BYTES_MAX
from engram_bus.log.contract import cursor_text
from engram_bus.log.history import is_ts
from engram_bus.log.record import SALT_BYTES, seal
from engram_bus.units import WorkUnit
from engram_bus.verify import VerifyReport, verify

_TELL_UNITS = 10_000


class Imported(msgspec.Struct, frozen=True):
    """What an import came to; `report` is what `engram verify` says of it."""

    path: str
    cursor: str
    head: int
    is_sealed: bool
    """Whether the file had its last line, so that every byte of it was compared with what was written."""
    report: VerifyReport


def import_lines(
    lines: IO[bytes], data_dir: Path, *, tell: Callable[[int, int], None] = lambda seq, head: None
) -> Imported:
    """Make `data_dir` of an export. When it returns all of it is durable and was verified.

    Raises ImportRefused, which names line and field, BackupError and DataDirectoryError; what was not made whole is
    taken away again.
    """
    refuse_used(data_dir)
    reading = _Reading(lines)
    header = reading.header()
    epochs = continued(header.epochs, header.head)
    with new_directory(data_dir, epochs=epochs, tenant=header.tenant) as log:
        placing = _Placing(log)
        for line in reading.units():
            try:
                placing.take(parse_unit(line))
            except EngramError as exc:
                raise reading.refused(exc.message, exc.field) from exc
            if log.history.seq % _TELL_UNITS == 0:
                tell(log.history.seq, header.head)
        if log.history.seq != header.head:
            raise reading.refused(f"the file ends after unit {log.history.seq}, its first line says {header.head}")
    report = verify(data_dir)
    if not report.is_whole:
        raise BackupError(f"{data_dir} was written, but does not read back whole: {report.damage[0]}")
    return Imported(str(data_dir), cursor_text(epochs[-1].name, header.head), header.head, reading.is_sealed, report)


class _Reading:
    """The lines of a file, each of a bounded length, and the digest over them."""

    def __init__(self, lines: IO[bytes]) -> None:
        self._lines = lines
        self._digest = new_digest()
        self.line = 0
        self.is_sealed = False

    def header(self) -> Header:
        """The first line. Raises ImportRefused."""
        line = self._next()
        try:
            return parse_header(line)
        except EngramError as exc:
            raise self.refused(f"this is no export of engram: {exc.message}", exc.field) from exc

    def units(self) -> Iterator[bytes]:
        """The lines of units, up to the last line, which is checked. Raises ImportRefused."""
        while line := self._next():
            if is_end(line):
                self._check_end(line)
                return
            yield line

    def refused(self, what: str, field: str | None = None) -> ImportRefused:
        """The line that was read last is at fault."""
        place = f"line {self.line}" if field is None else f"line {self.line}, field {field}"
        return ImportRefused(f"{place}: {what}", line=self.line, field=field)

    def _next(self) -> bytes:
        line = self._lines.readline(EXPORT_LINE_BYTES_MAX + 1)
        self.line += 1 if line else 0
        if len(line) > EXPORT_LINE_BYTES_MAX:
            raise self.refused(f"it has more than {EXPORT_LINE_BYTES_MAX} bytes")
        if not is_end(line):
            self._digest.update(line)
        return line

    def _check_end(self, line: bytes) -> None:
        try:
            found = parse_end(line)
        except EngramError as exc:
            raise self.refused(exc.message, exc.field) from exc
        if found.units != self.line - 2:
            raise self.refused(f"it says {found.units} units, {self.line - 2} lines are before it", "units")
        if found.blake2b != self._digest.hexdigest():
            raise self.refused("the lines before it are not those that were written", "blake2b")
        if self._next():
            raise self.refused("nothing comes after the last line")
        self.is_sealed = True


class _Placing:
    """Units put into a new log, each where it says it is."""

    def __init__(self, log: NewLog) -> None:
        self._log = log
        self._state = State()

    def take(self, unit: WorkUnit) -> None:
        """Add a unit. Raises InvalidRequest, which names the field."""
        history = self._log.history
        _require(unit.seq == history.seq + 1, "seq", f"{unit.seq}, {history.seq + 1} is next")
        version = history.versions.get(unit.context_id, 0) + 1
        _require(unit.version == version, "version", f"{unit.version} of {unit.context_id!r}, {version} is next")
        _require(is_ts(unit.ts), "ts", f"{unit.ts[:64]!r} is not like 2026-01-31T12:00:00.000000Z")
        _require(unit.ts >= history.ts, "ts", f"{unit.ts} is before {history.ts}")
        _require(not self._log.has_id(unit.id), "id", f"{unit.id} is taken by an earlier unit")
        try:
            self._state.evolve(unit)
        except Exception as exc:
            # Whatever a fold trips over: no bus would start on it.
            raise InvalidRequest(f"a {unit.kind} that no bus can have written: {exc!r}", field="payload") from exc
        self._log.take(seal(unit, previous=history.chain, salt=os.urandom(SALT_BYTES)))


def _require(is_so: bool, field: str, what: str) -> None:
    if not is_so:
        raise InvalidRequest(f"{field} {what}", field=field)
