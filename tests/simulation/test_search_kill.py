"""`kill -9` of a bus that indexes: what is found afterwards is what a fresh index finds, nothing lost or doubled."""

import asyncio
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from engram_bus.cli.replay.recording import parse
from engram_bus.embedded import Bus
from engram_bus.projections.search.searcher import Searcher
from engram_client import Client, SyncClient
from tests.disk import tenant
from tests.process import BusProcess
from tests.replays import ENTIRE, FLEET, Recorded, not_shipped

pytestmark = pytest.mark.anyio

SECONDS_MAX = 120


class Answer(NamedTuple):
    """What of an answer has to be the same."""

    ids: list[str]
    scores: list[float]
    total: int
    applied_seq: int
    facets: Any


def queries(recorded: Recorded, count: int, dice: random.Random) -> list[dict[str, Any]]:
    """Pieces of what was said, asked in all modes, with and without filters."""
    texts = [str(row.get("text", "")) for row in recorded.rows]
    asked = []
    while len(asked) < count:
        words = dice.choice(texts).split()
        if words:
            at = dice.randrange(len(words))
            query = " ".join(words[at : at + dice.randrange(1, 9)])[:300]
            filters = dice.choice(
                [{}, {}, {"type": ["TOOL_CALL", "MESSAGE"]}, {"after_seq": dice.randrange(len(texts))}]
            )
            mode = dice.choice(["hybrid", "keyword", "semantic"])
            asked.append({"query": query, "mode": mode, "limit": 50, "facets": True, **filters})
    return asked


def answers(url: str, asked: Sequence[dict[str, Any]]) -> list[Answer]:
    with httpx.Client(base_url=url, timeout=60, verify=False) as http:
        given = []
        for one in asked:
            response = http.post("/search", json=one)
            assert response.status_code == 200, response.text
            said = response.json()
            ids = [hit["unit_id"] for hit in said["results"]]
            scores = [round(hit["score"], 3) for hit in said["results"]]
            given.append(Answer(ids, scores, said["total"], said["applied_seq"], said["facets"]))
        return given


def status(url: str) -> dict[str, Any]:
    told: dict[str, Any] = httpx.get(f"{url}/status", timeout=60, verify=False).json()
    return told


def caught_up(url: str) -> None:
    """Return when the index has all of the log, and has committed it."""
    until(lambda: status(url)["search"]["taken_seq"] == status(url)["head"])
    until(lambda: _committed(url))


def _committed(url: str) -> bool:
    """A page's name holds the seq up to where it looked, and the one whose statistics it used: what is committed."""
    page = httpx.post(f"{url}/search", json={"query": "agent", "limit": 1}, timeout=60, verify=False).json()
    seq, statistics_seq, _ = page["next_page"].split(".")
    return bool(seq == statistics_seq)


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not is_so():
        assert time.monotonic() < deadline, "it never was"
        time.sleep(0.01)


async def fill(bus: BusProcess, recorded: Recorded, kills: int, dice: random.Random) -> int:
    """Append all of a recording, in bulks; between them, or in them, the bus is killed."""
    steps = parse(recorded.file.read_bytes(), run="run").steps
    drafts = [step.draft for step in steps]
    moments = sorted(dice.choices(range(len(drafts)), k=kills))
    for first in range(0, len(drafts), 40):
        async with Client(bus.url, agent_id="player") as client:
            await client.append_bulk(drafts[first : first + 40])
        while moments and moments[0] < first + 40:
            moments.pop(0)
            # While it starts, takes in, commits, merges, or has nothing to do.
            time.sleep(dice.choice([0, dice.uniform(0, 0.1), dice.uniform(0.3, 1.5)]))
            bus.kill()
            bus.start()
    return len(drafts)


