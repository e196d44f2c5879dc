"""What does search cost as the log grows: taking units in, asking in each mode, on the disk and in memory?

    python -m benchmarks.bench_search [--small] [--units 10000,100000]

Texts are those of recorded agents (`entire_dev` beside the repository, else the recording that ships). More than there
are, are made of them: each further one is the first half of one text and the second half of another, drawn with a fixed
seed. So words keep their frequencies and hardly a text comes twice, but the vocabulary does not grow as that of a true
million would: a word stands in more texts than it should, which makes asking slower, and the disk look better.

The index is used in this process as the search process uses it: slices of 32 units, a commit each thousand. SQLite's
FTS5 stands beside the keyword leg, and bm25s where it is installed (`pip install bm25s`): the same texts, the same
queries, any of the words, the best ten. Each size is measured in a process of its own, so that its memory is its own.
With `--units` the figures are printed, and not kept.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, machine, mapped_bytes, percentiles_us, report, resident_bytes, scratch
from benchmarks.search_texts import grown, recorded, remembered
from engram_bus.limits import MIB
from engram_bus.projections.search.embedders import StaticEmbedder
from engram_bus.projections.search.engine import SearchIndex
from engram_bus.projections.search.scope import Scope
from engram_bus.projections.search.values import Asked
from engram_bus.units import FORMAT_TEXT, UnitType, WorkUnit, ts_text

QUESTION = "search over 10 thousand to a million units: taking in, asking, disk, memory; FTS5 and bm25s beside it"
SLICE_UNITS = 32
COMMIT_UNITS = 1_000
CONTEXTS = 97
AGENTS = 13


def main() -> None:
    """Each size, one after the other."""
    if "--one" in sys.argv:
        units, asked, where = sys.argv[sys.argv.index("--one") + 1 :]
        print(json.dumps(_measured(Path(where), list(grown(recorded(), int(units))), int(asked))))
        return
    small, own = "--small" in sys.argv, "--units" in sys.argv
    sizes, queries = ([300], 20) if small else ([10_000, 100_000, 1_000_000], 500)
    if own:
        sizes = [int(size) for size in sys.argv[sys.argv.index("--units") + 1].split(",")]
    with scratch() as directory:
        figures: dict[str, Any] = {"machine": machine(directory), "texts_recorded": len(recorded()), "sizes": {}}
        for size in sizes:
            figures["sizes"][str(size)] = _in_a_process(size, queries, directory / str(size))
            shutil.rmtree(directory / str(size))
    report(QUESTION, figures, small=small or own)


def _in_a_process(size: int, queries: int, directory: Path) -> dict[str, Any]:
    directory.mkdir()
    command = [sys.executable, "-m", "benchmarks.bench_search", "--one", str(size), str(queries), str(directory)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def _measured(directory: Path, texts: list[str], count: int) -> dict[str, Any]:
    queries = remembered(texts, count)
    figures = {
        "text_bytes_per_unit": round(sum(len(text.encode()) for text in texts) / len(texts)),
        **_ours(directory / "search", _Units(texts), queries),
        "fts5": _fts5(directory / "fts5.db", texts, queries),
    }
    if find_spec("bm25s") is not None:
        figures["bm25s"] = _bm25s(texts, queries)
    return figures


# --- Ours ------------------------------------------------------------------------------------------------------------


class _Units:
    """The log, as far as an index reads it again."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def unit(self, seq: int) -> WorkUnit:
        return WorkUnit(
            seq=seq,
            id=f"{seq:032x}",
            context_id=f"context-{seq % CONTEXTS}",
            version=(seq - 1) // CONTEXTS + 1,
            agent_id=f"agent-{seq % AGENTS}",
            type=UnitType.MESSAGE,
            ts=ts_text(1_700_000_000_000_000 + seq * 1_000),
            content_type=FORMAT_TEXT,
            payload=self._texts[seq - 1].encode(),
        )

    def chain(self, seq: int) -> bytes:
        return seq.to_bytes(8, "big")

    def before(self, unit: WorkUnit, count: int) -> Sequence[WorkUnit]:
        earlier = range(unit.seq - CONTEXTS * count, unit.seq, CONTEXTS)
        return [self.unit(seq) for seq in earlier if seq > 0]


