"""Small files and values that a bus reads at its start, with any bytes in their place.

It starts and serves exactly what was acknowledged, or refuses and names the file; `engram verify` agrees, and nothing
is taken away.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import msgspec

from engram_bus.decisions.state import State
from engram_bus.errors import DataDirectoryError
from engram_bus.log.directory import LogHeader, index_is_trusted, lock_directory, mark_index
from engram_bus.log.index import Table, seq_key
from engram_bus.log.lmdb import LmdbLog
from engram_bus.log.lmdb.cells import state_digest
from tests.disk import stored, tampering, tenant
from tests.fuzz.checks import SERVED, asked, started, verified
from tests.fuzz.world import LOG, MARK, SEGMENT, TENANT, World, require

_HEADER_KEY = seq_key(0)
_HEAD_BYTES, _COMMITS_AT = 28, 4_096
"""Of the log's segment: what it begins with, and where its commits do."""
_PARTS = State().parts


# --- Files -----------------------------------------------------------------------------------------------------------


def seeds_of(file: str) -> Callable[[World], Iterator[bytes]]:
    return lambda world: iter([(world.data / file).read_bytes()])


def check_of(file: str) -> Callable[[World, bytes], str]:
    """Whatever stands in the file."""

    def check(world: World, data: bytes) -> str:
        with world.copied(world.data) as at:
            (at / file).write_bytes(data)
            # A tenant that says it was never opened is told that it was.
            return started(world, at, file, written=(TENANT,) if file == TENANT else ())

    return check


def check_mark(world: World, data: bytes) -> str:
    """The index can be folded again: no mark keeps a bus from starting, or from serving all there is."""
    with world.copied(world.data) as at:
        (at / MARK).write_bytes(data)
        outcome = started(world, at, MARK)
        require(outcome == "exact", f"a bus that has its log does not serve all of it: {outcome}")
        return outcome


# --- Values in the log and in the index ------------------------------------------------------------------------------


def header_seeds(world: World) -> Iterator[bytes]:
    header = msgspec.msgpack.decode(_stored(world, "log", _HEADER_KEY), type=LogHeader)
    yield msgspec.msgpack.encode(header)
    yield msgspec.msgpack.encode(msgspec.to_builtins(header) | {"new": [1, {"a": b"b"}]})


def check_header(world: World, data: bytes) -> str:
    """Key 0 of the log says which log it is."""
    with world.copied(world.data) as at:
        with tampering(at, "log") as txn:
            txn.put(_HEADER_KEY, data)
        return started(world, at, LOG)


def snapshot_seeds(world: World) -> Iterator[bytes]:
    for number, part in enumerate(_PARTS):
        value = _stored(world, "index", _snapshot_key(part.name), Table.STATE)
        yield bytes([number]) + value
        yield bytes([number | 128]) + value[24:]


def _snapshot_key(name: str) -> bytes:
    return b"snapshot:" + name.encode()


def check_snapshot(world: World, data: bytes) -> str:
    """A decision's state: what does not match its checksum is passed over, and what cannot be restored, too."""
    part = _PARTS[(data[:1] or b"\0")[0] % 2]
    is_sealed, value = data[:1] >= b"\x80", data[1:]
    if is_sealed:
        head = len(world.raws)
        value = seq_key(head) + state_digest(head, value) + value
    with world.copied(world.data) as at:
        with tampering(at, "index", Table.STATE) as txn:
            txn.put(_snapshot_key(part.name), value)
        if not is_sealed:
            outcome = started(world, at, "tenants/default/index")
            require(outcome == "exact", f"a snapshot made a start {outcome}")
            return outcome
        # What it says is believed: the state may be another, but a bus comes up with one.
        return asked(world, at)


def index_seeds(world: World) -> Iterator[bytes]:
    for number in range(5):
        yield bytes([0, number, 3, 4]) + b"some"
        yield bytes([1, number, 7, 3]) + b"abc" + bytes([number + 5, 9, 0])
        yield bytes([2, number + 10, 1, 8]) + seq_key(5)
        yield bytes([1, number + 15, 2, 4]) + b"c0\0\1"
    yield bytes([1, 4, 0, 40]) + seq_key(99) + bytes(32)


def check_index(world: World, data: bytes) -> str:
    """Entries of the index that were not written there: an index that was closed is folded again; one that was not, or
    that was closed like this, leads to the right unit, or to none, or it is said to be damaged."""
    with world.copied(world.data) as at:
        _tamper(at, data[1:])
        index = tenant(at) / "index"
        match (data[:1] or b"\0")[0] % 3:
            case 0:
                (at / MARK).write_bytes((world.data / MARK).read_bytes())
                outcome = started(world, at, "tenants/default/index")
                require(outcome in SERVED, f"an index that can be folded again makes a start {outcome}")
                return outcome
            case 1:
                mark_index(index, clean=False)
            case _:
                mark_index(index, clean=True)
        require(index_is_trusted(index), "the mark that was just made says so")
        with world.copied(at) as another:
            told = verified(world, another, "tenants/default/index")
        return f"{told}, asked {asked(world, at)}"


