"""`kill -9` of a bus that indexes, of what indexes for it, or of both: what is found afterwards is what a fresh index
finds, and what is on the disk holds each unit up to its cursor once."""

import fcntl
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from engram_bus.cli.replay.recording import parse
from engram_bus.projections.search.commits import read_commit
from engram_bus.projections.search.embedders import StaticEmbedder
from engram_bus.projections.search.engine import SearchIndex
from engram_bus.projections.search.keywords import VERSION
from engram_bus.units import WorkUnit
from engram_client import Client, Draft, SyncClient
from tests.disk import tenant
from tests.process import BusProcess
from tests.replays import ENTIRE, FLEET, Recorded, not_shipped

pytestmark = pytest.mark.anyio

SECONDS_MAX = 120


PAGES = 3


class Answer(NamedTuple):
    """What of the first pages of an answer has to be the same."""

    ids: list[str]
    scores: list[float]
    total: int
    applied_seq: int
    facets: Any
    next_pages: list[str | None]


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
            asked.append({"query": query, "mode": mode, "limit": 20, "facets": True, **filters})
    return asked


def answers(url: str, asked: Sequence[dict[str, Any]]) -> list[Answer]:
    with httpx.Client(base_url=url, timeout=60, verify=False) as http:
        return [answer(http, one) for one in asked]


def answer(http: httpx.Client, asked: dict[str, Any]) -> Answer:
    pages: list[dict[str, Any]] = []
    while len(pages) < PAGES and (not pages or pages[-1]["next_page"]):
        response = http.post("/search", json=asked | ({"page": pages[-1]["next_page"]} if pages else {}))
        assert response.status_code == 200, response.text
        pages.append(response.json())
    hits = [hit for page in pages for hit in page["results"]]
    return Answer(
        [hit["unit_id"] for hit in hits],
        [round(hit["score"], 3) for hit in hits],
        pages[0]["total"],
        pages[0]["applied_seq"],
        pages[0]["facets"],
        [page["next_page"] for page in pages],
    )


def status(url: str) -> dict[str, Any]:
    told: dict[str, Any] = httpx.get(f"{url}/status", timeout=60, verify=False).json()
    return told


def caught_up(bus: BusProcess) -> None:
    """Return when the index has all of the log, and has committed it."""
    until(lambda: status(bus.url)["search"]["taken_seq"] == status(bus.url)["head"])
    until(lambda: committed_seq(bus) == status(bus.url)["head"])


def committed_seq(bus: BusProcess) -> int:
    """Up to where an index on the disk goes."""
    commits = [read_commit(path) for path in (tenant(bus.data_dir) / "search").glob(f"{VERSION}-*")]
    return max((commit.cursor for commit in commits if commit is not None), default=0)


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not is_so():
        assert time.monotonic() < deadline, "it never was"
        time.sleep(0.01)


class Killed(NamedTuple):
    """One kill, and what was found on the disk after it: units there, and of them those that were indexed."""

    what: str
    head: int
    indexed: int | None


async def fill(bus: BusProcess, recorded: Recorded, kills: int, dice: random.Random) -> list[Killed]:
    """Append all of a recording, in bulks; between them, or in them, something is killed."""
    drafts = [step.draft for step in parse(recorded.file.read_bytes(), run="run").steps]
    moments = sorted(dice.choices(range(len(drafts)), k=kills))
    victims = (["the bus", "what indexes", "both"] * kills)[:kills]
    dice.shuffle(victims)
    killings = []
    for first in range(0, len(drafts), 40):
        async with Client(bus.url, agent_id="player") as client:
            await client.append_bulk(drafts[first : first + 40])
        while moments and moments[0] < first + 40:
            moments.pop(0)
            if dice.random() < 0.7:
                # It is started, and takes in, commits and merges; else it is most often only about to be.
                until(lambda: status(bus.url)["search"]["taken_seq"] > 0)
            time.sleep(dice.uniform(0, dice.choice([0.3, 1])))
            killings.append(kill(bus, victims.pop()))
    return killings


def kill(bus: BusProcess, what: str) -> Killed:
    """After a kill of the bus, its index is looked at, and the bus started again."""
    head = status(bus.url)["head"]
    indexing = children_of(bus)  # Most often one; none, while it is being started again.
    if what == "what indexes":
        killed(indexing)
        return Killed(what, head, None)
    if what == "both":
        killed(indexing)
    bus.kill()
    until(lambda: not any(is_alive(pid) for pid in indexing))
    indexed = indexed_in(bus.data_dir, head)
    bus.start()
    return Killed(what, head, indexed)


