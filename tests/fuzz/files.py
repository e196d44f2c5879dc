"""Whole files of LMDB and of search, mutated by small programs: an input is what is done to a file, not the file.

Each step has six bytes: what is done, a place (a kind of byte or a page), an offset, a value. So an input stays small,
means the same in every later run, and a loop that knows nothing of pages turns one kind of damage into another.
"""

import shutil
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engram_bus.log.directory import mark_index
from engram_bus.log.record import parse
from engram_bus.projections.search.columns import Columns
from engram_bus.projections.search.late import Wanted
from engram_bus.projections.search.late import _Kept as KeptLate
from engram_bus.projections.search.tables import Damaged
from engram_bus.projections.search.vectors import KeptRows
from tests.disk import tenant
from tests.fuzz.checks import SERVED, started, verified
from tests.fuzz.world import INDEX, LOG, MARK, World, require
from tests.simulation.damage_look import Job, in_child
from tests.simulation.damage_pages import PAGE_BYTES, Places, places

_STEP = struct.Struct("<BBHH")
_STEPS_MAX = 8
_NUMBER = struct.Struct("<Q")


# --- Programs --------------------------------------------------------------------------------------------------------


def _changed(content: bytes, program: bytes, spans: Places) -> bytes:
    """The content after every step of a program. `spans` names the places of an LMDB file; else there are none."""
    changed = bytearray(content)
    whole = len(program) // _STEP.size
    for step in range(min(whole, _STEPS_MAX)):
        if changed:
            _do(changed, *_STEP.unpack_from(program, step * _STEP.size), spans)
    return bytes(changed)


