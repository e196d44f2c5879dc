"""`engram search`: what it finds, for people and for programs, and what it says when it cannot."""

import contextlib
import json
import os
import pty
import re
import subprocess
from typing import Any

import httpx
import pytest

from tests.process import ENGRAM, BusProcess, engram, engram_here, environment

CONTEXT = "of/test_search"


@pytest.fixture(scope="module")
def posted(served: BusProcess) -> list[dict[str, Any]]:
    """Three that tell of a parser."""
    units: list[dict[str, Any]] = [
        {"payload": "I take the parser\x1b[31m", "agent_id": "ann", "type": "TASK_STATUS", "kind": "task.taken"},
        {"payload": "the parser drops comments", "agent_id": "bob", "type": "ERROR", "meta": {"run": "7"}},
        {"payload": "parser: fixed", "agent_id": "bob", "resources": ["src/parser.py"]},
    ]
    return [httpx.post(f"{served.url}/workunit", json={"context_id": CONTEXT, **unit}).json() for unit in units]


def found(served: BusProcess, *arguments: str) -> dict[str, Any]:
    ended = engram("search", *arguments, "--json", "--url", served.url)
    assert (ended.returncode, ended.stderr) == (0, "")
    page: dict[str, Any] = json.loads(ended.stdout)
    return page


def test_each_hit_is_one_line_that_can_be_read(served: BusProcess, posted: list[dict[str, Any]]) -> None:
    shown = engram("search", "takes", "the", "parser", "--context", CONTEXT, "--url", served.url)
    lines = shown.stdout.splitlines()
    assert len(lines) == 3
    (taken,) = [line for line in lines if " ann " in line]
    seq, date = posted[0]["seq"], posted[0]["ts"][:10]
    assert re.search(rf"^ +\d +-?\d\.\d+ +{seq} {date} \d\d:\d\d:\d\d \S+ +ann +● task.taken +I take the parser", taken)
    assert shown.stderr == f"engram: 3 of 3 units, as of seq {found(served, 'x')['applied_seq']}\n"


def test_json_is_the_page_with_its_units(served: BusProcess, posted: list[dict[str, Any]]) -> None:
    page = found(served, "parser", "--context", CONTEXT, "--facets", "--explain", "-n", "2")
    assert [hit["unit"] for hit in page["results"]] == [
        next(unit for unit in posted if unit["seq"] == hit["seq"]) for hit in page["results"]
    ]
    assert (len(page["results"]), page["total"], page["facets"]["agent"]) == (2, 3, {"ann": 1, "bob": 2})
    assert {"unit_id", "score", "tokens", "keyword", "vector", "highlights", "explain"} <= page["results"][0].keys()
    rest = found(served, "parser", "--context", CONTEXT, "--page", page["next_page"])
    assert {hit["seq"] for hit in [*page["results"], *rest["results"]]} == {unit["seq"] for unit in posted}


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        (["--agent", "bob"], [1, 2]),
        (["--agent", "ann", "--agent", "eve"], [0]),
        (["--type", "task-status", "--type", "error"], [0, 1]),
        (["--kind", "task.*"], [0]),
        (["--resource", "src/*"], [2]),
        (["--meta", "run=7"], [1]),
        (["--related-to", "00000000-0000-7000-8000-000000000000"], []),
        (["--after", "{seq}"], [1, 2]),
        (["--before", "{seq}"], []),
        (["--as-of", "{seq}"], [0]),
        (["--min-seq", "{seq}"], [0, 1, 2]),
        (["--after", "2001-01-01", "--before", "{ts}"], []),
        (["--after", "{ts}"], [1, 2]),
        (["--after", "2999-01-01T00:00:00+02:00"], []),
    ],
    ids=lambda value: " ".join(value) if value and isinstance(value[0], str) else None,
)
def test_filters(served: BusProcess, posted: list[dict[str, Any]], filters: list[str], wanted: list[int]) -> None:
    filled = [word.format(**posted[0]) for word in filters]
    page = found(served, "parser", "--context", CONTEXT, *filled)
    assert {hit["seq"] for hit in page["results"]} == {posted[index]["seq"] for index in wanted}


def test_what_was_meant_is_found_without_its_words(served: BusProcess, context: str) -> None:
    engram("post", context, "the automobile broke down", "--url", served.url)
    assert found(served, "a car with engine trouble", "--context", context, "--mode", "semantic")["results"]
    assert not found(served, "a car with engine trouble", "--context", context, "--mode", "keyword")["results"]


def test_people_see_counts_reasons_and_where_to_go_on(served: BusProcess, posted: list[dict[str, Any]]) -> None:
    asked = ["search", "parser", "--context", CONTEXT, "-n", "2", "--facets", "--explain", "--url", served.url]
    shown = engram(*asked)
    assert len(re.findall(r"\[words #\d \(\d+\.\d\d\) gives -?\d\.\d{3}, meaning #", shown.stdout)) == 2
    assert re.search(r"^agent    bob 2, ann 1$", shown.stdout, re.MULTILINE)
    more = re.search(r"2 of 3 units, as of seq \d+; go on with --page (\S+)\n$", shown.stderr)
    assert more is not None
    (last,) = engram(
        "search", "parser", "--context", CONTEXT, "--page", more[1], "--url", served.url
    ).stdout.splitlines()
    assert last.startswith("  3 ")


