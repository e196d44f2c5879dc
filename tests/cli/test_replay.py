"""`engram replay`, `verify` and `demo`: a recorded session goes in, and the same comes out."""

import json
import random
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.process import BusProcess, engram, interrupt, running
from tests.replays import AIRLINE, FLEET, Recorded, check, listed


def summary(bus: BusProcess, recorded: Recorded, *arguments: str) -> dict[str, Any]:
    played = engram("replay", str(recorded.file), "--json", "--url", bus.url, *arguments)
    assert played.returncode == 0, played.stderr
    found: dict[str, Any] = json.loads(played.stdout)
    assert (found["lost"], found["repeated"], found["out_of_order"]) == (0, 0, 0)
    return found


async def test_flat_out_and_again_under_the_same_name_and_under_another(served: BusProcess) -> None:
    count = len(AIRLINE.rows)
    for run, appended in (("one", count), ("one", 0), ("two", count)):
        found = summary(served, AIRLINE, "--speed", "0", "--run", run)
        assert (found["appended_units"], found["replayed_units"]) == (appended, count - appended)
        assert (found["agents"], found["contexts"], found["recorded_units"]) == (4, 8, count)
        check([unit async for unit in listed(served.url, f"{run}/")], AIRLINE, run=run)


async def test_the_order_of_the_whole_file_can_be_kept(served: BusProcess) -> None:
    summary(served, AIRLINE, "--speed", "0", "--run", "strict", "--order", "file")
    units = [unit async for unit in listed(served.url, "strict/")]
    keys = [(row["trace"], str(row["step"])) for row in AIRLINE.rows]
    assert [(unit.meta["trace"], unit.meta["step"]) for unit in sorted(units, key=lambda unit: unit.seq)] == keys


async def test_contexts_can_be_taken_from_any_field(served: BusProcess) -> None:
    found = summary(served, FLEET, "--speed", "0", "--run", "items", "--context-from", "item")
    assert found["contexts"] == len({row["item"] for row in FLEET.rows})


def test_recorded_pauses_are_kept_at_their_speed(served: BusProcess, tmp_path: Path) -> None:
    file = tmp_path / "three.jsonl"
    times = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:10Z", "2026-01-01T01:00:00Z")
    file.write_text("".join(json.dumps({"agent": "ann", "text": "", "ts": time}) + "\n" for time in times))
    found = summary(served, Recorded(file, ""), "--speed", "40", "--max-pause", "10")
    assert 0.45 <= found["seconds"] < 15, "0.25 s for each, told between the first unit and the last; else 20 s or 90"


def test_the_summary_for_people(served: BusProcess) -> None:
    shown = engram("replay", str(FLEET.file), "--speed", "0", "--run", "shown", "--url", served.url).stdout
    for told in ("162 by 25 agents in 1 context", "units/s over", "delivered", "p99", "acknowledged", "out of order"):
        assert told in shown


async def test_an_interrupted_replay_is_run_again_without_duplicates(served: BusProcess) -> None:
    arguments = (str(FLEET.file), "--url", served.url, "--run", "cut", "--speed", "5000", "--max-pause", "60")
    with (
        running("replay", *arguments, in_front=True) as first,
        running("tail", "cut/beads", "--url", served.url, "--after", "0") as tail,
    ):
        assert tail.stdout is not None
        for _ in range(random.randint(1, 100)):
            tail.stdout.readline()
        interrupt(first)
        _, told = first.communicate(timeout=20)
    assert first.returncode == 130
    assert told == "engram: interrupted; the same command again goes on where it was\n"
    found = summary(served, FLEET, "--run", "cut", "--speed", "0", "--max-pause", "60")
    assert found["replayed_units"] > 0
    check([unit async for unit in listed(served.url, "cut/")], FLEET, run="cut")