async def indexing_under_kills(data_dir: Path, recorded: Recorded, kills: int, asking: int) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    asked = queries(recorded, asking, dice)
    with BusProcess(data_dir, "--search") as bus:
        count = await fill(bus, recorded, kills, dice)
        caught_up(bus.url)
        after_kills = answers(bus.url, asked)
        assert bus.stop() == 0
    assert all(answer.applied_seq == count for answer in after_kills)
    assert all(len(set(answer.ids)) == len(answer.ids) for answer in after_kills)
    whole = {"query": "", "facets": True}
    shutil.rmtree(tenant(data_dir) / "search")
    with BusProcess(data_dir, "--search") as bus:
        caught_up(bus.url)
        afresh = answers(bus.url, asked)
        assert [answer.total for answer in answers(bus.url, [whole])] == [count]
    different = [(one, was, new) for one, was, new in zip(asked, after_kills, afresh, strict=True) if was != new]
    assert not different, f"{len(different)} of {asking}: {different[:2]}"


async def test_three_kills(tmp_path: Path) -> None:
    await indexing_under_kills(tmp_path, FLEET, kills=3, asking=40)


@pytest.mark.long
@pytest.mark.timeout(1_800)
@not_shipped
async def test_thirty_kills(tmp_path: Path) -> None:
    await indexing_under_kills(tmp_path, ENTIRE, kills=30, asking=200)


def search_process_of(bus: BusProcess) -> int:
    assert bus._process is not None
    children = Path(f"/proc/{bus._process.pid}/task/{bus._process.pid}/children")
    until(lambda: bool(children.read_text().split()))
    (pid,) = children.read_text().split()
    return int(pid)


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_who_killed_the_bus_killed_its_search_process(tmp_path: Path) -> None:
    with BusProcess(tmp_path, "--search") as bus:
        for _ in range(3):
            with SyncClient(bus.url, agent_id="ann") as client:
                client.append("plan", "hello")
                client.search("hello")
            pid = search_process_of(bus)
            bus.kill()
            until(lambda pid=pid: not is_alive(pid))  # type: ignore[misc]
            bus.start()


def test_a_search_process_killed_again_and_again_is_back_each_time(tmp_path: Path) -> None:
    with BusProcess(tmp_path, "--search") as bus, SyncClient(bus.url, agent_id="ann") as client:
        for number in range(3):
            receipt = client.append("plan", f"thing{number} happened")
            os.kill(search_process_of(bus), signal.SIGKILL)
            assert seqs_found(bus.url, f"thing{number}") == [receipt.seq]


def seqs_found(url: str, query: str) -> list[int]:
    """The best unit, once search answers; until then it says why it does not."""
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        response = httpx.post(f"{url}/search", json={"query": query, "limit": 1}, timeout=60, verify=False)
        if response.status_code == 200:
            return [hit["seq"] for hit in response.json()["results"]]
        assert (response.status_code, response.json()["code"]) == (503, "SEARCH_UNAVAILABLE")
        time.sleep(0.02)
    raise AssertionError("search did not come back")


async def longest_stall(bus: Bus, units: int, *, searching: bool) -> tuple[float, float]:
    """The longest time the loop did not turn, and how long it all took, while units come in (and are searched)."""
    stalls = [0.0]

    async def watch() -> None:
        before = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            stalls.append(now - before)
            before = now

    async def search() -> None:
        while True:
            await bus.search(f"unit {len(stalls)} parser fails", limit=20)

    tasks = [asyncio.ensure_future(watch())]
    if searching:
        tasks += [asyncio.ensure_future(search()) for _ in range(4)]
    began = time.perf_counter()
    for number in range(units):
        await bus.append(f"c{number % 9}", f"unit {number} the parser fails with E0{number}", agent_id="ann")
    seconds = time.perf_counter() - began
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return max(stalls), seconds


async def test_indexing_and_searching_do_not_hold_up_the_loop(tmp_path: Path) -> None:
    async with Bus.open(tmp_path / "off") as bus:
        off, off_seconds = await longest_stall(bus, 1_000, searching=False)
    async with Bus.open(tmp_path / "on") as bus:
        searcher = bus.start_search()
        assert isinstance(searcher, Searcher)
        await bus.search("until it is there")
        on, on_seconds = await longest_stall(bus, 1_000, searching=True)
    print(f"longest stall of the loop: {1e3 * off:.1f} ms without, {1e3 * on:.1f} ms with search")
    print(f"1,000 appends: {off_seconds:.2f} s without, {on_seconds:.2f} s with search")
    assert on < off + 0.25, "an index of its own would take the loop for as long as a commit of it does"
