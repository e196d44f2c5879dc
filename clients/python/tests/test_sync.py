"""The same verbs for a thread without a loop."""

import threading
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import pytest

from engram_client import EngramConnectionError, Gap, SyncClient, WorkUnit
from engram_client.errors import VersionMoved
from engram_client.sync import SyncSubscription


async def five_units(caller: Any) -> None:
    await caller.subscribed("e1.0")
    await caller.units(1, 2, 3)
    await caller.say("gap", **{"from": 4, "to": 4, "reason": "PRUNED"})
    await caller.units(5)
    await caller.stay()


async def quiet(caller: Any) -> None:
    await caller.subscribed("e1.0")
    await caller.stay()


async def log(caller: Any) -> None:
    await caller.subscribed("e1.0")
    seq = 0
    while True:
        operation = await caller.hear()
        if operation["unit"].get("expected_version"):
            await caller.say("error", id=operation["id"], code="VERSION_MOVED", message="moved", retryable=False)
        else:
            seq += 1
            await caller.appended(operation, seq)


def test_verbs_wait_for_their_answer(elsewhere: Any) -> None:
    url, _ = elsewhere.answer(lambda answering: answering.unit(7))
    with SyncClient(url, agent_id="bob") as bus:
        unit = bus.append("plan", "hi", meta={"k": "v"})
        assert (unit.seq, unit.text) == (7, "hi")


def test_errors_are_raised_where_the_verb_was_said(elsewhere: Any) -> None:
    url, _ = elsewhere.answer(lambda answering: answering.json(412, {"code": "VERSION_MOVED", "retryable": False}))
    with SyncClient(url, agent_id="bob") as bus, pytest.raises(VersionMoved):
        bus.append("plan", "hi", expected_version=3)


def test_units_are_iterated_over_all_pages(elsewhere: Any) -> None:
    def page(next_page: str | None) -> Any:
        units: list[Any] = []
        return lambda answering: answering.json(200, {"work_units": units, "next_page": next_page, "applied_seq": 1})

    url, requests = elsewhere.answer(page("p1"), page(None))
    with SyncClient(url, agent_id="bob") as bus:
        assert list(bus.units("plan")) == []
    assert len(requests) == 2


def test_a_subscription_is_an_iterator(elsewhere: Any) -> None:
    with SyncClient(elsewhere.play(five_units), agent_id="bob") as bus, bus.subscribe("plan", after=0) as units:
        seen: list[Any] = []
        while len(seen) < 5:
            try:
                seen += [next(units).seq]
            except Gap as gap:
                seen += [(gap.from_seq, gap.to_seq)]
        assert seen == [1, 2, 3, (4, 4), 5]
        assert (units.cursor, units.head) == ("e1.5", 99)


def test_a_wait_that_ran_out_has_taken_nothing(elsewhere: Any) -> None:
    go = threading.Event()

    async def late(caller: Any) -> None:
        await caller.subscribed("e1.0")
        while not go.is_set():
            await caller.say("pong")
        await caller.units(1, 2)
        await caller.stay()

    with SyncClient(elsewhere.play(late), agent_id="bob") as bus, bus.subscribe("plan", after=0) as units:
        with pytest.raises(TimeoutError):
            units.next(timeout_seconds=0.01)
        go.set()
        assert units.cursor == "e1.0"
        assert [units.next(timeout_seconds=5).seq, next(units).seq] == [1, 2]
        assert units.cursor == "e1.2"


class JustTooLate(Future[Any]):
    """What it is to have is there as soon as a wait for it has run out."""

    def __init__(self, said: object) -> None:
        super().__init__()
        self._said = said

    def result(self, timeout: float | None = None) -> Any:
        try:
            return super().result(timeout)
        except TimeoutError:
            if isinstance(self._said, Gap):
                self.set_exception(self._said)
            else:
                self.set_result(self._said)
            raise


class Handing:
    """A thread whose answers are prepared, and the subscription that it asks."""

    cursor = None

    def __init__(self, *ahead: Future[Any]) -> None:
        self._ahead = iter(ahead)

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        coroutine.close()
        return next(self._ahead)


def test_what_comes_just_when_a_wait_has_run_out_is_not_lost() -> None:
    gap = Gap(2, 3, "PRUNED")
    handing = Handing(*map(JustTooLate, [1, gap, 4]))
    units = SyncSubscription(handing, handing)
    seen: list[object] = []
    while len(seen) < 3:
        try:
            seen.append(units.next(timeout_seconds=0.01))
        except TimeoutError:
            pass
        except Gap as told:
            seen.append(told)
    assert seen == [1, gap, 4]


def test_who_waits_for_a_unit_when_the_thread_ends_is_told_that_the_client_was_closed() -> None:
    ahead: Future[Any] = Future()
    ahead.cancel()
    handing = Handing(ahead)
    with pytest.raises(EngramConnectionError, match="closed"):
        SyncSubscription(handing, handing).next()


def test_a_loop_ends_when_another_thread_closes_the_subscription(elsewhere: Any) -> None:
    with SyncClient(elsewhere.play(quiet), agent_id="bob") as bus:
        units = bus.subscribe("plan")
        units.wait_subscribed()
        seen: list[WorkUnit] = []
        reader = threading.Thread(target=lambda: seen.extend(units))
        reader.start()
        units.close()
        reader.join(5)
        assert not reader.is_alive()
        assert seen == []


def test_a_pipeline_hands_out_receipts(elsewhere: Any) -> None:
    with SyncClient(elsewhere.play(log), agent_id="bob") as bus:
        with bus.pipeline(window=4) as pipe:
            receipts = [pipe.append("plan", f"{number}") for number in range(20)]
            pipe.flush()
            assert all(receipt.done() for receipt in receipts)
            refused = pipe.append("plan", "x", expected_version=9)
            with pytest.raises(VersionMoved):
                refused.result(timeout_seconds=5)
        assert [receipt.result().seq for receipt in receipts] == list(range(1, 21))


def test_a_refusal_that_nobody_looked_at_is_raised_on_leaving(elsewhere: Any) -> None:
    with SyncClient(elsewhere.play(log), agent_id="bob") as bus, pytest.raises(VersionMoved), bus.pipeline() as pipe:
        pipe.append("plan", "x", expected_version=9)


def test_threads_may_share_it(elsewhere: Any) -> None:
    url, requests = elsewhere.answer(lambda answering: answering.unit(7))
    with SyncClient(url, agent_id="bob") as bus:
        threads = [threading.Thread(target=bus.append, args=("plan", "hi")) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(requests) == 8


def test_a_closed_client_says_so(elsewhere: Any) -> None:
    bus = SyncClient(elsewhere.play(quiet), agent_id="bob")
    bus.close()
    bus.close()
    with pytest.raises(EngramConnectionError, match="closed"):
        bus.status()


def test_an_end_that_fails_does_not_keep_the_thread(closed_url: str) -> None:
    class Failing:
        async def aclose(self) -> None:
            raise ZeroDivisionError

    bus = SyncClient(closed_url, agent_id="bob")
    bus.client._running.add(Failing())
    with pytest.raises(ZeroDivisionError):
        bus.close()
    assert bus.thread.closed


def test_who_waits_while_another_thread_closes_is_let_go(elsewhere: Any) -> None:
    url, requests = elsewhere.answer(lambda _: b"")
    bus = SyncClient(url, agent_id="bob")
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(bus.status)
        while not requests:
            wait([waiting], timeout=0.01)
        bus.close()
        with pytest.raises(EngramConnectionError, match="closed"):
            waiting.result(5)