@pytest.mark.parametrize(
    ("text", "arguments", "told"),
    [
        ("", [], "has no steps"),
        ("nonsense", [], "line 1 is not a JSON object"),
        ('{"agent": "a", "text": ""}', ["--context-from", "team"], "no line has the field 'team'"),
        (None, [], "No such file"),
    ],
)
def test_a_file_that_is_no_recording_is_told(tmp_path: Path, text: str | None, arguments: list[str], told: str) -> None:
    file = tmp_path / "file.jsonl"
    if text is not None:
        file.write_text(text)
    refused = engram("replay", str(file), *arguments)
    assert refused.returncode == 2
    assert told in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_what_the_bus_refuses_ends_a_replay_with_the_reason(served: BusProcess, tmp_path: Path) -> None:
    file = tmp_path / "closed.jsonl"
    file.write_text('{"agent": "ann", "text": "hi", "trace": "x"}\n' * 3)
    httpx.patch(f"{served.url}/contexts/closed/x", json={"closed": True, "agent_id": "ann"}).raise_for_status()
    refused = engram("replay", str(file), "--speed", "0", "--url", served.url)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "the bus refused: CONTEXT_CLOSED" in refused.stderr


def test_verify_tells_whole_from_damaged(tmp_path: Path) -> None:
    with BusProcess(tmp_path / "data") as bus:
        summary(bus, AIRLINE, "--speed", "0")
        beside = engram("verify", str(bus.data_dir), "--json")
        assert beside.returncode == 0
        assert json.loads(beside.stdout)["logs"][0]["whole_units"] == len(AIRLINE.rows)
    whole = engram("verify", str(bus.data_dir))
    assert (whole.returncode, whole.stderr) == (0, "")
    assert "whole" in whole.stdout.splitlines()[0]

    log = next(bus.data_dir.glob("tenants/default/log/data.mdb"))
    log.write_bytes(log.read_bytes().replace(b"Denver", b"denver"))
    damaged = engram("verify", str(bus.data_dir))
    assert damaged.returncode == 1
    assert "DAMAGED" in damaged.stdout
    assert "tenants/default/log, unit" in damaged.stdout
    assert "is damaged" in damaged.stderr


def test_verify_of_what_is_no_data_directory(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        refused = engram("verify", str(path))
        assert refused.returncode == 2
        assert f"{path} is no data directory" in refused.stderr


@pytest.mark.parametrize(("name", "count"), [("fleet", 162), ("airline", 277)])
def test_the_demo_shows_every_unit_and_its_summary_and_leaves_nothing(tmp_path: Path, name: str, count: int) -> None:
    shown = engram("demo", name, "--seconds", "1", TMPDIR=str(tmp_path))
    assert shown.returncode == 0, shown.stderr
    units = [line for line in shown.stdout.splitlines() if re.match(r" +\d+ \d\d:\d\d:\d\d ", line)]
    assert [int(line.split()[0]) for line in units[:count]] == list(range(1, count + 1))
    waits = units[count:]
    assert 0 < len(waits) <= 6
    assert all("lock.queued" in line and "; behind dev" in line for line in waits)
    assert "93 taken" in shown.stdout
    assert re.search(r"^violations +0", shown.stdout, re.MULTILINE)
    assert "units whole, in " in shown.stdout
    assert list(tmp_path.iterdir()) == []


def until_it_plays(demo: subprocess.Popen[str]) -> None:
    assert demo.stdout is not None
    while " fleet/" not in (line := demo.stdout.readline()):
        assert line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_stopped_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with running("demo", "--seconds", "60", TMPDIR=str(tmp_path), ENGRAM_GRPC="false") as demo:
        until_it_plays(demo)
        for _ in range(2):  # once more does not keep it from tidying up
            demo.send_signal(number)
        _, told = demo.communicate(timeout=20)
    assert (demo.returncode, told) == (128 + number, "engram: stopped\n")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_a_demo_in_one_line(tmp_path: Path) -> None:
    with running("demo", "--seconds", "60", in_front=True, TMPDIR=str(tmp_path), ENGRAM_GRPC="false") as demo:
        until_it_plays(demo)
        interrupt(demo)
        _, told = demo.communicate(timeout=20)
    assert (demo.returncode, told) == (130, "engram: stopped\n")
    assert list(tmp_path.iterdir()) == []
