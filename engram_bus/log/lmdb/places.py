"""Walks of cursors: records in a row, and where the units of a context lie."""

from collections.abc import Iterator, Mapping

import lmdb

from engram_bus.errors import LogDamaged
from engram_bus.log.index import SEQ_BYTES, context_key, context_prefix, key_seq, seq_key
from engram_bus.log.lmdb.cells import HEADER_KEY
from engram_bus.log.record import RecordError

NOTHING: Mapping[int, bytes] = {}
_VERSIONS_END = 2 ** (8 * SEQ_BYTES)


def raws(
    cursor: lmdb.Cursor, first: int, last: int, newest: Mapping[int, bytes] = NOTHING
) -> Iterator[tuple[int, bytes]]:
    """The raw records `first` to `last`, of LMDB or else `newest`. Raises RecordError at the first that is missing."""
    for seq in range(first, last + 1):
        # Never `next`: at a page that is no leaf it ends the process (an assertion of LMDB), where this raises.
        if cursor.set_key(seq_key(seq)):
            yield seq, bytes(cursor.value())
        elif seq in newest:
            yield seq, newest[seq]
        else:
            raise RecordError("is missing")


def last_seq(cursor: lmdb.Cursor) -> int:
    key = bytes(cursor.key()) if cursor.last() else HEADER_KEY
    if len(key) != SEQ_BYTES:
        raise RecordError(f"ends with a key of {len(key)} bytes")
    return key_seq(key)


def context_versions(cursor: lmdb.Cursor, context_id: str, after: int, before: int) -> range:
    """The versions of a context with after < seq < before."""
    last = _last_version(cursor, context_id)
    first_version = 1 if after <= 0 else _version_from(cursor, context_id, after + 1, last)
    end_version = _version_from(cursor, context_id, before, last)
    return range(first_version, end_version)


def context_places(cursor: lmdb.Cursor, context_id: str, versions: range, units_max: int) -> Iterator[tuple[int, int]]:
    """The (version, seq) of these versions of a context, in their order."""
    found = bool(versions) and cursor.set_key(context_key(context_id, versions[0]))
    for version in versions[:units_max]:
        if not found or bytes(cursor.key()) != context_key(context_id, version):
            raise LogDamaged(f"the index of context {context_id!r} has a gap")
        yield version, key_seq(bytes(cursor.value()))
        found = cursor.next() if versions.step > 0 else cursor.prev()


def places_beside(cursor: lmdb.Cursor, context_id: str, versions: range) -> Iterator[tuple[int, int]]:
    """The (version, seq) before and behind these versions, where there are any."""
    for version in (versions.start - 1, versions.stop):
        if version < _VERSIONS_END and cursor.set_key(context_key(context_id, version)):
            yield version, key_seq(bytes(cursor.value()))


def _last_version(cursor: lmdb.Cursor, context_id: str) -> int:
    """The newest version of a context, 0 where there is none."""
    end = context_prefix(context_id)[:-1] + b"\1"
    found = cursor.prev() if cursor.set_range(end) else cursor.last()
    if not found or not bytes(cursor.key()).startswith(context_prefix(context_id)):
        return 0
    return key_seq(bytes(cursor.key()))


def _version_from(cursor: lmdb.Cursor, context_id: str, seq: int, last: int) -> int:
    """The first version whose seq is at least `seq`; versions rise with seqs, so halving finds it."""
    low, high = 1, last + 1
    if last and cursor.set_key(context_key(context_id, last)) and key_seq(bytes(cursor.value())) < seq:
        return last + 1
    while low < high:
        middle = (low + high) // 2
        if not cursor.set_key(context_key(context_id, middle)):
            raise LogDamaged(f"the index of context {context_id!r} lost version {middle}")
        if key_seq(bytes(cursor.value())) < seq:
            low = middle + 1
        else:
            high = middle
    return low


def context_name(key: bytes) -> bytes:
    """Of a `context_key`; what lies behind all of its keys then lies behind this one, too."""
    if key[-SEQ_BYTES - 1 : -SEQ_BYTES] != b"\0":
        raise LogDamaged(f"the index of contexts has the key {key!r}, which names none")
    return key[: -SEQ_BYTES - 1]


def decoded(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as exc:
        raise LogDamaged(f"the index names a context {name!r}, which none can be: {exc}") from exc
