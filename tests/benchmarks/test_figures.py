"""How the benchmarks count and judge: a wrong figure would look like any other."""

import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import check_ratios, native
from benchmarks.bench_targets import Row
from benchmarks.harness import in_memory
from benchmarks.histogram import Histogram

TIMES = st.lists(st.integers(1, 10**9), min_size=1, max_size=50)


@given(TIMES, TIMES)
def test_histograms_add_up_to_that_of_all_times(some: list[int], others: list[int]) -> None:
    together = Histogram((one, 1) for one in some)
    together += Histogram((one, 1) for one in others)
    every = sorted(some + others)
    assert len(together) == len(every)
    assert together.at_us(1.0) == round(every[-1] / 1e3, 1)
    assert together.at_us(0.5) == round(every[(len(every) + 1) // 2 - 1] / 1e3, 1)


@pytest.mark.parametrize(
    ("found", "at_most", "met"),
    [(0.9, True, "aim"), (1.5, True, "must"), (2.5, True, "no"), (0.9, False, "no"), (2.5, False, "must")],
)
def test_a_row_is_judged_by_what_is_better(found: float, at_most: bool, met: str) -> None:
    must, aim = (2.0, 1.0) if at_most else (2.0, 3.0)
    assert Row("a figure", "x", must, aim, [found], at_most=at_most).figures()["met"] == met


def test_without_a_peer_a_row_is_not_measured_and_says_which() -> None:
    row = Row("a figure", "x", 2, 1, [], needs="redis-server")
    assert row.figures()["met"] == "not measured"
    assert row.line() == "not measured  for want of redis-server (must / aim 2 / 1)  a figure"


def test_a_row_that_is_measured_tells_what_was_found() -> None:
    assert Row("a figure", "x", 2, 1, [1.5], at_most=True).line() == "        must  1.5 x (must / aim 2 / 1)  a figure"


@pytest.mark.skipif(shutil.which("cc") is None, reason="the load is C")
def test_at_a_pace_a_stall_counts_for_every_unit_that_was_due_in_it() -> None:
    native.built("appends")
    with native.null_server("ws") as (port, pid):
        stall = threading.Thread(target=_stall, args=(pid,))
        stall.start()
        run = native.appends("ws", port, per_second=1_000, seconds=1, warm_seconds=0)
        stall.join()
    assert len(run.times) == 1_000
    assert run.times.at_us(0.85) > 100_000, "of 300 ms, 100 and more are left for every fifth unit: 150 for this one"


def _stall(pid: int) -> None:
    """Stops the server for 300 ms once it was woken a hundred times: at this pace, about once for each unit."""
    waited = re.compile(r"^voluntary_ctxt_switches:\s+(\d+)", re.MULTILINE)
    while (found := waited.search(Path(f"/proc/{pid}/status").read_text())) and int(found[1]) < 100:
        time.sleep(0.005)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.3)
    os.kill(pid, signal.SIGCONT)


def test_without_room_in_memory_a_benchmark_says_what_it_lacks() -> None:
    with pytest.raises(SystemExit, match=r"bytes free, of 1152921504606846976 needed"), in_memory(room_bytes=2**60):
        pass


def test_one_recording_among_many_does_not_set_a_bound() -> None:
    kept = check_ratios.figure([6.7, 5.9, 5.9, 7.6, 6.4, 11.8, 6.1, 6.9])
    assert kept["ratio"] * kept["bound"] < 10


def test_every_ratio_that_is_measured_has_been_recorded() -> None:
    assert json.loads(check_ratios.RECORDED.read_text())["figures"].keys() == check_ratios.FIGURES.keys()
