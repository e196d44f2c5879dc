"""Every kind of damage to every file of a data directory: what is served is exact, or the damage is told."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from tests.simulation.damage import INDEX, LOG, SEARCH, Case, Worlds, cases, files, inflict, make_worlds
from tests.simulation.damage_look import TAKES_NONE, Looker, Seen

QUICK = 60
SEEDS = 12
CACHES = ("tenants/default/index/", SEARCH)
"""What is folded again from the log: it alone may be removed."""


class Ended(NamedTuple):
    """What came of a case: an outcome, and what is wrong with it (empty: nothing)."""

    case: Case
    outcome: str
    verified: str
    said: str
    wrong: str


class Matrix(NamedTuple):
    worlds: Worlds
    looker: Looker
    answers: str

    def end(self, case: Case, at: Path) -> Ended:
        """Damage a copy and look at it."""
        shutil.copytree(self.worlds.data, at)
        inflict(case, at, self.worlds)
        before = _kept(at)
        verified = self.looker.look("verify", at)
        is_search = case.file.startswith(SEARCH)
        seen = self.looker.look("search" if is_search else "start", at)
        if verified.outcome == "whole" and seen.outcome not in ("exact", "refused"):
            # A pointer may lead to an old copy of the very same page, until an append writes over that one.
            verified = self.looker.look("verify", at)
        lost = sorted(before.items() - _kept(at).items())
        wrong = _wrong(case, seen, verified, self.answers) or (f"{lost[0][0]} was changed" if lost else "")
        shutil.rmtree(at)
        return Ended(case, seen.outcome, verified.outcome, seen.said or verified.said, wrong)


def _kept(at: Path) -> dict[str, bytes]:
    """The files nobody may remove, and those a start does not write."""
    kept = (name for name in files(at) if not name.startswith(CACHES))
    written = ("lock", LOG)
    return {name: b"" if name in written else (at / name).read_bytes() for name in kept}


def _wrong(case: Case, seen: Seen, verified: Seen, answers: str) -> str:
    # Search's files have checksums of their own: a whole file of another index is taken (RELIABILITY.md has it).
    is_foreign = case.file.startswith(SEARCH) and case.kind.startswith("replace by")
    if seen.outcome in ("died", "hung") or (seen.outcome == "wrong" and not is_foreign):
        return f"{seen.outcome}: {seen.said}"
    if seen.answers and seen.answers != answers and not is_foreign:
        return "search answers otherwise"
    if verified.outcome in ("hung", "wrong"):
        return f"verify {verified.outcome}: {verified.said}"
    if seen.outcome == "refused" and Path(case.file).name.split(".")[0] not in seen.said and "/log" not in seen.said:
        return f"the refusal does not name the file: {seen.said}"
    # LMDB shows nobody who only reads which pages are free: `verify` cannot tell that they are not.
    is_told = verified.outcome != "whole" or seen.said.startswith(TAKES_NONE)
    if seen.outcome in ("refused", "damaged") and case.file == LOG and not is_told:
        return f"verify says it is whole, the bus: {seen.said}"
    return ""


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    path = tmp_path_factory.mktemp("worlds")
    worlds = make_worlds(path)
    with Looker(path / "records") as looker:
        shutil.copytree(worlds.data, path / "whole")
        found = looker.look("search", path / "whole")
        assert looker.look("start", path / "whole") == Seen("exact")
        assert looker.look("verify", worlds.data) == Seen("whole")
        yield Matrix(worlds, looker, found.answers)


def _run(matrix: Matrix, chosen: Sequence[Case], at: Path) -> None:
    ended = [matrix.end(case, at / "damaged") for case in chosen]
    _tell(ended)
    wrong = [f"{one.case}: {one.wrong}" for one in ended if one.wrong]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(ended)} cases:", *wrong])


def _tell(ended: Sequence[Ended]) -> None:
    """The table file, damage, outcome; whole into the file that ENGRAM_DAMAGE_TABLE names."""
    counted = Counter((one.case.file, one.case.kind, one.outcome, one.verified) for one in ended)
    table = [f"{' | '.join(row)} | {count}" for row, count in sorted(counted.items())]
    print(f"\nfile | damage | the bus | verify | cases ({len(ended)})", *table, sep="\n")
    if to := os.environ.get("ENGRAM_DAMAGE_TABLE"):
        rows = (f"{one.case} | {one.outcome} | {one.verified} | {one.said} | {one.wrong}" for one in ended)
        Path(to).write_text("\n".join(rows) + "\n")


def test_damage_is_repaired_or_told_whatever_it_hits(matrix: Matrix, tmp_path: Path) -> None:
    seed = int(os.environ.get("ENGRAM_SEED") or Random().randrange(10**6))
    print(f"ENGRAM_SEED={seed}")
    dice = Random(seed)
    by_file: dict[str, list[Case]] = {}
    for case in cases(matrix.worlds.data, seeds=SEEDS):
        by_file.setdefault(case.file, []).append(case)
    # Half of them where it matters most: in the log and in its index.
    chosen = [dice.choice(by_file[file]) for file in (LOG, INDEX) for _ in range(QUICK // 4)]
    chosen += [dice.choice(by_file[dice.choice(sorted(by_file))]) for _ in range(QUICK - len(chosen))]
    _run(matrix, chosen, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("part", ["log", "index", "search", "others"])
def test_every_damage_to_every_file_is_repaired_or_told(matrix: Matrix, tmp_path: Path, part: str) -> None:
    starts = {"log": LOG, "index": "tenants/default/index/", "search": SEARCH}
    chosen = [case for case in cases(matrix.worlds.data, seeds=SEEDS) if _part(case, starts) == part]
    _run(matrix, chosen, tmp_path)


def _part(case: Case, starts: dict[str, str]) -> str:
    return next((part for part, start in starts.items() if case.file.startswith(start)), "others")
