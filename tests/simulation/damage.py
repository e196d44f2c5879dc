"""Data directories, and each kind of damage to each of their files."""

import asyncio
import os
import select
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec

from engram_bus.embedded import Bus
from engram_bus.log.segment import _commit_at
from engram_bus.projections.follower import Follower
from engram_bus.projections.search import process
from engram_bus.projections.search.embedders import StaticEmbedder, Vectors
from engram_bus.units import Draft, Relationship, RelationshipType, UnitType
from tests.disk import opened, tenant
from tests.simulation.damage_pages import PAGE_BYTES, Span, pages, places

UNITS = 240
OLDER_UNITS = 170
CONTEXTS = 4
BIG_BYTES = 9_000
HELD_SECONDS = 3_600
LOG = "tenants/default/log/data.mdb"
SEGMENT = "tenants/default/log/segment"
INDEX = "tenants/default/index/data.mdb"
MARK = "tenants/default/index/mark"
SEARCH = "tenants/default/search/"
_STATIC = StaticEmbedder()
_CRC_BYTES = 4
_COMMIT = (("salt", 0, 16), ("checksum", 16, 20), ("size", 20, 24), ("seq", 24, 32), ("chain digest", 32, 64))
_FOOTER = b'{"version"'
"""How what tantivy puts behind the contents of a file begins."""


class Worlds(NamedTuple):
    """A closed data directory, what it was a while before, and another one; `killed` is the first as a kill leaves it,
    with its newest units in the segment alone."""

    data: Path
    older: Path
    other: Path
    killed: Path

    def of(self, file: str) -> Path:
        """Where a file is damaged."""
        return self.killed if file == SEGMENT else self.data


class Case(NamedTuple):
    """One file, one kind of damage to it; `seed` says which byte, page or bit."""

    file: str
    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.file}: {self.kind} (seed {self.seed})"


# --- What is damaged -------------------------------------------------------------------------------------------------


def make_worlds(path: Path) -> Worlds:
    worlds = Worlds(path / "data", path / "older", path / "other", path / "killed")
    asyncio.run(_fill(worlds.data, 1, OLDER_UNITS, "ann"))
    with searched(worlds.data):
        pass
    copy(worlds.data, worlds.older)
    asyncio.run(_fill(worlds.data, OLDER_UNITS + 1, UNITS, "ann", killed=worlds.killed))
    with searched(worlds.data):
        pass
    asyncio.run(_fill(worlds.other, 1, UNITS, "eve"))
    with searched(worlds.other):
        pass
    with opened(worlds.data) as log:
        kept = [log.record(seq).raw for seq in range(1, log.head + 1)]
    (path / "records").write_bytes(msgspec.msgpack.encode(kept))
    return worlds


