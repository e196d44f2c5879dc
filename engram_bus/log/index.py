"""What is looked up beside the log itself: the keys under which a record is found, as they lie in the index.

Everything here can be folded again from the log, and every hit is checked against its record.
"""

from collections.abc import Sequence
from enum import StrEnum
from hashlib import blake2b
from struct import Struct

from engram_bus.limits import NAME_BYTES_MAX
from engram_bus.log.record import Record
from engram_bus.units import WorkUnit

SEQ_BYTES = 8

assert NAME_BYTES_MAX + 1 + SEQ_BYTES <= 511, "a name and a seq fit the longest key of LMDB"


class Table(StrEnum):
    """The index's tables. In the first four every entry leads to a seq, and so to a record."""

    IDS = "ids"
    CONTEXTS = "contexts"
    TARGETS = "targets"
    KEYS = "keys"
    STATE = "state"


RECORD_TABLES = (Table.IDS, Table.CONTEXTS, Table.TARGETS, Table.KEYS)


def may_be_name(name: str) -> bool:
    """Whether a name can be in the index at all: what is asked for is not checked as what is appended is."""
    try:
        return 0 < len(name.encode()) <= NAME_BYTES_MAX and "\0" not in name
    except UnicodeEncodeError:
        return False


seq_key = Struct(">Q").pack
"""The key of a seq: big-endian, so byte order is log order."""


def key_seq(key: bytes) -> int:
    """The seq in the last eight bytes of a key."""
    return int.from_bytes(key[-SEQ_BYTES:], "big")


def context_prefix(context_id: str) -> bytes:
    """Names hold no control characters, so a zero byte ends one: `a` never lists the units of `a:b`."""
    return context_id.encode() + b"\0"


def context_key(context_id: str, version: int) -> bytes:
    """(context, version), in version order within a context."""
    return context_prefix(context_id) + seq_key(version)


def target_prefix(target_id: str) -> bytes:
    """All units with a relationship to this one follow."""
    return target_id.encode() + b"\0"


def idempotency_key(agent_id: str, key: str) -> bytes:
    """The scope of a key is its agent (a tenant is a log of its own)."""
    return blake2b(agent_id.encode() + b"\0" + key.encode(), digest_size=16).digest()


def puts(records: Sequence[Record]) -> dict[Table, list[tuple[bytes, bytes]]]:
    """Every (key, value) that finds one of these records, by table."""
    units = [record.unit for record in records]
    found = {
        Table.IDS: [(unit.id.encode(), seq_key(unit.seq)) for unit in units],
        Table.CONTEXTS: [(context_key(unit.context_id, unit.version), seq_key(unit.seq)) for unit in units],
        Table.TARGETS: [
            (target_prefix(target_id) + seq_key(unit.seq), b"")
            for unit in units
            if unit.relationships
            for target_id in targets(unit)
        ],
        Table.KEYS: [
            (idempotency_key(record.unit.agent_id, record.private.key), seq_key(record.unit.seq))
            for record in records
            if record.private.key is not None
        ],
    }
    return {table: entries for table, entries in found.items() if entries}


def entry_seq(table: Table, key: bytes, value: bytes) -> int:
    """The seq an entry leads to."""
    return key_seq(key if table is Table.TARGETS else value)


def targets(unit: WorkUnit) -> set[str]:
    """The units this one relates to, each once."""
    return {relationship.target_id for relationship in unit.relationships}
