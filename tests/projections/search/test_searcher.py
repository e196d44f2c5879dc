"""The search process can lag, die, be stopped and find its files broken; the bus goes on, and search comes back."""

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from engram_bus.api.health import search_status
from engram_bus.embedded import Bus
from engram_bus.errors import Busy, InternalError, SearchBuilding, SearchUnavailable, ShuttingDown, StorageFull
from engram_bus.log.lmdb import LmdbLog
from engram_bus.projections.runner import BEHIND_UNITS
from engram_bus.projections.search import process
from engram_bus.projections.search import searcher as searching
from engram_bus.projections.search.embedders import StaticEmbedder
from engram_bus.projections.search.messages import Answered, Ask, Behind, Failed
from engram_bus.projections.search.requests import SearchIn, SearchOut
from engram_bus.projections.search.searcher import Searcher
from engram_bus.projections.search.values import Asked, Found
from engram_bus.units import Draft, UnitType
from tests.disk import Disk, small_disk, tampering, tenant

pytestmark = pytest.mark.anyio

SECONDS_MAX = 60


def draft(number: int, text: str = "") -> Draft:
    words = Random(number).choices(("parser", "lock", "disk", "agent", "fails", "waits"), k=6)
    payload = f"{text} unit{number} {' '.join(words)}".encode()
    return Draft(context_id=f"c{number % 7}", agent_id="ann", type=UnitType.MESSAGE, payload=payload)


async def append(bus: Bus, count: int) -> None:
    for first in range(0, count, 500):
        await bus.append_bulk([draft(bus.head + 1 + number) for number in range(min(500, count - first))])


async def found(bus: Bus, query: str) -> SearchOut:
    """What is found as soon as search answers."""
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            try:
                return await bus.search(query, limit=5)
            except (SearchBuilding, SearchUnavailable):
                await asyncio.sleep(0.02)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not is_so():
            await asyncio.sleep(0.005)


def process_of(bus: Bus) -> Searcher:
    searcher = bus.start_search()
    assert isinstance(searcher, Searcher)
    return searcher


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@asynccontextmanager
async def caught_up(path: Path) -> AsyncIterator[Bus]:
    async with Bus.open(path) as bus:
        searcher = process_of(bus)
        await found(bus, "parser")
        await until(lambda: searcher.state.cursor == bus.head)
        yield bus


async def indexed(path: Path, count: int) -> list[int]:
    """A data directory with so many units, all indexed; some of them as they are found."""
    async with Bus.open(path) as bus:
        await append(bus, count)
    async with caught_up(path) as bus:
        return [hit.seq for hit in (await bus.search("parser fails")).results]


async def test_what_is_acknowledged_is_found_at_once(tmp_path: Path) -> None:
    async with Bus.open(tmp_path) as bus:
        for number in range(50):
            unit = await bus.append("plan", f"thing{number} happened", agent_id="ann")
            out = await bus.search(f"thing{number}", limit=1)
            assert [hit.seq for hit in out.results] == [unit.seq]
            assert out.applied_seq == unit.seq


@pytest.mark.parametrize("stale", [False, True])
async def test_so_is_what_is_too_large_for_the_logs_segment(tmp_path: Path, stale: bool) -> None:
    async with caught_up(tmp_path) as bus:
        for number in range(5):
            unit = await bus.append("plan", f"thing{number} " + "x" * (2**20 - 100), agent_id="ann")
            asked = SearchIn(query=f"thing{number}", limit=1, min_seq=unit.seq, stale=stale)
            assert [hit.seq for hit in (await bus.execute_search(asked)).results] == [unit.seq]


