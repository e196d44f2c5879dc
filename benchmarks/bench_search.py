"""What does search cost as the log grows: taking units in, asking in each mode, on the disk and in memory?

python -m benchmarks.bench_search [--small] [--units 10000,100000,1000000]

Texts are those of recorded agents (`entire_dev` beside the repository, else the recording that ships). More than there
are, they are made of them: each further unit is the first part of one text and the last part of another, drawn with a
fixed seed, so that words keep their frequencies and no text comes twice. SQLite's FTS5 stands beside the keyword leg,
and bm25s where it is installed (`pip install bm25s`), over the same texts with the same queries.
"""

import json
import os
import random
import resource
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, machine, percentiles_us, report, scratch
from engram_bus.projections.search.embedders import StaticEmbedder
from engram_bus.projections.search.engine import SearchIndex
from engram_bus.projections.search.values import Asked
from engram_bus.units import FORMAT_TEXT, UnitType, WorkUnit, ts_text

QUESTION = "search over 10 thousand to a million units: taking in, asking, bytes; FTS5 and bm25s beside it"
RECORDED = ROOT.parent / "shared" / "data" / "entire_dev.jsonl"
SHIPPED = ROOT / "engram_bus" / "cli" / "recordings" / "fleet.jsonl"
BATCH = 500
COMMIT = 1_000
QUERIES = 200


def main() -> None:
    """Each size in an index of its own."""
    small = "--small" in sys.argv
    sizes = [300] if small else [10_000, 100_000]
    if "--units" in sys.argv:
        sizes = [int(size) for size in sys.argv[sys.argv.index("--units") + 1].split(",")]
    texts = _recorded()
    with scratch() as directory:
        figures: dict[str, Any] = {"machine": machine(directory), "texts": len(texts), "sizes": {}}
        for size in sizes:
            figures["sizes"][str(size)] = _measured(directory / str(size), list(_grown(texts, size)))
    report(QUESTION, figures, small=small)


class _Units:
    """The log, as far as an index reads it again."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def unit(self, seq: int) -> WorkUnit:
        return WorkUnit(
            seq=seq,
            id=f"{seq:032x}",
            context_id=f"context-{seq % 97}",
            version=(seq - 1) // 97 + 1,
            agent_id=f"agent-{seq % 13}",
            type=UnitType.MESSAGE,
            ts=ts_text(1_700_000_000_000_000 + seq * 1_000),
            content_type=FORMAT_TEXT,
            payload=self._texts[seq - 1].encode(),
        )

    def before(self, unit: WorkUnit, count: int) -> Sequence[WorkUnit]:
        earlier = range(unit.seq - 97 * count, unit.seq, 97)
        return [self.unit(seq) for seq in earlier if seq > 0]


def _measured(directory: Path, texts: list[str]) -> dict[str, Any]:
    units = _Units(texts)
    queries = _queries(texts)
    resident = _resident_bytes()
    index = SearchIndex(directory / "search", StaticEmbedder(), units)
    started = time.perf_counter()
    for first in range(1, len(texts) + 1, BATCH):
        index.take([units.unit(seq) for seq in range(first, min(first + BATCH, len(texts) + 1))])
        if index.uncommitted >= COMMIT:
            index.commit()
    index.commit()
    took = time.perf_counter() - started
    modes = {
        mode: percentiles_us(
            _timed(lambda query, mode=mode: index.search(Asked(query=query, mode=mode)), queries)  # type: ignore[misc]
        )
        for mode in ("keyword", "semantic", "hybrid")
    }
    figures = {
        "units_per_second": round(len(texts) / took),
        "text_bytes_per_unit": round(sum(map(len, texts)) / len(texts)),
        "disk_bytes_per_unit": round(_size_bytes(directory / "search") / len(texts)),
        "memory_bytes_per_unit": round((_resident_bytes() - resident) / len(texts)),
        **{f"{mode}_us": times for mode, times in modes.items()},
        "fts5": _fts5(directory, texts, queries),
    }
    index.close()
    if find_spec("bm25s") is not None:
        figures["bm25s"] = _bm25s(texts, queries)
    return figures


def _fts5(directory: Path, texts: list[str], queries: list[str]) -> dict[str, Any]:
    database = sqlite3.connect(directory / "fts5.db")
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
    size = (directory / "fts5.db").stat().st_size
    return {
        "units_per_second": round(len(texts) / took),
        "disk_bytes_per_unit": round(size / len(texts)),
        "query_us": times,
    }


def _bm25s(texts: list[str], queries: list[str]) -> dict[str, Any]:
    import bm25s  # type: ignore[import-not-found] # noqa: PLC0415 - a peer, where it is installed

    started = time.perf_counter()
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)
    took = time.perf_counter() - started

    def ask(query: str) -> object:
        return retriever.retrieve(bm25s.tokenize(query, show_progress=False), k=10, show_progress=False)

    return {"units_per_second": round(len(texts) / took), "query_us": percentiles_us(_timed(ask, queries))}


def _timed(ask: Callable[[str], object], queries: Sequence[str]) -> list[float]:
    times = []
    for query in queries:
        started = time.perf_counter()
        ask(query)
        times.append(time.perf_counter() - started)
    return times


def _recorded() -> list[str]:
    path = RECORDED if RECORDED.exists() else SHIPPED
    lines = path.read_text(encoding="utf-8").splitlines()
    return [text for line in lines if (text := json.loads(line).get("text", "").strip())]


def _grown(texts: list[str], size: int) -> Iterator[str]:
    draw = random.Random(4)
    yield from texts[:size]
    for _ in range(size - len(texts)):
        first, last = draw.choice(texts), draw.choice(texts)
        yield f"{first[: len(first) // 2]} {last[len(last) // 2 :]}"


def _queries(texts: list[str]) -> list[str]:
    """Three to six words that stand together somewhere: what one remembers of it."""
    draw = random.Random(5)
    queries: list[str] = []
    while len(queries) < QUERIES:
        words = [word for word in draw.choice(texts).split() if word.isalpha()]
        if len(words) > 6:
            first = draw.randrange(len(words) - 6)
            queries.append(" ".join(words[first : first + draw.randint(3, 6)]))
    return queries


def _size_bytes(path: Path) -> int:
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") if pages else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024


if __name__ == "__main__":
    main()
