"""What a log promises, whatever it stands on. Nothing above `log/` may know more than this.

Kept by every implementation, and held by `tests/contracts/test_log.py`:

1. `append` is all or nothing, and durable (as far as `durability` says) when it returns. If it raises, nothing of it
   is there, now or after a restart.
2. `seq` is 1, 2, 3, ... without a gap; a read never shows a record after `head`, nor before `append` returned.
3. What is read is what was appended, or `LogDamaged` naming the seq. Never a shorter history as the whole one.
4. Every lookup (by id, context, target, idempotency key) reflects `head`, and every hit is checked against its record.
5. No read keeps anything open when it returns.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import msgspec

from engram_bus.codec import Entry
from engram_bus.errors import CursorAhead, CursorInvalid, EpochChanged
from engram_bus.log.record import Record


class Epoch(msgspec.Struct, frozen=True):
    """One stretch of a log's history; a restore to an earlier point and an import begin a new one.

    It lies in the log's identity as a map, so that later versions can say more of it.
    """

    name: str
    first_seq: int


class Sizes(NamedTuple):
    """Bytes on the disk; all 0 for a log in memory, where `free_bytes` is unknown (None)."""

    log_bytes: int
    index_bytes: int
    free_bytes: int | None


class Snapshot(NamedTuple):
    """A decision's state as of `seq`."""

    seq: int
    state: bytes


class Log(Protocol):
    """One append-only, ordered, durable log of records with its lookups."""

    @property
    def durability(self) -> str:
        """What survives after `append` returned: "fsync" (a power cut) or "memory" (nothing)."""

    @property
    def epochs(self) -> Sequence[Epoch]:
        """The log's history, oldest first; the last is the current one."""

    @property
    def head(self) -> int:
        """The newest seq, 0 for an empty log."""

    @property
    def chain(self) -> bytes:
        """The chain digest of the newest record (`record.GENESIS` for an empty log)."""

    def append(self, records: Sequence[Record]) -> None:
        """Add records whose seqs follow `head`. Raises StorageFull, StorageReadOnly or StorageFailed."""

    @property
    def settled(self) -> int:
        """Up to here whoever reads the log beside the bus finds it all, by any lookup too; not beyond `head`."""

    def settle(self) -> None:
        """Bring `settled` up to `head`: where that takes time, appends leave it to a better moment.

        Raises StorageFull, StorageReadOnly, StorageFailed or LogDamaged; what was appended is durable all the same.
        """

    def probe(self) -> None:
        """Whether appends can be taken (again). Raises as `append` does."""

    def read(self, after: int, *, units_max: int, bytes_max: int) -> list[Entry]:
        """The units after a seq, oldest first, up to `units_max` and about `bytes_max` (at least one).

        Ends early before a damaged record; raises LogDamaged (with `seq`) when that is the first one.
        """

    def read_context(
        self, context_id: str, *, after: int, before: int | None, reverse: bool, units_max: int, bytes_max: int
    ) -> list[Entry]:
        """The units of a context with after < seq < before, oldest first (newest first if `reverse`)."""

    def record(self, seq: int) -> Record:
        """The record at 1 <= seq <= head. Raises LogDamaged."""

    def seq_of_id(self, unit_id: str) -> int | None:
        """Where the unit of this id lies."""

    def seq_of_key(self, agent_id: str, key: str) -> int | None:
        """Where the first unit of the command with this idempotency key lies."""

    def seqs_relating_to(self, target_id: str, *, units_max: int) -> list[int]:
        """The units with a relationship to this one, oldest first."""

    def context_ids(self, after: str, *, prefix: str, limit: int) -> list[str]:
        """Ids of contexts after one, in byte order."""

    def save_snapshot(self, name: str, snapshot: Snapshot) -> None:
        """Keep a decision's state; the newest under a name replaces the older."""

    def load_snapshot(self, name: str) -> Snapshot | None:
        """The newest kept state that is not ahead of `head`."""

    def sizes(self) -> Sizes:
        """What the log takes and has left."""

    def close(self) -> None:
        """Release everything; calling it again does nothing."""


def cursor_text(epoch: str, seq: int) -> str:
    """A cursor as it stands on the wire: `epoch.seq`."""
    return f"{epoch}.{seq}"


def cursor_seq(cursor: str, *, epochs: Sequence[Epoch], head: int, field: str = "after") -> int:
    """The seq a cursor stands for in this log: `epoch.seq`, or a bare seq of the current epoch; `field` names it.

    A cursor of an older epoch at or below the fork resumes. Raises CursorInvalid, CursorAhead, EpochChanged.
    """
    name, dot, digits = cursor.rpartition(".")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 20) or (dot and not name):
        raise CursorInvalid(f"{cursor[:64]!r} is not a cursor: expected epoch.seq, a seq, or 0", field=field)
    seq = int(digits)
    if dot:
        _check_epoch(name, seq, epochs, field)
    if seq > head:
        raise CursorAhead(f"the cursor is at {seq}, the log at {head}", field=field, head=head)
    return seq


def _check_epoch(name: str, seq: int, epochs: Sequence[Epoch], field: str) -> None:
    current = epochs[-1].name
    if name == current:
        return
    for epoch, following in pairwise(epochs):
        if epoch.name == name and seq < following.first_seq:
            return
    raise EpochChanged(
        f"the cursor is of epoch {name[:64]!r}, the log is at epoch {current!r}", field=field, epoch=current
    )
