"""The gate lets noise pass and stops what stays slower: its decision, with figures that nobody measured."""

import json
from collections.abc import Mapping, Sequence

import pytest

from benchmarks import check_ratios

KEPT = {name: {"ratio": 2.0, "bound": 1.5} for name in ("appends", "fan-out", "reading")}
AS_RECORDED = dict.fromkeys(KEPT, 2.0)


class Tries:
    """What each try finds, the last of them over and over; and what it was asked for."""

    def __init__(self, *found: Mapping[str, float]) -> None:
        self._found = found
        self.asked: list[Sequence[str]] = []

    def __call__(self, names: Sequence[str]) -> Mapping[str, float]:
        found = self._found[min(len(self.asked), len(self._found) - 1)]
        self.asked.append(names)
        return {name: found[name] for name in names}


def test_what_is_within_its_bound_passes_at_once() -> None:
    tries = Tries({**AS_RECORDED, "fan-out": 3.0})
    assert check_ratios.slower(KEPT, tries) == []
    assert tries.asked == [["appends", "fan-out", "reading"]]


def test_what_is_beyond_its_bound_once_passes_and_it_alone_is_measured_again() -> None:
    tries = Tries({**AS_RECORDED, "fan-out": 3.1}, AS_RECORDED)
    assert check_ratios.slower(KEPT, tries) == []
    assert tries.asked == [["appends", "fan-out", "reading"], ["fan-out"]]


def test_what_is_beyond_its_bound_in_every_try_is_named_and_nothing_else() -> None:
    tries = Tries({"appends": 9.0, "fan-out": 3.1, "reading": 2.0}, {"appends": 2.0, "fan-out": 3.1})
    assert check_ratios.slower(KEPT, tries) == ["fan-out"]
    assert tries.asked[1:] == [["appends", "fan-out"], *[["fan-out"]] * (check_ratios.TRIES - 2)]


def test_it_exits_with_1_and_names_what_is_slower(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        check_ratios.main([], Tries({**_recorded(), "work, reading the log": 1e9}))
    assert end.value.code == 1
    assert f"in each of {check_ratios.TRIES} runs: work, reading the log\n" in capsys.readouterr().err


def test_it_ends_well_where_nothing_is_slower(capsys: pytest.CaptureFixture[str]) -> None:
    check_ratios.main([], Tries(_recorded()))
    assert capsys.readouterr().out.endswith("no figure is beyond its bound\n")


def test_a_turn_in_which_nothing_was_answered_is_taken_again() -> None:
    said = iter([None, None, 7])
    assert check_ratios.answered("bus, 1 client", lambda: next(said)) == 7


def test_a_server_that_never_answers_ends_the_check_and_is_named() -> None:
    turns = iter([None] * check_ratios.SILENT_MAX)
    with pytest.raises(TimeoutError, match=r"^bus, 1 client: the server answered nothing in 10 turns of 0\.15 s"):
        check_ratios.answered("bus, 1 client", lambda: next(turns))


def _recorded() -> Mapping[str, float]:
    figures = json.loads(check_ratios.RECORDED.read_text())["figures"]
    return {name: figure["ratio"] for name, figure in figures.items()}