def killed(pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def indexed_in(data_dir: Path, head: int) -> int:
    """How many units an index holds that nobody has open: each once, up to its cursor."""
    path = tenant(data_dir) / "search"
    if not path.exists():
        return 0
    with (path / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # One that was started a moment ago may still be about to end.
        opened = [SearchIndex(one, StaticEmbedder(), NO_LOG) for one in path.iterdir() if (one / "columns").exists()]
        for index in opened:
            assert index.cursor <= head
            assert index._columns.seqs_of(np.arange(index._columns.count)) == list(range(1, index.cursor + 1))
            index.close()
    return sum(index.cursor for index in opened)


class NoLog:
    """An index that is only looked at reads no log."""

    def unit(self, seq: int) -> WorkUnit:
        raise AssertionError(seq)

    def chain(self, seq: int) -> bytes:
        raise AssertionError(seq)

    def before(self, unit: WorkUnit, count: int) -> Sequence[WorkUnit]:
        raise AssertionError(unit)


NO_LOG = NoLog()


async def indexing_under_kills(data_dir: Path, recorded: Recorded, kills: int, asking: int) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    asked = queries(recorded, asking, dice)
    count = len(recorded.rows)
    with BusProcess(data_dir, "--search") as bus:
        killings = await fill(bus, recorded, kills, dice)
        print(*killings, sep="\n")
        caught_up(bus)
        after_kills = answers(bus.url, asked)
        assert bus.stop() == 0
    assert indexed_in(data_dir, count) == count
    assert all(answer.applied_seq == count for answer in after_kills)
    assert all(len(set(answer.ids)) == len(answer.ids) for answer in after_kills)
    whole = {"query": "", "facets": True}
    shutil.rmtree(tenant(data_dir) / "search")
    with BusProcess(data_dir, "--search") as bus:
        caught_up(bus)
        afresh = answers(bus.url, asked)
        assert [answer.total for answer in answers(bus.url, [whole])] == [count]
    different = [(one, was, new) for one, was, new in zip(asked, after_kills, afresh, strict=True) if was != new]
    assert not different, f"{len(different)} of {asking}: {different[:2]}"
    behind = sum(one.indexed is not None and one.indexed < one.head for one in killings)
    print(f"{kills} kills; after {behind} of them the disk held units that the index on it did not")
    print(f"{asking} queries, {sum(len(one.ids) for one in after_kills)} hits: the same as in a fresh index")


async def test_three_kills(tmp_path: Path) -> None:
    await indexing_under_kills(tmp_path, FLEET, kills=3, asking=40)


@pytest.mark.long
@pytest.mark.timeout(1_800)
@not_shipped
async def test_thirty_kills(tmp_path: Path) -> None:
    await indexing_under_kills(tmp_path, ENTIRE, kills=30, asking=200)


def children_of(bus: BusProcess) -> list[int]:
    assert bus._process is not None
    pid = bus._process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def search_process_of(bus: BusProcess) -> int:
    until(lambda: bool(children_of(bus)))
    (pid,) = children_of(bus)
    return pid


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


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


def truncate_all(search: Path) -> None:
    for file in search.rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("lost", [shutil.rmtree, truncate_all])
def test_an_index_lost_while_the_bus_was_away_is_built_again_and_says_how_far_it_is(
    tmp_path: Path, lost: Callable[[Path], None]
) -> None:
    with BusProcess(tmp_path, "--search") as bus, SyncClient(bus.url, agent_id="ann") as client:
        for first in range(0, 6_000, 1_000):
            client.append_bulk([Draft("plan", f"thing{first + number} happened") for number in range(1_000)])
        caught_up(bus)
        bus.stop()
        lost(tenant(tmp_path) / "search")
        bus.start()
        response = httpx.post(f"{bus.url}/search", json={"query": "thing5999"}, timeout=60, verify=False)
        problem = response.json()
        assert (response.status_code, problem["code"], problem["retryable"]) == (503, "SEARCH_BUILDING", True)
        assert problem["taken_seq"] < problem["head"] == status(bus.url)["head"] == 6_000
        far = [0]

        def has_all() -> bool:
            far.append(status(bus.url)["search"]["taken_seq"])
            return far[-1] == 6_000

        until(has_all)
        assert far == sorted(far)
        assert seqs_found(bus.url, "thing5999") == [6_000]


def test_an_index_deleted_under_a_bus_that_runs_is_built_again_when_more_is_said(tmp_path: Path) -> None:
    with BusProcess(tmp_path, "--search") as bus, SyncClient(bus.url, agent_id="ann") as client:
        client.append("plan", "hello")
        first = client.append("plan", "thing1 happened")
        caught_up(bus)
        until(lambda: removed(tenant(tmp_path) / "search"))
        assert seqs_found(bus.url, "thing1") == [first.seq]
        second = client.append("plan", "thing2 happened")
        until(lambda: any((tenant(tmp_path) / "search").rglob("meta.json")))
        assert seqs_found(bus.url, "thing1") == [first.seq]
        assert seqs_found(bus.url, "thing2") == [second.seq]


def removed(path: Path) -> bool:
    """What goes away meanwhile by itself, as after a commit, does not matter."""
    shutil.rmtree(path, ignore_errors=True)
    return not path.exists()


def seqs_found(url: str, query: str) -> list[int]:
    """The best unit, once search answers; until then it says why it does not."""
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        response = httpx.post(f"{url}/search", json={"query": query, "limit": 1}, timeout=60, verify=False)
        if response.status_code == 200:
            return [hit["seq"] for hit in response.json()["results"]]
        assert (response.status_code, response.json()["code"]) in (
            (503, "SEARCH_UNAVAILABLE"),
            (503, "SEARCH_BUILDING"),
        )
        time.sleep(0.02)
    raise AssertionError("search did not come back")