def _tamper(at: Path, program: bytes) -> None:
    """Each step names a table, what to do to it, an entry, and some bytes."""
    tables = list(Table)
    while len(program) >= 2:
        step, entry, size = program[0], program[1], program[2] if len(program) > 2 else 0
        content, program = program[3 : 3 + size], program[3 + size :]
        with tampering(at, "index", tables[step % 5]) as txn, txn.cursor() as cursor:
            keys = [bytes(key) for key in cursor.iternext(keys=True, values=False)]
            key = keys[entry % len(keys)] if keys else b"none"
            match step // 5 % 4:
                case 0:
                    txn.put(key, content)
                case 1:
                    txn.delete(key)
                case 2:
                    txn.put((key + content)[:511], seq_key(entry))
                case _:
                    txn.put(content[:511] or b"\0", seq_key(entry))


def _stored(world: World, part: str, key: bytes, table: Table | None = None) -> bytes:
    with world.copied(world.data) as at, tampering(at, part, table) as txn:
        return stored(txn, key)


# --- The newest commits ----------------------------------------------------------------------------------------------


def log_segment_seeds(world: World) -> Iterator[bytes]:
    content = (world.killed / SEGMENT).read_bytes()
    used = content[:_HEAD_BYTES] + content[_COMMITS_AT:].rstrip(b"\0")
    yield b"\0" + used
    yield b"\1" + used


def check_log_segment(world: World, data: bytes) -> str:
    """The newest commits of a bus that was killed: all of them, or damage.

    A commit that is not whole, with no whole one behind it, cannot be told from one that was never acknowledged.
    """
    whole = (world.killed / SEGMENT).read_bytes()
    head, commits = data[1 : 1 + _HEAD_BYTES], data[1 + _HEAD_BYTES :]
    content = head.ljust(_COMMITS_AT, b"\0") + commits
    content = content[: len(whole)].ljust(len(whole), b"\0")
    if is_sealed := data[:1] == b"\1":
        content = _commits_sealed(content)
    with world.copied(world.killed) as at:
        (at / SEGMENT).write_bytes(content)
        try:
            log = LmdbLog(tenant(at))
        except DataDirectoryError as exc:
            require("segment" in str(exc) or "/log" in str(exc), f"the refusal does not name the file: {exc}")
            return "refused"
        try:
            found = [log.record(seq).raw for seq in range(1, log.head + 1)]
        finally:
            log.close()
        if not is_sealed:
            require(found == world.raws[: len(found)], "a record that nobody wrote passes for one")
            for first, last, commit in _commits(world, whole):
                is_there = content[commit.start : commit.stop] == whole[commit.start : commit.stop]
                require(last <= len(found) or not is_there, f"units {first} to {last} are whole in it and not served")
        return "exact" if found == world.raws else f"{'sealed' if is_sealed else 'cut'}"


def _commits(world: World, content: bytes) -> Iterator[tuple[int, int, slice]]:
    """First and last seq of each commit, and where it lies."""
    at, last = _COMMITS_AT, 0
    while (first := int.from_bytes(content[at + 24 : at + 32], "big")) > last:
        end = at + 64 + int.from_bytes(content[at + 20 : at + 24], "big")
        last = first - 1 + sum(raw in content[at:end] for raw in world.raws)
        yield first, last, slice(at, end)
        at = -(-end // 8) * 8
        if content[at : at + 16] != content[8:24] or first == last + 1:
            return  # Behind it lies what is left of an earlier round.


def _commits_sealed(content: bytes) -> bytes:
    """The same with checksums made anew, as far as sizes lead, and the salt of the file in each commit."""
    sealed = bytearray(content)
    sealed[24:28] = crc32(sealed[:24]).to_bytes(4, "big")
    at = _COMMITS_AT
    while at + 64 <= len(sealed) and (size := int.from_bytes(sealed[at + 20 : at + 24], "big")):
        sealed[at : at + 16] = sealed[8:24]
        sealed[at + 16 : at + 20] = crc32(sealed[at + 20 : at + 64 + size]).to_bytes(4, "big")
        at = -(-(at + 64 + size) // 8) * 8
    return bytes(sealed)


# --- Locks and keys --------------------------------------------------------------------------------------------------

_LOCKS = (
    "lock",
    "tenants/default/log/lock.mdb",
    "tenants/default/index/lock.mdb",
    "tenants/default/search/lock",
    "keys/k",
)


def lock_seeds(world: World) -> Iterator[bytes]:
    for number in range(len(_LOCKS)):
        yield bytes([number]) + b"process 1\n"
    yield bytes([128]) + b"process 1\n"
    with world.copied(world.data) as at:
        log = LmdbLog(tenant(at))
        held = [(at / name).read_bytes() for name in _LOCKS[1:3]]
        log.close()
    yield from (bytes([number]) + content[:1_000] for number, content in enumerate(held, start=1))


def check_lock(world: World, data: bytes) -> str:
    """Who held a lock, and who read, is no part of what was acknowledged: nothing there keeps a bus from starting, but
    a lock that is held."""
    number, content = (data[:1] or b"\0")[0], data[1:]
    with world.copied(world.data) as at:
        file = at / _LOCKS[number % len(_LOCKS)]
        file.write_bytes(content)
        if number >= 128:
            return _check_held(at, content)
        outcome = started(world, at, str(file.relative_to(at)))
        require(outcome == "exact", f"{file.name} made a start {outcome}")
        return outcome


def _check_held(at: Path, content: bytes) -> str:
    (at / "lock").write_bytes(content)
    with (at / "lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            fd = lock_directory(at, writable=True)
        except DataDirectoryError as exc:
            require("Stop that process" in str(exc), f"the refusal does not say what to do: {exc}")
        else:
            os.close(fd or 0)
            require(is_so=False, otherwise="two hold one lock")
    require((at / "lock").read_bytes() == content, "who was refused wrote into the lock")
    return "refused"