def _do(changed: bytearray, what: int, place: int, offset: int, value: int, spans: Places) -> None:
    pages = max(1, len(changed) // PAGE_BYTES)
    page, other = place % pages * PAGE_BYTES, value % pages * PAGE_BYTES
    at = (page + offset % PAGE_BYTES) % len(changed)
    if what >= 128 and spans:  # Half of all steps hit a kind of byte that has a name.
        kind = sorted(spans)[place % len(spans)]
        span = spans[kind][offset % len(spans[kind])]
        at = min(span.first + value % (span.end - span.first), len(changed) - 1)
        page = at // PAGE_BYTES * PAGE_BYTES
    match what % 10:
        case 0:
            changed[at] ^= 1 << value % 8
        case 1:
            changed[at] = value % 256
        case 2:
            changed[at] = value >> 8
        case 3:
            changed[at : at + 2] = value.to_bytes(2, "little")[: len(changed) - at]
        case 4:
            changed[at : at + 8] = _NUMBER.pack(value)[: len(changed) - at]
        case 5:
            changed[at : at + 8] = _NUMBER.pack(2**64 - 1 - value)[: len(changed) - at]
        case 6:
            changed[page : page + PAGE_BYTES] = bytes(len(changed[page : page + PAGE_BYTES]))
        case 7:
            changed[page : page + PAGE_BYTES] = changed[other : other + PAGE_BYTES]
        case 8:
            del changed[at:]
        case _:
            changed += bytes(changed[page : page + value % PAGE_BYTES])


@cache
def _spans(content: bytes, *, has_records: bool) -> Places:
    return places(content, has_records=has_records)


def page_seeds(world: World) -> Iterator[bytes]:
    yield b"\0"
    yield b"\1"
    yield b"\2"
    for what in (*range(10), *range(128, 138)):
        for place in (1, 9, 23, 32):
            yield bytes([2 * (place % 2)]) + _STEP.pack(what, place, 300 * what, 257 * place)


# --- LMDB ------------------------------------------------------------------------------------------------------------


def check_log_pages(world: World, data: bytes) -> str:
    """The log: served exactly, or damage is told, by the bus and by `engram verify` alike."""
    with world.copied(world.data) as at:
        content = (at / LOG).read_bytes()
        (at / LOG).write_bytes(_changed(content, data[1:], _spans(content, has_records=True)))
        return started(world, at, LOG)


def check_index_pages(world: World, data: bytes) -> str:
    """The index, as it was closed or without its mark: always folded again. Of a bus that was killed, it is not looked
    at by a start, and `engram verify` finds what a bus stumbles over."""
    with world.copied(world.data) as at:
        content = (at / INDEX).read_bytes()
        (at / INDEX).write_bytes(_changed(content, data[1:], _spans(content, has_records=False)))
        if data[:1] == b"\1":
            (at / MARK).unlink()
        if data[:1] == b"\2":
            mark_index(tenant(at) / "index", clean=False)
            return verified(world, at, INDEX)
        outcome = started(world, at, INDEX)
        require(outcome in SERVED, f"an index that can be folded again makes a start {outcome}")
        return outcome


# --- Search ----------------------------------------------------------------------------------------------------------


class _Searched(NamedTuple):
    """The data directory with its search index, and what that answers."""

    data: Path
    answers: str


@cache
def _searched(world: World) -> _Searched:
    path = world.path / "searched"
    shutil.copytree(world.data, path)
    # In a fork: the threads of an index must not be there when others are forked.
    made = in_child(Job("search", str(path), str(world.records)))
    assert made.outcome == "exact", made
    return _Searched(path, made.answers)


def search_seeds(world: World) -> Iterator[bytes]:
    for number in range(len(_search_files(_searched(world).data))):
        for what in (1, 5, 8):
            yield bytes([number]) + _STEP.pack(what, number, 100 * what + number, 257)


def check_search_files(world: World, data: bytes) -> str:
    """Files of the search index, as its process opens them: they are what they were, or the index is built again."""
    searched = _searched(world)
    with world.copied(searched.data) as at:
        among = _search_files(at)
        file = among[(data[:1] or b"\0")[0] % len(among)]
        file.write_bytes(_changed(file.read_bytes(), data[1:], {}))
        return started(world, at, str(file.relative_to(at)), answers=searched.answers)


def _search_files(at: Path) -> list[Path]:
    """By their endings: tantivy's have random names."""
    found = (file for file in (tenant(at) / "search").rglob("*") if file.is_file() and file.stat().st_size)
    return sorted(found, key=lambda file: (file.suffix or file.name, file.name))


# --- Tables of search, one by one ------------------------------------------------------------------------------------

_TABLES = ("units", "pairs", "names", "rows", "late/newest", "late/rows")
_DIMENSION = 4


@cache
def _tables(world: World) -> Path:
    path = world.path / "tables"
    units = [parse(raw, seq).unit for seq, raw in enumerate(world.raws, start=1)]
    columns, rows = Columns(path, count=0, cursor=0), KeptRows(path, dimension=_DIMENSION, count=0)
    vectors = np.arange(_DIMENSION * len(units), dtype=np.float32).reshape(-1, _DIMENSION)
    for unit in units:
        columns.add(unit)
    rows.add(vectors)
    columns.flush()
    rows.flush()
    KeptLate(path / "late").append([Wanted(unit.seq, unit.id, "") for unit in units], vectors)
    return path


def table_seeds(world: World) -> Iterator[bytes]:
    for number, name in enumerate(_TABLES):
        yield bytes([number]) + (_tables(world) / name).read_bytes()


def check_tables(world: World, data: bytes) -> str:
    """A table opens with what was written, or is Damaged; what lies behind its end is cut off, no more."""
    name, count = _TABLES[(data[:1] or b"\0")[0] % len(_TABLES)], len(world.raws)
    with world.copied(_tables(world)) as at:
        whole = (at / name).read_bytes()
        (at / name).write_bytes(data[1:])
        if name.startswith("late"):
            kept = KeptLate(at / "late")
            require(data[1:] == whole or kept.count in (0, count) or name.endswith("newest"), "rows are lost")
            return "refused" if kept.newest is None else "read"
        try:
            if name == "rows":
                require(KeptRows(at, dimension=_DIMENSION, count=count).rows.count == count, "rows are lost")
            else:
                require(Columns(at, count=count, cursor=count).count == count, "units are lost")
        except Damaged:
            return "refused"
        require((at / name).read_bytes() == whole, "a table that nobody wrote is taken")
        return "read"