async def test_what_cannot_be_taken_over_is_not_left_out_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageFull("no room")

    async with caught_up(tmp_path) as bus:
        await append(bus, 3)
        assert (await bus.search("parser")).applied_seq == 3
        searcher = process_of(bus)
        await until(lambda: searcher.state.taken == 3)
        with monkeypatch.context() as patched:
            patched.setattr(LmdbLog, "_store", full)
            await append(bus, 2)
            with pytest.raises(SearchBuilding, match="search can read the log up to 3 of 5: no room") as refused:
                await bus.search("parser")
            assert refused.value.details == {"taken_seq": 3, "head": 5}
            assert (await bus.search("parser", stale=True)).applied_seq == 3
            assert (await bus.search("parser", as_of_seq=3)).applied_seq == 3
        assert (await bus.search("parser")).applied_seq == 5


async def test_a_killed_process_comes_back_and_the_bus_does_not_notice(tmp_path: Path) -> None:
    await indexed(tmp_path, 300)
    async with caught_up(tmp_path) as bus:
        searcher = process_of(bus)
        for _ in range(3):
            pid = searcher.pid
            assert pid is not None
            waiting = [asyncio.ensure_future(bus.search("parser")) for _ in range(20)]
            await asyncio.sleep(0)
            os.kill(pid, signal.SIGKILL)
            unit = await bus.append("plan", f"while {pid} is away", agent_id="ann")
            for outcome in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(outcome, SearchOut | SearchUnavailable), outcome
            assert (await found(bus, f'"{pid} is away"')).results[0].seq == unit.seq
            assert searcher.pid != pid


async def test_a_search_nobody_waits_for_any_more_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await indexed(tmp_path, 100)
    async with caught_up(tmp_path) as bus:
        with monkeypatch.context() as hurried:
            hurried.setattr(searching, "SEARCH_ANSWER_SECONDS_MAX", 0.0)
            for outcome in await asyncio.gather(*(bus.search("parser") for _ in range(50)), return_exceptions=True):
                assert isinstance(outcome, SearchUnavailable), outcome
        assert len((await bus.search("parser")).results) == 10