def _ours(path: Path, units: _Units, queries: Sequence[str]) -> dict[str, Any]:
    index = SearchIndex(path, StaticEmbedder(), units)
    memory = {"empty": _memory_mib()}
    started = time.perf_counter()
    for first in range(1, len(units) + 1, SLICE_UNITS):
        index.take([units.unit(seq) for seq in range(first, min(first + SLICE_UNITS, len(units) + 1))])
        if index.uncommitted >= COMMIT_UNITS:
            index.commit()
    index.commit()
    took = time.perf_counter() - started
    memory["indexed"] = _memory_mib()
    index.close()
    started = time.perf_counter()
    index = SearchIndex(path, StaticEmbedder(), units)
    opened = time.perf_counter() - started
    asked = {
        **{mode: Asked(query="", mode=mode) for mode in ("keyword", "semantic", "hybrid")},
        "hybrid_in_one_context": Asked(query="", mode="hybrid", scope=Scope(contexts=("context-1",))),
    }
    times = {f"{name}_us": percentiles_us(_timed(_asking(index, one), queries)) for name, one in asked.items()}
    memory["asked"] = _memory_mib()
    index.close()
    grew = memory["indexed"]["own"] - memory["empty"]["own"]
    return {
        "units_per_second": round(len(units) / took),
        "open_seconds": round(opened, 2),
        "disk_bytes_per_unit": round(_size_bytes(path) / len(units)),
        "memory_mib": memory,
        "memory_bytes_per_unit": round(grew * 1024 * 1024 / len(units)),
        **times,
    }


def _asking(index: SearchIndex, asked: Asked) -> Callable[[str], object]:
    def ask(query: str) -> object:
        return index.search(Asked(query=query, mode=asked.mode, scope=asked.scope))

    return ask


# --- Beside it -------------------------------------------------------------------------------------------------------


def _fts5(path: Path, texts: list[str], queries: Sequence[str]) -> dict[str, Any]:
    database = sqlite3.connect(path)
    started = time.perf_counter()
    database.execute("CREATE VIRTUAL TABLE units USING fts5(text, content='', tokenize='porter unicode61')")
    database.executemany("INSERT INTO units(rowid, text) VALUES (?, ?)", enumerate(texts, start=1))
    database.commit()
    took = time.perf_counter() - started

    def ask(query: str) -> object:
        words = " OR ".join(f'"{word}"' for word in query.split())
        return database.execute(
            "SELECT rowid FROM units WHERE units MATCH ? ORDER BY rank LIMIT 10", (words,)
        ).fetchall()

    times = percentiles_us(_timed(ask, queries))
    database.close()
    return {
        "units_per_second": round(len(texts) / took),
        "disk_bytes_per_unit": round(path.stat().st_size / len(texts)),
        "query_us": times,
    }


def _bm25s(texts: list[str], queries: Sequence[str]) -> dict[str, Any]:
    import bm25s  # type: ignore[import-not-found] # noqa: PLC0415 - a peer, where it is installed

    before = _memory_mib()
    started = time.perf_counter()
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    took = time.perf_counter() - started
    after = _memory_mib()

    def ask(query: str) -> object:
        return retriever.retrieve(bm25s.tokenize(query, show_progress=False), k=10, show_progress=False)

    return {
        "units_per_second": round(len(texts) / took),
        "memory_bytes_per_unit": round((after["own"] - before["own"]) * 1024 * 1024 / len(texts)),
        "query_us": percentiles_us(_timed(ask, queries)),
    }


def _timed(ask: Callable[[str], object], queries: Sequence[str]) -> list[float]:
    times = []
    for query in queries:
        started = time.perf_counter()
        ask(query)
        times.append(time.perf_counter() - started)
    return times


def _size_bytes(path: Path) -> int:
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def _memory_mib() -> dict[str, float]:
    """What is resident: this process's own, and pages of mapped files, which the system takes back when it wants."""
    own, mapped = resident_bytes(os.getpid()), mapped_bytes(os.getpid())
    return {"own": round(own / MIB, 1), "mapped": round(mapped / MIB, 1)}


if __name__ == "__main__":
    main()
