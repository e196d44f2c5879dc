"""`engram replay --locks`: recorded file operations contend for locks, and no promise is broken."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.process import BusProcess, engram, running

EDITS = 93
"""Of the shipped recording."""


def played(bus: BusProcess, *arguments: str) -> dict[str, Any]:
    ended = engram("replay", "--locks", "--json", "--url", bus.url, *arguments)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    assert (found["violations"], found["violations_told"]) == (0, [])
    return found


def test_the_shipped_recording_flat_out_contends_for_its_files(served: BusProcess) -> None:
    found = played(served, "--speed", "0")
    assert (found["operations"], found["edits"], found["agents"], found["files"]) == (240, EDITS, 12, 16)
    assert (found["locks"], found["written"], found["refusals"]) == (EDITS, EDITS, {})
    assert found["waits"] > 0
    assert found["longest_queue"] > 0
    assert found["wait_ms"]["p50"] <= found["wait_ms"]["p99"]


def test_every_play_has_a_context_of_its_own_that_asks_for_fences(served: BusProcess) -> None:
    first, second = played(served, "--speed", "0"), played(served, "--speed", "0")
    assert first["run"] != second["run"]
    refused = engram("replay", "--locks", "--speed", "0", "--run", first["run"], "--url", served.url)
    assert refused.returncode == 2
    assert f"the context '{first['run']}/locks' is there already; name another run" in refused.stderr
    unfenced = engram("post", f"{first['run']}/locks", "x", "--resource", "a.py", "--url", served.url)
    assert "FENCE_REQUIRED" in unfenced.stderr


def test_holds_and_pauses_are_as_recorded_at_their_speed(served: BusProcess, tmp_path: Path) -> None:
    file = tmp_path / "two.jsonl"
    rows = [("ann", "00:00"), ("bob", "00:01"), ("ann", "00:10")]
    file.write_text(
        "".join(
            json.dumps({"agent": agent, "op": "edit", "path": "a.py", "ts": f"2026-01-01T00:{time}Z"}) + "\n"
            for agent, time in rows
        )
    )
    found = played(served, str(file), "--speed", "20", "--max-pause", "9")
    # ann holds for 10 s, bob comes after one and holds for 30, ann comes back for 30: at 20 times the speed.
    assert found["waits"] == 2
    assert 0.4 <= found["wait_ms"]["p50"] / 1000 <= found["wait_ms"]["p99"] / 1000
    assert 3.5 <= found["seconds"] < 30


def test_the_figures_for_people(served: BusProcess) -> None:
    shown = engram("replay", "--locks", "--speed", "0", "--url", served.url).stdout
    for told in (f"{EDITS} by 12 agents to 16 files, of 240 operations", "units/s over", f"{EDITS} taken", "p99"):
        assert told in shown
    for told in ("longest queue", "refused", "fenced writes", "violations"):
        assert told in shown


def test_an_interrupted_replay_leaves_no_lock(served: BusProcess) -> None:
    with running("replay", "--locks", "--run", "cut", "--speed", "1", "--url", served.url) as replay:
        shown = engram("tail", "cut/locks", "--after", "0", "--kind", "lock.granted", "-n", "1", "--url", served.url)
        assert "cut/cmd/entire" in shown.stdout
        replay.send_signal(signal.SIGINT)
        _, told = replay.communicate(timeout=20)
    assert replay.returncode == 130
    assert told == "engram: interrupted; the same command again plays it anew\n"
    assert json.loads(engram("lock", "list", "--prefix", "cut/", "--json", "--url", served.url).stdout) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name the recording"),
        (["--locks", "--order", "file"], "--context-from and --order"),
        (["--locks", "--context-from", "agent"], "--context-from and --order"),
        (["--locks", "missing.jsonl"], "missing.jsonl: [Errno 2]"),
        (["--locks", "/dev/null"], "/dev/null has no steps that write"),
        (["--locks", __file__], "line 1 is not a JSON object"),
    ],
)
def test_what_cannot_be_played_is_one_line(served: BusProcess, arguments: list[str], told: str) -> None:
    refused = engram("replay", *arguments, "--url", served.url)
    assert refused.returncode == 2
    assert told in refused.stderr
    assert refused.stderr.count("\n") == 1