async def test_a_process_that_dies_at_once_is_started_ever_more_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(searching, "RESTART_SECONDS", 0.01)
    real, failures = subprocess.Popen, iter(range(4))

    def popen(*arguments: object, **more: object) -> object:
        if next(failures, None) is not None:
            raise OSError("no memory")
        return real(*arguments, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", popen)
    async with Bus.open(tmp_path) as bus:
        with pytest.raises(SearchUnavailable):
            await bus.search("hello")
        unit = await bus.append("plan", "hello", agent_id="ann")
        assert (await found(bus, "hello")).results[0].seq == unit.seq
    assert [float(one.getMessage().split()[-2]) for one in caplog.records] == [0.01, 0.02, 0.04, 0.08]


async def test_a_log_that_is_far_ahead_is_told_with_progress(tmp_path: Path) -> None:
    async with Bus.open(tmp_path) as bus:
        await append(bus, 3 * BEHIND_UNITS)
    async with Bus.open(tmp_path) as bus:
        with pytest.raises(SearchBuilding) as refused:
            await bus.search("parser")
        assert refused.value.details["head"] == 3 * BEHIND_UNITS
        assert 0 <= refused.value.details["taken_seq"] < 2 * BEHIND_UNITS
        assert (await found(bus, "unit17")).applied_seq == 3 * BEHIND_UNITS


async def test_a_log_that_is_far_ahead_keeps_nobody_who_takes_what_there_is(tmp_path: Path) -> None:
    await indexed(tmp_path, 400)
    async with caught_up(tmp_path) as bus:
        async with frozen(bus):
            await append(bus, 2 * BEHIND_UNITS)
            fresh = asyncio.ensure_future(bus.search("unit17", limit=1))
            stale = asyncio.ensure_future(bus.search("unit17", limit=1, stale=True))
            before = asyncio.ensure_future(bus.search("unit17", limit=1, as_of_seq=300))
            needy = asyncio.ensure_future(bus.execute_search(SearchIn(query="unit500", min_seq=500, stale=True)))
            impatient = asyncio.ensure_future(bus.execute_search(SearchIn(query="x", min_seq=bus.head, stale=True)))
            await until(lambda: len(process_of(bus)._asked) == 5)
        with pytest.raises(SearchBuilding, match="stale"):
            await fresh
        assert [hit.seq for hit in (await stale).results] == [17]
        assert 400 <= (await stale).applied_seq < bus.head
        assert (await before).applied_seq == 300
        assert [hit.seq for hit in (await needy).results][:1] == [500]
        assert 500 <= (await needy).applied_seq < bus.head
        with pytest.raises(SearchBuilding) as refused:
            await impatient
        assert "stale" not in refused.value.message


async def test_a_page_of_a_stale_search_goes_on_in_the_same_ranking(tmp_path: Path) -> None:
    await indexed(tmp_path, 400)
    async with caught_up(tmp_path) as bus:
        every = await bus.search("parser fails", limit=20, as_of_seq=400)
        async with frozen(bus):
            await append(bus, 2 * BEHIND_UNITS)
            first = asyncio.ensure_future(bus.search("parser fails", limit=10, as_of_seq=400, stale=True))
            await until(lambda: len(process_of(bus)._asked) == 1)
        page = (await first).next_page
        second = await bus.search("parser fails", limit=10, page=page, stale=True)
        assert [hit.seq for hit in ((await first).results + second.results)] == [hit.seq for hit in every.results]


def truncate(search: Path) -> None:
    for file in search.rglob("*"):
        if file.is_file() and file.stat().st_size > 200:
            os.truncate(file, file.stat().st_size // 2)


def flip(search: Path) -> None:
    file = max((one for one in search.rglob("*.idx")), key=lambda one: one.stat().st_size)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 16
    file.write_bytes(raw)


def flip_a_vector(search: Path) -> None:
    (file,) = search.rglob("rows")
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def empty(search: Path) -> None:
    for file in search.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


def garble_the_commit(search: Path) -> None:
    (file,) = search.rglob("commit")
    file.write_text("{}")


DAMAGES = [truncate, flip, flip_a_vector, empty, garble_the_commit]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_index_is_built_again_by_itself(
    tmp_path: Path, damage: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    expected = await indexed(tmp_path, 400)
    damage(tenant(tmp_path) / "search")
    async with caught_up(tmp_path) as bus:
        assert [hit.seq for hit in (await bus.search("parser fails")).results] == expected
    assert capfd.readouterr().err.count("is built again") == 1


@pytest.mark.parametrize("damage", DAMAGES)
async def test_an_index_that_is_damaged_under_its_process_is_built_again_when_the_bus_starts(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    expected = await indexed(tmp_path, 400)
    async with caught_up(tmp_path) as bus:
        damage(tenant(tmp_path) / "search")
        (outcome,) = await asyncio.gather(bus.search("parser fails"), return_exceptions=True)
        assert isinstance(outcome, SearchOut | SearchBuilding | SearchUnavailable | InternalError), outcome
    async with caught_up(tmp_path) as bus:
        assert [hit.seq for hit in (await bus.search("parser fails")).results] == expected


@pytest.mark.parametrize("sort", ["*.term", "rows"])
async def test_a_whole_file_of_another_index_is_known(
    tmp_path: Path, sort: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each file has a checksum of its own, and so has the one that takes its place."""
    expected = await indexed(tmp_path / "one", 400)
    async with Bus.open(tmp_path / "other") as bus:
        await bus.append_bulk([draft(number) for number in range(1_001, 1_401)])
    async with caught_up(tmp_path / "other"):
        pass
    theirs = next((tenant(tmp_path / "other") / "search").rglob(sort))
    for ours in (tenant(tmp_path / "one") / "search").rglob(sort):
        ours.write_bytes(theirs.read_bytes())
    async with caught_up(tmp_path / "one") as bus:
        assert [hit.seq for hit in (await bus.search("parser fails")).results] == expected
    assert capfd.readouterr().err.count("is built again") == 1


class PanicException(BaseException):
    """As tantivy raises where something is as it cannot be: no Exception."""


@pytest.mark.parametrize("is_damaged", [False, True])
async def test_a_search_that_panics_has_the_index_built_again_if_it_is_damaged(
    tmp_path: Path, is_damaged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    expected = await indexed(tmp_path, 400)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        search = process._Search(tenant(tmp_path), tenant(tmp_path) / "search", theirs, StaticEmbedder())
        ask = Ask(1, 400, Asked(query="parser fails"), time.monotonic() + SECONDS_MAX)
        damaged = search._runner.projection

        def panics(*_: object, **__: object) -> Found:
            raise PanicException("index out of bounds")

        damaged.search = panics  # type: ignore[method-assign]
        if is_damaged:
            flip(tenant(tmp_path) / "search")
        said = search._answer(ask)
        if not is_damaged:
            assert said == Failed(1, "PanicException: index out of bounds")
            damaged.close()
            return
        assert said == Behind(1, 0)
        answered = search._answer(ask)
        assert isinstance(answered, Answered)
        assert [hit.seq for hit in answered.found.hits] == expected
        assert "is built again: a search ended in PanicException: index out of bounds" in caplog.text
        search._runner.projection.close()


async def test_an_index_that_was_deleted_is_built_again(tmp_path: Path) -> None:
    expected = await indexed(tmp_path, 400)
    shutil.rmtree(tenant(tmp_path) / "search")
    async with caught_up(tmp_path) as bus:
        assert [hit.seq for hit in (await bus.search("parser fails")).results] == expected


async def test_an_index_that_is_deleted_under_its_process_is_built_again(tmp_path: Path) -> None:
    await indexed(tmp_path, 400)
    async with caught_up(tmp_path) as bus:
        shutil.rmtree(tenant(tmp_path) / "search")
        await append(bus, 100)
        cursor = bus.head
        await until(lambda: process_of(bus).state.cursor == cursor)
        out = await found(bus, "unit450 unit17")
        assert {hit.seq for hit in out.results} >= {450, 17}


async def test_an_index_is_built_again_while_it_answers(tmp_path: Path) -> None:
    expected = await indexed(tmp_path, 8_000)
    async with caught_up(tmp_path) as bus:
        searcher = process_of(bus)
        generation = searcher.state.generation
        bus.rebuild_search()
        await until(lambda: searcher.state.rebuilt is not None)
        answered = 0
        while searcher.state.generation == generation:
            out = await bus.search("parser fails")
            assert [hit.seq for hit in out.results] == expected
            answered += 1
        assert answered > 1
        assert [hit.seq for hit in (await bus.search("parser fails")).results] == expected
        unit = await bus.append("plan", "and it goes on", agent_id="ann")
        assert (await bus.search('"goes on"')).results[0].seq == unit.seq
        await until(lambda: searcher.state.rebuilt is None and searcher.state.cursor == unit.seq)
    names = [one.name for one in (tenant(tmp_path) / "search").iterdir() if one.is_dir()]
    assert [name.rpartition(".")[2] for name in names] == [str(generation + 1)]


async def test_a_log_in_memory_is_indexed_again_by_the_next_search() -> None:
    async with Bus.open(None) as bus:
        unit = await bus.append("plan", "the parser", agent_id="ann")
        before = await bus.search("parser")
        bus.rebuild_search()
        assert await bus.search("parser") == before
        assert [hit.seq for hit in before.results] == [unit.seq]


async def test_an_index_of_another_log_or_ahead_of_this_one_is_built_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    await indexed(one, 400)
    async with Bus.open(other) as bus:
        await append(bus, 399)
    shutil.copytree(tenant(one) / "search", tenant(other) / "search", dirs_exist_ok=True)
    async with caught_up(other) as bus:
        out = await bus.search("parser", mode="semantic", limit=200)
        assert max(hit.seq for hit in out.results) <= 399
        await append(bus, 1)
        await until(lambda: process_of(bus).state.cursor == 400)
    shutil.rmtree(tenant(other) / "search")
    shutil.copytree(tenant(one) / "search", tenant(other) / "search")
    async with caught_up(other):
        pass
    assert capfd.readouterr().err.count("it is of another log") == 2


async def test_what_other_versions_left_goes_when_it_is_not_needed_any_more(tmp_path: Path) -> None:
    search = tenant(tmp_path) / "search"
    async with Bus.open(tmp_path) as bus:
        await append(bus, 2 * BEHIND_UNITS)
    old = search / "keywords-0-of-old"
    old.mkdir(parents=True)
    (old / "file").write_text("old")
    async with Bus.open(tmp_path) as bus:
        with pytest.raises(SearchBuilding):
            await bus.search("parser")
        assert old.exists()
        await until(lambda: not old.exists())
        assert process_of(bus).state.taken == bus.head
    assert any(search.iterdir())


async def test_buses_quickly_after_one_another_share_one_index(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        async with Bus.open(tmp_path) as bus:
            await append(bus, 50)
            out = await bus.search(f"unit{number * 50 + 7}", limit=1)
            assert [hit.seq for hit in out.results] == [number * 50 + 7]
    # The first may find units already, and no index.
    assert [line for line in capfd.readouterr().err.splitlines() if "it is built from the log" not in line] == []


async def test_a_search_process_waits_for_the_one_before_it(tmp_path: Path) -> None:
    await indexed(tmp_path, 50)
    async with Bus.open(tmp_path) as bus:
        with (tenant(tmp_path) / "search" / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            searched = asyncio.ensure_future(bus.search("unit7", limit=1))
            await append(bus, 10)
            assert not (await asyncio.wait([searched], timeout=1))[0]
        assert [hit.seq for hit in (await searched).results] == [7]


async def test_one_that_waits_ends_with_its_bus(tmp_path: Path) -> None:
    await indexed(tmp_path, 50)
    with (tenant(tmp_path) / "search" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with Bus.open(tmp_path) as bus:
            searched = asyncio.ensure_future(bus.search("unit7"))
            await asyncio.sleep(0)
            pid = process_of(bus).pid
        with pytest.raises(ShuttingDown):
            await searched
    assert pid is not None
    assert not is_alive(pid)


async def test_the_process_ends_with_the_bus(tmp_path: Path) -> None:
    async with Bus.open(tmp_path) as bus:
        searcher = process_of(bus)
        pid = searcher.pid
        assert pid is not None
        assert is_alive(pid)
    assert not is_alive(pid)
    with pytest.raises(ShuttingDown):
        await searcher.search(None)  # type: ignore[arg-type]


async def test_the_terminals_ctrl_c_is_the_buss(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with caught_up(tmp_path) as bus:
        pid = process_of(bus).pid
        assert pid is not None
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        assert (await bus.search("hello")).results == []
        assert process_of(bus).pid == pid
    assert capfd.readouterr().err == ""


@asynccontextmanager
async def frozen(bus: Bus) -> AsyncIterator[None]:
    pid = process_of(bus).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_searches_that_wait_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "SEARCHES_MAX", 5)
    async with caught_up(tmp_path) as bus:
        async with frozen(bus):
            waiting = [asyncio.ensure_future(bus.search("hello")) for _ in range(5)]
            await asyncio.sleep(0)
            with pytest.raises(Busy):
                await bus.search("hello")
            waiting.pop().cancel()
            await asyncio.sleep(0)
            waiting.append(asyncio.ensure_future(bus.search("hello")))
        assert all(out.results == [] for out in await asyncio.gather(*waiting))


async def test_a_process_that_hangs_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "SEARCH_ANSWER_SECONDS_MAX", 0.05)
    async with Bus.open(tmp_path) as bus:
        async with frozen(bus):
            with pytest.raises(SearchUnavailable, match="no answer"):
                await bus.search("hello")
        await found(bus, "hello")


async def test_a_process_frozen_as_it_indexes_and_searches_holds_up_nobody(tmp_path: Path) -> None:
    async with caught_up(tmp_path) as bus, bus.subscribe(after=0) as units:
        await append(bus, 500)
        async with frozen(bus):
            searches = [asyncio.ensure_future(bus.search(f"unit{number}", limit=1)) for number in range(8)]
            for number in range(500, 1_000):
                await bus.append("c0", draft(number).payload, agent_id="ann")
            assert [(await anext(units)).seq for _ in range(1_000)] == list(range(1, 1_001))
            assert not any(search.done() for search in searches)
        assert all(len(out.results) == 1 for out in await asyncio.gather(*searches))


async def test_the_buss_own_process_has_no_index(tmp_path: Path) -> None:
    """Not even by import: an index would take the loop for as long as a commit of it does."""
    program = """
import asyncio, sys
from engram_bus.embedded import Bus
async def main():
    async with Bus.open(sys.argv[1]) as bus:
        await bus.append("plan", "hello there", agent_id="ann")
        print(len((await bus.search("hello")).results), *sorted({"tantivy", "numpy", "tokenizers"} & set(sys.modules)))
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "1\n", ended.stderr


async def test_a_frozen_process_does_not_hold_up_the_end_of_the_bus(tmp_path: Path) -> None:
    bus = Bus.start(tmp_path)
    pid = process_of(bus).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await append(bus, 2_000)
    await bus.stop("the test is over")
    assert not is_alive(pid)


async def test_a_record_that_cannot_be_read_ends_what_is_searched(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with Bus.open(tmp_path) as bus:
        await append(bus, 100)
    with tampering(tmp_path, "log") as txn:
        key = (50).to_bytes(8, "big")
        raw = bytearray(txn.get(key) or b"")
        raw[-1] ^= 1
        txn.put(key, bytes(raw))
    async with Bus.open(tmp_path) as bus:
        out = await bus.search("unit49 unit51")
        assert (out.applied_seq, out.total) == (49, 49)
        await append(bus, 10)
        assert (await bus.search("unit49 unit51")).applied_seq == 49
        status = search_status(bus, process_of(bus))
        assert (status.taken_seq, status.lag_units, status.lag_ms) == (49, 61, 0)
    assert capfd.readouterr().err.count(" ends before the unit after 49") == 1


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tenant(tmp_path) / "search", size_mib=8) as mounted:
        yield mounted


async def test_a_full_disk_under_the_index_does_not_hurt_the_bus(tmp_path: Path, disk: Disk) -> None:
    async with Bus.open(tmp_path) as bus:
        await append(bus, 100)
        await found(bus, "unit7")
        await until(lambda: process_of(bus).state.cursor == 100)
        disk.fill()
        await append(bus, 100)
        with pytest.raises(SearchBuilding):
            await bus.search("unit150")
        assert bus.head == 200
        disk.free()
        assert (await found(bus, "unit150")).results[0].seq == 150
        await until(lambda: process_of(bus).state.cursor == 200)


async def test_an_index_without_room_to_begin_is_begun_when_there_is(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "RESTART_SECONDS", 0.05)
    disk.fill()
    async with Bus.open(tmp_path) as bus:
        await append(bus, 100)
        (outcome,) = await asyncio.gather(bus.search("unit7"), return_exceptions=True)
        assert isinstance(outcome, SearchOut | SearchUnavailable), outcome
        await append(bus, 1)
        disk.free()
        assert (await found(bus, "unit7")).results[0].seq == 7


async def test_an_index_is_searched_where_there_is_no_room_for_more(
    tmp_path: Path, disk: Disk, capfd: pytest.CaptureFixture[str]
) -> None:
    await indexed(tmp_path, 100)
    disk.fill()
    async with Bus.open(tmp_path) as bus:
        assert (await bus.search("unit7", limit=1)).results[0].seq == 7
        await append(bus, 1)
        with pytest.raises(SearchBuilding):
            await bus.search("unit7")
    assert "built again" not in capfd.readouterr().err
