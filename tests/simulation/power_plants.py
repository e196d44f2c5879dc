"""Bugs that lose something when power is lost: each is planted into a bus and into what opens its images.

python -m tests.simulation.power_plants NAME serve ...
"""

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lmdb

from engram_bus.log import directory, segment
from engram_bus.log.index import Table, idempotency_key
from engram_bus.log.lmdb import LmdbLog
from engram_bus.log.lmdb import index as lmdb_index
from engram_bus.log.lmdb import log as lmdb_log
from engram_bus.log.lmdb.index import LmdbIndex
from engram_bus.projections.search import process as search_process
from engram_bus.projections.search import searcher

_lmdb_open = lmdb.open


def answered_before_the_flush() -> None:
    """The log's commits are left to the operating system."""
    segment.os = SimpleNamespace(**vars(segment.os) | {"fdatasync": lambda _: None})  # type: ignore[attr-defined]


def segment_written_over_before_lmdb_has_it() -> None:
    """What LMDB takes over is left to the operating system."""
    _open_with(sync=False)


def meta_page_not_flushed() -> None:
    """The pages of a commit are flushed, and the page that leads to them is not."""
    _open_with(metasync=False)


def _open_with(**flags: Any) -> None:
    lmdb.open = lambda path, **others: _lmdb_open(path, **others | flags)


def index_marked_before_it_is_flushed() -> None:
    """The index's cursor, and that it is whole, are on the disk before its entries."""

    def close(self: LmdbIndex, *, clean: bool) -> bool:
        directory.mark_index(self._path, clean=True)
        self._env.close()
        return True

    LmdbIndex.close = close  # type: ignore[method-assign]
    lmdb_index.index_is_as_closed = lambda _: True  # Its checksum would tell.


def index_trusted_and_its_hits_not_checked() -> None:
    """What a power cut tore is looked up in, and what it leads to is taken for what was asked for."""

    def seq_of_id(self: LmdbLog, unit_id: str) -> int | None:
        newest = self._tail.seq_of_id(unit_id)
        return self._lookup(Table.IDS, unit_id.encode()) if newest is None else newest

    def seq_of_key(self: LmdbLog, agent_id: str, key: str) -> int | None:
        newest = self._tail.seq_of_key(agent_id, key)
        return self._lookup(Table.KEYS, idempotency_key(agent_id, key)) if newest is None else newest

    lmdb_index.index_is_trusted = lambda path: (path / "mark").exists()
    LmdbLog.seq_of_id = seq_of_id  # type: ignore[method-assign]
    LmdbLog.seq_of_key = seq_of_key  # type: ignore[method-assign]


def commits_without_a_checksum() -> None:
    """A commit of the segment that was torn is taken for a whole one."""
    segment.crc32 = lambda *_: 0  # type: ignore[attr-defined]


def names_not_flushed() -> None:
    """Files are flushed, and the directories that name them are not."""
    directory.sync_directory = lmdb_log.sync_directory = lambda _: None  # type: ignore[attr-defined]


def answers_from_memory_after_a_kill() -> None:
    """What a killed process wrote and did not flush is shown by the next one as if it had."""
    LmdbLog.settle = lambda self: None  # type: ignore[method-assign]

    class Unflushed:
        def __init__(self, env: lmdb.Environment) -> None:
            self._env = env

        def __getattr__(self, name: str) -> Any:
            return getattr(self._env, name)

        def sync(self, _: bool) -> None:
            pass

    def opened(path: str, **flags: Any) -> Any:
        env = _lmdb_open(path, **flags)
        return Unflushed(env) if path.endswith("/log") else env

    lmdb.open = opened


PLANTS: dict[str, Callable[[], None]] = {
    plant.__name__.replace("_", "-"): plant
    for plant in (
        answered_before_the_flush,
        segment_written_over_before_lmdb_has_it,
        meta_page_not_flushed,
        index_marked_before_it_is_flushed,
        index_trusted_and_its_hits_not_checked,
        commits_without_a_checksum,
        names_not_flushed,
        answers_from_memory_after_a_kill,
    )
}


def plant(name: str) -> None:
    """Into this process."""
    PLANTS[name]()


def command(name: str) -> tuple[str, ...]:
    """`engram` with a bug, in its search process too."""
    return (sys.executable, "-m", "tests.simulation.power_plants", name)


def _planted(name: str) -> Callable[..., subprocess.Popen[bytes]]:
    def started(program: list[str], **how: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command(name), "--search", *program[4:]], **how)

    return started


def main() -> None:
    _, name, *arguments = sys.argv
    plant(name)
    if arguments[0] == "--search":
        sys.argv[1:] = arguments[1:]
        search_process.main()
        return
    searcher.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": _planted(name)})  # type: ignore[attr-defined]
    sys.argv[1:] = arguments
    from engram_bus.cli import main as engram

    engram()


if __name__ == "__main__":
    main()
