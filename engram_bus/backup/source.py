"""The log of a data directory as backups and exports take it: beside a bus, up to a head, every record checked."""

import os
from collections.abc import Iterator
from pathlib import Path

from engram_bus.errors import BackupError, DataDamaged, DataDirectoryError
from engram_bus.log.beside import Wrong, beginning_beside, raws_beside
from engram_bus.log.contract import Epoch
from engram_bus.log.directory import DEFAULT_TENANT, header_of, read_identity, read_tenant
from engram_bus.log.record import Record, RecordError, chain_follows, parse
from engram_bus.log.segment import SEGMENT


class Source:
    """One log, as it was when it was looked at: a running bus may have added to it since.

    Raises DataDirectoryError for what is no data directory, or whose log is not the one it names.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.tenant = DEFAULT_TENANT
        if not ((data_dir / "identity").exists() or (data_dir / "tenants").exists()):
            raise DataDirectoryError(f"{data_dir} is no data directory: it has no identity")
        read_identity(data_dir)
        _refuse_others(data_dir)
        folder = data_dir / "tenants" / self.tenant
        self._log = folder / "log"
        identity = read_tenant(folder, self.tenant)
        self.epochs: tuple[Epoch, ...] = tuple(identity.epochs)
        self.head = 0
        if identity.established or (self._log / "data.mdb").exists():
            beginning = beginning_beside(self._log)
            if beginning.head is None or beginning.header is None or beginning.wrong:
                raise DataDamaged(beginning.wrong or f"{self._log} has lost its header")
            if beginning.header != header_of(identity):
                raise DataDamaged(f"{self._log} is another log than {folder / 'identity'} says")
            self.head = beginning.head
            # A writer that was killed in its flush has left what a power cut could still take away.
            for file in (self._log / "data.mdb", self._log / SEGMENT):
                _flush(file)

    def records(self, after: int, chain: bytes) -> Iterator[Record]:
        """The records after a seq whose chain digest is `chain`. Raises DataDamaged, naming the unit."""
        for seq, raw in raws_beside(self._log, after=after, last=self.head):
            if isinstance(raw, Wrong):
                raise self._damaged(seq, raw.what)
            try:
                record = parse(raw, seq)
            except RecordError as exc:
                raise self._damaged(seq, str(exc)) from exc
            if not chain_follows(record, chain):
                raise self._damaged(seq, "does not follow the digest chain")
            chain = record.chain
            yield record

    def record(self, seq: int) -> Record:
        """One record by itself. Raises DataDamaged."""
        (found,) = raws_beside(self._log, after=seq - 1, last=seq)
        if isinstance(found[1], Wrong):
            raise self._damaged(seq, found[1].what)
        try:
            return parse(found[1], seq)
        except RecordError as exc:
            raise self._damaged(seq, str(exc)) from exc

    def _damaged(self, seq: int, what: str) -> DataDamaged:
        return DataDamaged(f"unit {seq} of {self.data_dir} {what}")


def _flush(file: Path) -> None:
    if not file.exists():
        return  # A log of an older version has no segment.
    try:
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as exc:
        raise DataDirectoryError(f"{file} cannot be flushed: {exc}") from exc


def _refuse_others(data_dir: Path) -> None:
    """A data directory has one log so far: others must not be left out in silence."""
    others = [path.name for path in (data_dir / "tenants").glob("*") if path.name != DEFAULT_TENANT]
    if others:
        raise BackupError(f"{data_dir} holds logs of other tenants ({', '.join(sorted(others))}): only one is taken")
