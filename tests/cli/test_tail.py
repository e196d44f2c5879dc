"""`engram tail`: one line for each unit, filters, and an end that says where to go on."""

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.process import ENGRAM, BusProcess, engram, environment, running


@pytest.fixture
def posted(served: BusProcess, context: str) -> int:
    """Three units in a context of their own, and the seq before them."""
    units = [
        ["one\nline\x1b[31m", "--agent", "ann"],
        ["two", "--agent", "bob", "--type", "error", "--kind", "build.failed", "--meta", "a=1"],
        ["three", "--agent", "bob", "--type", "tool-call", "--meta", "tool=grep", "--resource", "src/a.py"],
    ]
    seqs = [json.loads(engram("post", context, *unit, "--json", "--url", served.url).stdout)["seq"] for unit in units]
    return int(seqs[0]) - 1


def test_each_unit_is_one_line_that_can_be_read(served: BusProcess, context: str, posted: int) -> None:
    shown = engram("tail", context, "--after", str(posted), "-n", "3", "--url", served.url)
    first, second, third = shown.stdout.splitlines()
    assert re.search(r"^ +\d+ \d\d:\d\d:\d\d \S+ +ann +✉ message +one line \[31m$", first)
    assert re.search(r" bob +✗ build.failed +two$", second)
    assert re.search(r" bob +→ tool_call +grep src/a.py three$", third)
    assert re.search(r"go on with --after \S+\.\d+$", shown.stderr.strip())


@pytest.mark.parametrize(
    ("filters", "texts"),
    [
        (["--type", "error"], ["two"]),
        (["--agent", "bob", "--type", "tool-call", "--type", "message"], ["three"]),
        (["--kind", "build.*"], ["two"]),
        (["--resource", "src/*"], ["three"]),
        (["--meta", "a=1"], ["two"]),
    ],
)
def test_filters(served: BusProcess, context: str, posted: int, filters: list[str], texts: list[str]) -> None:
    count = ["-n", str(len(texts))]
    shown = engram("tail", context, "--after", str(posted), "--json", *count, *filters, "--url", served.url)
    assert [json.loads(line)["payload"] for line in shown.stdout.splitlines()] == texts


def test_an_excluded_agent_and_all_contexts(served: BusProcess, posted: int) -> None:
    shown = engram("tail", "--after", str(posted), "--exclude-agent", "bob", "-n", "1", "--json", "--url", served.url)
    assert json.loads(shown.stdout)["payload"] == "one\nline\x1b[31m"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_well_and_it_goes_on_where_it_was(served: BusProcess, context: str, how: signal.Signals) -> None:
    with running("tail", context, "--after", "0", "--json", "--url", served.url) as tail:
        engram("post", context, "first", "--url", served.url)
        assert tail.stdout is not None
        assert json.loads(tail.stdout.readline())["payload"] == "first"
        tail.send_signal(how)
        rest, told = tail.communicate(timeout=20)
    assert (tail.returncode, rest) == (0, "")
    cursor = re.search(r"--after (\S+)", told)
    assert cursor is not None
    engram("post", context, "second", "--url", served.url)
    shown = engram("tail", context, "--after", cursor[1], "-n", "1", "--json", "--url", served.url)
    assert json.loads(shown.stdout)["payload"] == "second"


def test_whoever_stops_reading_ends_it_even_on_a_quiet_bus(served: BusProcess, context: str) -> None:
    engram("post", context, "only", "--url", served.url)
    pipe = ["sh", "-c", '"$@" | head -1', "sh", *ENGRAM, "tail", context, "--after", "0", "--url", served.url]
    ended = subprocess.run(pipe, capture_output=True, text=True, timeout=20, env=environment())
    assert ended.stdout.endswith("only\n")
    assert "whoever read the output has stopped reading" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "--after" in ended.stderr


@pytest.mark.parametrize(
    ("after", "code", "told"), [("yesterday", 2, "CURSOR_INVALID"), ("999999999", 1, "CURSOR_AHEAD")]
)
def test_a_cursor_that_is_none_is_refused(served: BusProcess, after: str, code: int, told: str) -> None:
    refused = engram("tail", "--after", after, "--url", served.url)
    assert refused.returncode == code
    assert told in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_full_disk_is_one_line(served: BusProcess, posted: int) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [*ENGRAM, "tail", "--after", str(posted), "--url", served.url],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
            env=environment(),
        )
    assert ended.returncode == 1
    assert "No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr
