"""What lies in LMDB beside records and their keys: which log it is, how far the index goes, and kept states."""

from hashlib import blake2b

import msgspec

from engram_bus.codec import UNREADABLE
from engram_bus.log.contract import Snapshot
from engram_bus.log.directory import LogHeader
from engram_bus.log.index import SEQ_BYTES, key_seq, seq_key
from engram_bus.log.record import Record, RecordError

HEADER_KEY = seq_key(0)
"""Before every seq: which log this is (`LogHeader` as MessagePack)."""
CURSOR = b"cursor"
"""Up to where the index goes: a seq and the chain digest there, so that it is never taken for another log's."""
SNAPSHOT = b"snapshot:"
_STATE_DIGEST_BYTES = 16


def parse_header(value: bytes) -> LogHeader:
    """Raises RecordError."""
    try:
        return msgspec.msgpack.decode(value, type=LogHeader)
    except UNREADABLE as exc:
        raise RecordError(f"is not a header: {exc}") from exc


def cursor_value(record: Record) -> bytes:
    """A cursor at this record, as it is kept."""
    return seq_key(record.unit.seq) + record.chain


def parse_cursor(value: bytes) -> tuple[int, bytes]:
    """A seq, and the chain digest there."""
    return key_seq(value[:SEQ_BYTES]), value[SEQ_BYTES:]


def snapshot_value(snapshot: Snapshot) -> bytes:
    """A state as it is kept: its seq, its digest, itself."""
    return seq_key(snapshot.seq) + state_digest(snapshot.seq, snapshot.state) + snapshot.state


def parse_snapshot(value: bytes) -> Snapshot | None:
    """A kept state, None when it is not what was kept: LMDB has no checksums of its own."""
    digest_at, state_at = SEQ_BYTES, SEQ_BYTES + _STATE_DIGEST_BYTES
    seq = key_seq(value[:digest_at])
    state = value[state_at:]
    return Snapshot(seq, state) if value[digest_at:state_at] == state_digest(seq, state) else None


def state_digest(seq: int, state: bytes) -> bytes:
    """Of a kept state at its seq."""
    return blake2b(seq_key(seq) + state, digest_size=_STATE_DIGEST_BYTES).digest()
