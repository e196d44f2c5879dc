"""The page says of each figure who measured it, and what stood beside it."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import page
from benchmarks.bench_targets import Row

DISK = {name: {"median": 97.5, "best": 90.0} for name in (page.APPEND_FLUSH, page.OVERWRITE_FLUSH)}


def _part(commit: str, *, disk: Any = None, **beside: Any) -> dict[str, Any]:
    return {"commit": commit, "disk": disk, "rows": [Row("a rate", "units/s", 2, 3, [2.5], **beside).figures()]}


def _drawn(directory: Path, monkeypatch: pytest.MonkeyPatch, *parts: dict[str, Any]) -> str:
    monkeypatch.setattr(page, "RESULTS", directory)
    kept = {"parts": {str(number): part for number, part in enumerate(parts)}}
    (directory / "bench_targets.json").write_text(json.dumps(kept))
    page.main()
    return (directory / "index.html").read_text(encoding="utf-8")


def test_each_row_names_its_commit_where_there_are_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = _drawn(tmp_path, monkeypatch, _part("aaaaaaa"), _part("bbbbbbb"))
    assert "<p>commit aaaaaaa, bbbbbbb" in drawn
    assert drawn.count("<td>aaaaaaa</tr>") == drawn.count("<td>bbbbbbb</tr>") == 1


def test_one_commit_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _drawn(tmp_path, monkeypatch, _part("aaaaaaa"), _part("aaaaaaa")).count("aaaaaaa") == 1


def test_a_row_stands_beside_the_null_server_the_flush_and_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = _drawn(tmp_path, monkeypatch, _part("aaaaaaa", disk=DISK, null=[9.0], load_cpu=[0.25]), _part("aaaaaaa"))
    assert "<td class=number>9<td class=number>97.5<td class=number>0.25</tr>" in drawn
    assert f"{'<td class=number>-' * 3}</tr>" in drawn