def test_the_ranking_can_be_told_how_it_is_made(served: BusProcess, posted: list[dict[str, Any]], context: str) -> None:
    made = ["--fusion", "rrf", "--rank-constant", "1", "--vector-weight", "0.25", "--half-life", "3600"]
    more = ["--recency-weight", "2", "--neighbour-weight", "0.5", "--explain"]
    for hit in found(served, "parser", "--context", CONTEXT, *made, *more)["results"]:
        assert hit["explain"]["vector_part"] == pytest.approx(0.25 / (1 + hit["vector"]["rank"]))
        assert 0.9 < hit["explain"]["recency_part"] <= 1
        assert hit["explain"]["neighbour_part"] > 0
    for agent in ("ann", "bob", "eve"):
        engram("post", context, "the same is said", "--agent", agent, "--url", served.url)
    shown = engram("search", "said", "--context", context, "--distinct", "--explain", *made, "--url", served.url)
    assert re.search(r"recency gives 0\.\d{3}\] the same is said \(and 2 alike\)$", shown.stdout)


def test_in_a_terminal_the_words_stand_out(served: BusProcess, posted: list[dict[str, Any]]) -> None:
    ours, theirs = pty.openpty()
    variables = {name: value for name, value in environment(TERM="xterm-256color").items() if name != "NO_COLOR"}
    command = [*ENGRAM, "search", "parser", "--context", CONTEXT, "--url", served.url]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=variables) as process:
        os.close(theirs)
        shown = _all_of(ours)
        assert process.wait(20) == 0
    assert shown.count("\x1b[1;33mparser\x1b[0m") == 3
    assert "\x1b[31m" not in shown


def _all_of(terminal: int) -> str:
    said = b""
    with contextlib.suppress(OSError):  # the other side has closed it
        while part := os.read(terminal, 4_096):
            said += part
    os.close(terminal)
    return said.decode()


def test_a_budget_is_filled_in_order_of_rank(served: BusProcess, context: str) -> None:
    for payload in ("parser parser", "parser " * 400, "a parser among many other words"):
        engram("post", context, payload, "--url", served.url)
    asked = ["parser", "--context", context, "--mode", "keyword"]
    ranking = [(hit["seq"], hit["tokens"]) for hit in found(served, *asked)["results"]]
    filled = [hit["seq"] for hit in found(served, *asked, "--max-tokens", "20")["results"]]
    assert len(ranking) == 3
    assert filled == [seq for seq, tokens in ranking if tokens <= 20]
    assert found(served, *asked, "--max-tokens", "0")["results"] == []


@pytest.mark.parametrize(
    ("query", "is_found"),
    [
        ('"parsers of the comment"', True),
        ('"the parser"', True),
        ('"parser in a comment"', True),
        ('"parser comments"', False),
        ('"comments parser"', False),
        ('"drop a line"', False),
    ],
)
def test_words_in_quotes_stand_in_their_order_by_their_stems(
    served: BusProcess, context: str, query: str, is_found: bool
) -> None:
    engram("post", context, "the parser of the comments drops lines", "--url", served.url)
    assert bool(found(served, query, "--context", context)["results"]) is is_found


def test_nothing_found_is_no_failure(served: BusProcess, context: str) -> None:
    shown = engram("search", "zyzzyva", "--context", context, "--url", served.url)
    assert (shown.returncode, shown.stdout) == (0, "")
    assert "nothing found among 0 units" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--after", "yesterday"], 2, "--after 'yesterday' is not a seq, nor a time like 2026-01-31T12:00:00Z"),
        (["--meta", "novalue"], 2, "--meta 'novalue' is not KEY=VALUE"),
        (["--type", "task-status", "--type", "poem"], 2, "--type 'poem' is none of unknown, message, "),
        (["--page", "2"], 2, "page '2' is not one a search gave (field page)"),
        (["x" * 9_000], 2, "at most 8192 (field query)"),
        (["--min-seq", "9000000000"], 1, "not at 9000000000 (field min_seq)"),
        (["--max-tokens", str(2**64)], 2, "(field max_tokens)"),
    ],
)
def test_a_search_that_cannot_be_names_what_is_wrong(
    served: BusProcess, arguments: list[str], code: int, told: str
) -> None:
    refused = engram("search", "parser", *arguments, "--url", served.url)
    assert (refused.returncode, refused.stdout) == (code, "")
    assert told in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--mode", "psychic"],
        ["--limit", "0"],
        ["--limit", "201"],
        ["--as-of", "-1"],
        ["--max-tokens", "-1"],
        ["--min-seq", "-1"],
    ],
)
def test_what_no_option_takes_is_told_before_anyone_is_asked(arguments: list[str]) -> None:
    assert engram_here("search", "parser", *arguments, "--url", "http://127.0.0.1:1").exit_code == 2


def test_what_is_no_text_is_looked_for_all_the_same(served: BusProcess) -> None:
    ended = subprocess.run(
        [*ENGRAM, "search", b"\xff\xfe", "--url", served.url], capture_output=True, env=environment(), timeout=60
    )
    assert ended.returncode == 0
    assert b"Traceback" not in ended.stderr


def test_the_index_is_built_again_and_waited_for(served: BusProcess, posted: list[dict[str, Any]]) -> None:
    before = found(served, "parser", "--context", CONTEXT)
    generation = httpx.get(f"{served.url}/status").json()["search"]["generation"]
    ended = engram("rebuild", "--url", served.url)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "the search index was built again\n")
    assert httpx.get(f"{served.url}/status").json()["search"]["generation"] == generation + 1
    assert found(served, "parser", "--context", CONTEXT)["results"] == before["results"]
    ended = engram("rebuild", "--no-wait", "--url", served.url)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "engram status says how far" in ended.stderr