async def _fill(path: Path, first: int, last: int, agent_id: str, *, killed: Path | None = None) -> None:
    async with Bus.open(path) as bus:
        for number in range(first, last + 1):
            size_bytes = BIG_BYTES if number % 40 == 7 else 120
            before = [] if bus.head == 0 else [Relationship(bus.log.record(1).unit.id, RelationshipType.REFERENCES)]
            await bus.append(
                f"c{number % CONTEXTS}",
                f"{agent_id} said number{number} " + "and more " * (size_bytes // 9),
                agent_id=agent_id,
                relationships=before if number % 3 == 0 else [],
                resources=[f"file{number % 5}.py"],
                idempotency_key=f"k{number}" if number % 2 else None,
            )
        drafts = [Draft(context_id="batch", agent_id=agent_id, type=UnitType.MESSAGE, payload=b"of") for _ in range(3)]
        await bus.append_bulk(drafts, atomic=True, idempotency_key=f"batch{last}")
        await bus.acquire_lock(f"held/{last}", agent_id=agent_id, ttl_seconds=HELD_SECONDS)
        if killed is not None:
            copy(path, killed)


class _Elsewhere:
    """An embedder of choice, whose vectors are kept in files of their own."""

    name = "elsewhere-1"
    is_at_hand = False
    dimension = None

    def embed(self, texts: Sequence[str]) -> Vectors:
        return _STATIC.embed(texts)[:, ::-1].copy()

    def close(self) -> None:
        """Nothing is open."""


@contextmanager
def searched(path: Path) -> Iterator[process._Search]:
    """What the search process does, up to the head, with all its files."""
    at = tenant(path) / "search"
    at.mkdir(parents=True, exist_ok=True)
    ours, theirs = socket.socketpair()
    with ours, theirs, (at / "lock").open("wb"):
        search = process._Search(tenant(path), at, theirs, _Elsewhere())
        follower, late = search._runner._source, search._late
        assert isinstance(follower, Follower)
        assert late is not None, "it is not at hand"
        while search._runner.is_behind or search._runner.progress.rebuilt is not None:
            search._runner.step()
        search._runner._commit()
        while late.missing:
            late.work()
            select.select([late.wakes], [], [], 1)
        search._tidy()
        yield search
        search._runner.projection.close()
        follower.close()


# --- Damage ----------------------------------------------------------------------------------------------------------


def cases(worlds: Worlds, *, seeds: int) -> Iterator[Case]:
    """Every kind of damage to every file; where chance has a part in it, with so many seeds."""
    data = worlds.data
    for file in files(data):
        if is_work(file):
            continue
        content = (worlds.of(file) / file).read_bytes()
        for kind in _kinds(file, content):
            is_drawn = kind.startswith(("flip", "zero", "swap two"))
            for seed in range(seeds if is_drawn else 1):
                yield Case(file, kind, seed)
    yield Case("keys", "make a file of it", 0)
    yield Case("keys", "delete", 0)
    for directory in directories(data):
        for kind in ("delete", *_OTHERS):
            yield Case(directory, kind, 0)


def is_work(file: str) -> bool:
    """Whether it is a second name of another file, or a lock of tantivy's."""
    return Path(file).parent.name == "work" and not file.endswith(".json")


def files(data: Path) -> list[str]:
    """All of a directory but LMDB's own lock files, which say who reads just now."""
    found = (file for file in data.rglob("*") if file.is_file() and file.name != "lock.mdb")
    return sorted(str(file.relative_to(data)) for file in found)


def _kinds(file: str, content: bytes) -> Iterator[str]:
    yield from _CHANGES
    yield from _REPLACEMENTS
    if content:
        yield "flip a bit"
    if file.startswith(SEARCH):
        yield from (f"flip a bit of {kind}" for kind in _search_places(file, content))
    if file == SEGMENT:
        yield from (f"flip a bit of {kind}" for kind in _segment_places(content))
    if Path(file).parent.name == "segments":
        yield "exchange with one alike"
    if len(content) >= PAGE_BYTES:
        yield "zero a page"
    if len(content) >= 2 * PAGE_BYTES:
        yield "swap two pages"
    if file.endswith(".mdb"):
        yield from (f"flip a bit of {kind}" for kind in places(content, has_records=file == LOG))


def _segment_places(content: bytes) -> dict[str, list[Span]]:
    """But those of the last commit: where that is not whole, it was torn and never acknowledged."""
    salt, at, found = content[8:24], PAGE_BYTES, []
    while (commit := _commit_at(content, salt, at)) is not None:
        found.append(Span(at, commit.end))
        at = commit.end
    whole = found[:-1]
    heads = {
        f"commit: {name}": [Span(span.first + first, span.first + end) for span in whole]
        for name, first, end in _COMMIT
    }
    return heads | {
        "head": [Span(0, 28)],
        "commit: records": [Span(span.first + 64, span.end - 8) for span in whole],
        "room behind the last commit": [Span(at, len(content))],
    }


def _search_places(file: str, content: bytes) -> dict[str, list[Span]]:
    """The kinds of bytes of a file of search: what it says, and what proves it."""
    size = len(content)
    match Path(file).name:
        case "commit":
            said = content.index(b"\n") + 1
            return {"checksum": [Span(0, said)], "what it says": [Span(said, size)]}
        case "units" | "pairs" | "rows":
            return {"rows": [Span(0, size - _CRC_BYTES)], "the last row's checksum": [Span(size - _CRC_BYTES, size)]}
    if Path(file).parent.name == "segments":
        footer = content.rindex(_FOOTER)
        return {"contents": [Span(0, footer)], "footer": [Span(footer, size)]}
    return {}


def inflict(case: Case, at: Path, worlds: Worlds) -> None:
    """Damage the copy of a data directory that lies at a path."""
    file = at / case.file
    dice = Random(f"{case.file} {case.kind} {case.seed}")
    if case.kind in _REPLACEMENTS:
        _REPLACEMENTS[case.kind](file, case.file, worlds)
    elif case.kind == "make a file of it":
        file.rmdir()
        file.write_bytes(b"")
    elif case.kind == "exchange with one alike":
        other = dice.choice([one for one in file.parent.glob(f"*{file.suffix}") if one != file])
        content, others = file.read_bytes(), other.read_bytes()
        file.write_bytes(others)
        other.write_bytes(content)
    elif case.kind in _CHANGES:
        file.write_bytes(_CHANGES[case.kind](file.read_bytes()))
    else:
        file.write_bytes(_drawn(case, file.read_bytes(), dice))


def _drawn(case: Case, content: bytes, dice: Random) -> bytes:
    damaged = bytearray(content)
    match case.kind:
        case "zero a page":
            page = dice.choice(list(pages(content)))
            damaged[page.first : page.end] = bytes(PAGE_BYTES)
        case "swap two pages":
            one, other = dice.sample(list(pages(content)), 2)
            damaged[one.first : one.end] = content[other.first : other.end]
            damaged[other.first : other.end] = content[one.first : one.end]
        case "flip a bit":
            _flip(damaged, Span(0, len(content)), dice)
        case _:
            kind = case.kind.removeprefix("flip a bit of ")
            _flip(damaged, dice.choice(_places(case.file, content)[kind]), dice)
    return bytes(damaged)


def _places(file: str, content: bytes) -> dict[str, list[Span]]:
    if file == SEGMENT:
        return _segment_places(content)
    return _search_places(file, content) if file.startswith(SEARCH) else places(content, has_records=file == LOG)


def _flip(content: bytearray, span: Span, dice: Random) -> None:
    content[dice.randrange(span.first, span.end)] ^= 1 << dice.randrange(8)


_CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "truncate to nothing": lambda content: b"",
    "truncate to half": lambda content: content[: len(content) // 2],
    "truncate by a page": lambda content: content[:-PAGE_BYTES],
    "truncate by a byte": lambda content: content[:-1],
    "append garbage": lambda content: content + Random(0).randbytes(5_000),
}


def _take_from(world: Path, file: Path, name: str) -> None:
    """The file or directory of another one in the place of this one, if it has one."""
    if file.is_dir():
        shutil.rmtree(file)
        if (world / name).is_dir():
            copy(world / name, file)
    elif other := _alike(world, name):
        file.write_bytes((world / other).read_bytes())
    else:
        file.unlink()


def _alike(world: Path, name: str) -> str:
    """The same file of another directory: tantivy's have random names."""
    if (world / name).is_file():
        return name
    found = (world / name).parent.glob(f"*{Path(name).suffix}") if Path(name).suffix else iter(())
    return next((str(one.relative_to(world)) for one in sorted(found)), "")


def directories(data: Path) -> list[str]:
    """Those of search, which may be lost or replaced as a whole."""
    found = (one for one in (data / SEARCH).rglob("*") if one.is_dir())
    return [SEARCH.rstrip("/"), *sorted(str(one.relative_to(data)) for one in found)]


def copy(world: Path, to: Path) -> None:
    """With second names as second names."""
    names: dict[int, Path] = {}
    for path in [world, *sorted(world.rglob("*"))]:
        target = to / path.relative_to(world)
        if path.is_dir():
            target.mkdir()
        elif (first := names.setdefault(path.stat().st_ino, target)) is target:
            shutil.copyfile(path, target)
        else:
            target.hardlink_to(first)


def _make_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _delete(file: Path) -> None:
    if file.is_dir():
        shutil.rmtree(file)
    else:
        os.unlink(file)  # noqa: PTH108 (as it is read: a file is deleted)


_OTHERS: dict[str, Callable[[Path, str, Worlds], None]] = {
    "replace by its older copy": lambda file, name, worlds: _take_from(worlds.older, file, name),
    "replace by another directory's": lambda file, name, worlds: _take_from(worlds.other, file, name),
}
_REPLACEMENTS: dict[str, Callable[[Path, str, Worlds], None]] = {
    "delete": lambda file, _, __: _delete(file),
    "make a directory of it": lambda file, _, __: _make_directory(file),
    **_OTHERS,
}
