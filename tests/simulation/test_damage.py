"""Every kind of damage to every file of a data directory: what is served is exact, or the damage is told."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import msgspec
import pytest

from engram_bus.codec import UNREADABLE
from engram_bus.log.directory import TenantIdentity
from tests.simulation.damage import (
    INDEX,
    LOG,
    MARK,
    SEARCH,
    SEGMENT,
    Case,
    Worlds,
    cases,
    copy,
    files,
    inflict,
    make_worlds,
)
from tests.simulation.damage_look import TAKES_NONE, Looker, Seen

QUICK = {"log": 18, "index": 14, "search": 16, "others": 12}
"""So many cases of each part in every run of the suite."""
SEEDS = 12
CACHES = ("tenants/default/index/", SEARCH)
"""What is folded again from the log: it alone may be removed."""


SEARCHED = Seen("unharmed")
"""`engram verify` looks at the log and what a bus needs: search is built again, or says what is wrong."""


class Ended(NamedTuple):
    """What came of a case, and what is wrong with it (empty: nothing)."""

    case: Case
    outcome: str
    """In the bus: told (refused, or said of a record), repaired (exact, and said in its log), unharmed (exact)."""
    verified: str
    said: str
    wrong: str


class Matrix(NamedTuple):
    worlds: Worlds
    looker: Looker
    answers: str

    def end(self, case: Case, at: Path) -> Ended:
        """Damage a copy and look at it."""
        copy(self.worlds.of(case.file), at)
        inflict(case, at, self.worlds)
        before = _kept(at)
        is_search = case.file.startswith(SEARCH.rstrip("/"))
        verified = SEARCHED if is_search else self.looker.look("verify", at)
        seen = self.looker.look("search" if is_search else "start", at)
        if verified.outcome == "whole" and seen.outcome not in ("exact", "refused"):
            # A pointer may lead to an old copy of the very same page, until an append writes over that one.
            verified = self.looker.look("verify", at)
        lost = sorted(before.items() - _kept(at).items())
        wrong = _wrong(case, seen, verified, self.answers) or (f"{lost[0][0]} was changed" if lost else "")
        shutil.rmtree(at)
        return Ended(case, _outcome(seen), _outcome(verified), seen.said or seen.warned or verified.said, wrong)


def _outcome(seen: Seen) -> str:
    match seen.outcome:
        case "exact" | "whole":
            return "repaired" if seen.warned else "unharmed"
        case "refused" | "damaged":
            return "told"
        case _:
            return seen.outcome


def _kept(at: Path) -> dict[str, bytes]:
    """The files nobody may remove, and those a start does not write."""
    kept = (name for name in files(at) if not name.startswith(CACHES))
    written = ("lock", LOG, SEGMENT)
    return {name: b"" if name in written else _content(at / name) for name in kept}


def _content(file: Path) -> bytes:
    """All of it, but in which directory a log is: a start writes that where it is not there."""
    raw = file.read_bytes()
    try:
        identity = msgspec.json.decode(raw, type=TenantIdentity)
    except UNREADABLE:
        return raw
    return msgspec.json.encode(msgspec.structs.replace(identity, directory=None))


def _wrong(case: Case, seen: Seen, verified: Seen, answers: str) -> str:
    if seen.outcome in ("died", "hung", "wrong"):
        return f"{seen.outcome}: {seen.said}"
    if seen.answers and seen.answers != answers:
        return f"search answers otherwise, and says {seen.warned!r}"
    if verified.outcome in ("hung", "wrong"):
        return f"verify {verified.outcome}: {verified.said}"
    if seen.outcome == "refused" and Path(case.file).name.split(".")[0] not in seen.said and "/log" not in seen.said:
        return f"the refusal does not name the file: {seen.said}"
    # LMDB shows nobody who only reads which pages are free: `verify` cannot tell that they are not.
    is_told = verified.outcome != "whole" or seen.said.startswith(TAKES_NONE)
    if seen.outcome in ("refused", "damaged") and case.file == LOG and not is_told:
        return f"verify says it is whole, the bus: {seen.said}"
    return ""


@contextmanager
def matrix_in(path: Path) -> Iterator[Matrix]:
    """Worlds below a path, and who looks at them."""
    worlds = make_worlds(path)
    with Looker(path / "records") as looker:
        copy(worlds.data, path / "whole")
        found = looker.look("search", path / "whole")
        assert (found.outcome, found.warned) == ("exact", ""), found
        assert looker.look("start", path / "whole") == Seen("exact")
        for data in (worlds.data, worlds.killed):
            assert looker.look("verify", data) == Seen("whole")
        copy(worlds.killed, path / "started")
        assert looker.look("start", path / "started") == Seen("exact")
        yield Matrix(worlds, looker, found.answers)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    with matrix_in(tmp_path_factory.mktemp("worlds")) as matrix:
        yield matrix


def _run(matrix: Matrix, chosen: Sequence[Case], at: Path) -> None:
    ended = [matrix.end(case, at / "damaged") for case in chosen]
    print(table_of(ended))
    wrong = [f"{one.case}: {one.wrong}" for one in ended if one.wrong]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(ended)} cases:", *wrong])


OUTCOMES = ("told", "repaired", "unharmed")


def table_of(ended: Sequence[Ended]) -> str:
    """File x kind of damage -> what the bus made of it, and how often `engram verify` told it."""
    counted = Counter((_sort(one.case.file), one.case.kind, one.outcome) for one in ended)
    told = Counter((_sort(one.case.file), one.case.kind) for one in ended if one.verified == "told")
    head = ["file", "damage", *OUTCOMES, "told by verify", "wrong"]
    lines = [head, ["-"] * len(head)]
    for file, kind in sorted({(file, kind) for file, kind, _ in counted}):
        of_row = [one for one in ended if (_sort(one.case.file), one.case.kind) == (file, kind)]
        wrong = sum(bool(one.wrong) for one in of_row)
        lines.append(
            [file, kind, *(str(counted[file, kind, one]) for one in OUTCOMES), str(told[file, kind]), str(wrong)]
        )
    totals = [sum(one.outcome == outcome for one in ended) for outcome in OUTCOMES]
    wrong = sum(bool(one.wrong) for one in ended)
    lines.append([f"{len(ended)} cases", "", *map(str, totals), str(sum(told.values())), str(wrong)])
    return "\n".join(["", *(f"| {' | '.join(line)} |" for line in lines)])


def _sort(file: str) -> str:
    """Of a file: what is of search has random names, and those of versions."""
    below = file.removeprefix(SEARCH.rstrip("/"))
    if below == file:
        return file
    _, *parts = (part.partition("-")[0] for part in below.split("/"))
    name = f"*{Path(file).suffix}" if "segments" in parts[:-1] else None
    return "/".join(["search", *parts[:-1], *([name] if name else parts[-1:])])


def test_damage_is_repaired_or_told_whatever_it_hits(matrix: Matrix, tmp_path: Path) -> None:
    seed = int(os.environ.get("ENGRAM_SEED") or Random().randrange(10**6))
    print(f"ENGRAM_SEED={seed}")
    dice = Random(seed)
    _run(matrix, [case for part, count in QUICK.items() for case in _drawn(matrix, part, count, dice)], tmp_path)


def _drawn(matrix: Matrix, part: str, count: int, dice: Random) -> list[Case]:
    """Of each sort of file as often as of any other."""
    by_sort: dict[str, list[Case]] = {}
    for case in cases_of(matrix, part):
        by_sort.setdefault(_sort(case.file), []).append(case)
    return [dice.choice(by_sort[dice.choice(sorted(by_sort))]) for _ in range(count)]


def test_what_is_folded_again_is_said(matrix: Matrix, tmp_path: Path) -> None:
    for case in (Case(MARK, "delete", 0), Case(INDEX, "delete", 0), Case(SEARCH.rstrip("/"), "delete", 0)):
        assert matrix.end(case, tmp_path / "damaged").outcome == "repaired", case


@pytest.mark.long
@pytest.mark.parametrize("part", QUICK)
def test_every_damage_to_every_file_is_repaired_or_told(matrix: Matrix, tmp_path: Path, part: str) -> None:
    _run(matrix, cases_of(matrix, part), tmp_path)


def cases_of(matrix: Matrix, part: str) -> list[Case]:
    starts = {"log": str(Path(LOG).parent), "index": "tenants/default/index/", "search": SEARCH.rstrip("/")}
    return [case for case in cases(matrix.worlds, seeds=SEEDS) if _part(case, starts) == part]


def _part(case: Case, starts: dict[str, str]) -> str:
    return next((part for part, start in starts.items() if case.file.startswith(start)), "others")


def main(parts: Sequence[str]) -> None:
    """Print the table of these parts, or of all; ends with 1 where anything is wrong."""
    ended: list[Ended] = []
    with TemporaryDirectory() as directory, matrix_in(Path(directory)) as matrix:
        for part in parts or QUICK:
            ended += [matrix.end(case, Path(directory) / "damaged") for case in cases_of(matrix, part)]
    print(table_of(ended))
    wrong = [f"{one.case}: {one.wrong}" for one in ended if one.wrong]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main(sys.argv[1:])
