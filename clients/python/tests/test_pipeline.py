"""A pipeline over connections that break in every way: nothing lost, nothing doubled, no refusal unheard."""

import asyncio
from typing import Any

import pytest

from engram_client import Client, EngramConnectionError, Pipeline
from engram_client.errors import Busy, CursorInvalid, TooLarge, VersionMoved


class Log:
    """A bus that keeps what it was told under its idempotency key."""

    def __init__(self) -> None:
        self.payloads: dict[str, str] = {}

    def append(self, operation: dict[str, Any]) -> int:
        unit = operation["unit"]
        self.payloads.setdefault(unit["idempotency_key"], unit["payload"])
        return list(self.payloads).index(unit["idempotency_key"]) + 1

    async def serve(self, caller: Any) -> None:
        await caller.subscribed("e1.0")
        while True:
            operation = await caller.hear()
            await caller.appended(operation, self.append(operation))


async def test_appends_are_acknowledged_in_order(play: Any) -> None:
    log = Log()
    async with Client(await play(log.serve), agent_id="bob") as bus, bus.pipeline() as pipe:
        pending = [await pipe.append("plan", f"{number}") for number in range(100)]
        receipts = [await one for one in pending]
    assert [(receipt.seq, receipt.durability) for receipt in receipts] == [(seq, "fsync") for seq in range(1, 101)]
    assert list(log.payloads.values()) == [f"{number}" for number in range(100)]


async def test_leaving_waits_for_every_acknowledgement(play: Any) -> None:
    log = Log()
    async with Client(await play(log.serve), agent_id="bob") as bus:
        async with bus.pipeline() as pipe:
            pending = [await pipe.append("plan", f"{number}") for number in range(10)]
        assert all(one.done() for one in pending)
        with pytest.raises(EngramConnectionError, match="closed"):
            await pipe.append("plan", "late")


async def test_after_a_cut_what_is_unacknowledged_is_sent_again_under_its_keys(play: Any) -> None:
    log = Log()

    async def forgets_to_answer(caller: Any) -> None:
        for number in range(7):
            operation = await caller.hear()
            seq = log.append(operation)
            if number < 3:
                await caller.appended(operation, seq)
        caller.cut()

    url = await play(forgets_to_answer, forgets_to_answer, log.serve)
    async with Client(url, agent_id="bob") as bus, bus.pipeline() as pipe:
        pending = [await pipe.append("plan", f"{number}") for number in range(20)]
        assert [(await one).seq for one in pending] == list(range(1, 21))
    assert list(log.payloads.values()) == [f"{number}" for number in range(20)]


async def test_the_window_holds_producers_back(play: Any) -> None:
    heard = 0
    answer_now = asyncio.Event()

    async def waits(caller: Any) -> None:
        nonlocal heard
        operations = []
        while not answer_now.is_set():
            operations.append(await caller.hear())
            heard += 1
            if heard == 4:
                await answer_now.wait()
        for operation in operations:
            await caller.appended(operation, operation["id"])
        await Log().serve(caller)

    async with Client(await play(waits), agent_id="bob") as bus, bus.pipeline(window=4) as pipe:
        for number in range(4):
            await pipe.append("plan", f"{number}")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await pipe.append("plan", "one too many")
        answer_now.set()
        await pipe.append("plan", "now there is room")


async def send_all(pipeline: Pipeline, payloads: str) -> None:
    async with pipeline as pipe:
        for payload in payloads:
            await pipe.append("plan", payload)


async def refuse_the_second(caller: Any) -> None:
    for number in range(3):
        operation = await caller.hear()
        if number == 1:
            await caller.say(
                "error",
                id=operation["id"],
                code="VERSION_MOVED",
                message="3, not 2",
                retryable=False,
                current_version=3,
            )
        else:
            await caller.appended(operation, number + 1)
    await caller.stay()


async def test_a_refusal_is_raised_by_its_receipt_only(play: Any) -> None:
    async with Client(await play(refuse_the_second), agent_id="bob") as bus, bus.pipeline() as pipe:
        first, second, third = [await pipe.append("plan", text) for text in "abc"]
        with pytest.raises(VersionMoved, match="3, not 2"):
            await second
        assert ((await first).seq, (await third).seq) == (1, 3)


async def test_a_refusal_that_nobody_looked_at_is_raised_on_leaving(play: Any) -> None:
    async with Client(await play(refuse_the_second), agent_id="bob") as bus:
        with pytest.raises(VersionMoved, match="3, not 2"):
            await send_all(bus.pipeline(), "abc")


async def test_flush_waits_for_what_was_sent_before_it(play: Any) -> None:
    log = Log()
    async with Client(await play(log.serve), agent_id="bob") as bus, bus.pipeline() as pipe:
        await pipe.flush()
        first = await pipe.append("plan", "a")
        await pipe.flush()
        assert first.done()


async def test_not_now_is_tried_again_in_order(play: Any) -> None:
    log = Log()

    async def busy(caller: Any) -> None:
        operation = await caller.hear()
        await caller.say("error", id=operation["id"], code="BUSY", message="full", retryable=True)
        await caller.stay()

    async with Client(await play(busy, log.serve), agent_id="bob") as bus, bus.pipeline() as pipe:
        for text in "abc":
            await pipe.append("plan", text)
    assert list(log.payloads.values()) == ["a", "b", "c"]


async def test_not_now_for_ever_is_an_answer_in_the_end(play: Any) -> None:
    async def busy(caller: Any) -> None:
        operation = await caller.hear()
        await caller.say("error", id=operation["id"], code="BUSY", message="full", retryable=True)
        await caller.stay()

    async with Client(await play(busy), agent_id="bob") as bus:
        with pytest.raises(Busy):
            await send_all(bus.pipeline(max_retries=3), "a")


async def test_no_bus_is_told_to_every_receipt_and_to_whoever_waits_for_room(closed_url: str) -> None:
    async with Client(closed_url, agent_id="bob") as bus, bus.pipeline(window=1, max_retries=2) as pipe:
        pending = await pipe.append("plan", "a")
        with pytest.raises(EngramConnectionError, match="3 attempts"):
            await pipe.append("plan", "waits for room")
        with pytest.raises(EngramConnectionError, match="3 attempts"):
            await pending
        with pytest.raises(EngramConnectionError, match="3 attempts"):
            await pipe.append("plan", "comes later")


async def test_who_has_nothing_to_send_does_not_give_up(play: Any, short_pauses: None) -> None:
    log, cuts = Log(), 0

    async def cut(caller: Any) -> None:
        nonlocal cuts
        cuts += 1
        await caller.subscribed("e1.0")
        caller.cut()

    url = await play(*[cut] * 6, log.serve)
    async with Client(url, agent_id="bob") as bus, bus.pipeline(max_retries=1) as pipe, asyncio.timeout(5):
        while cuts < 6:
            await asyncio.sleep(0.01)
        assert (await (await pipe.append("plan", "a"))).seq == 1


async def test_a_connection_refused_for_good_is_not_tried_again(play: Any) -> None:
    async def refuse(caller: Any) -> None:
        await caller.close(4501, "CURSOR_INVALID")

    async with Client(await play(refuse), agent_id="bob") as bus:
        with pytest.raises(CursorInvalid):
            await send_all(bus.pipeline(max_retries=None), "a")


async def test_giving_up_on_a_receipt_takes_nothing_back(play: Any) -> None:
    log, go = Log(), asyncio.Event()

    async def late(caller: Any) -> None:
        operation = await caller.hear()
        await go.wait()
        await caller.appended(operation, log.append(operation))
        await log.serve(caller)

    async with Client(await play(late), agent_id="bob") as bus, bus.pipeline() as pipe:
        pending = await pipe.append("plan", "a")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await pending
        go.set()
        assert (await pending).seq == 1


async def test_an_append_that_cannot_be_one_message_is_refused_here(play: Any) -> None:
    async with Client(await play(Log().serve), agent_id="bob") as bus, bus.pipeline() as pipe:
        with pytest.raises(TooLarge) as told:
            await pipe.append("plan", bytes(3 * 1024 * 1024))
        assert told.value.limit == 2 * 1024 * 1024
        assert (await (await pipe.append("plan", "a"))).seq == 1


async def test_an_error_of_the_caller_leaves_at_once(play: Any) -> None:
    async def mute(caller: Any) -> None:
        await caller.stay()

    async with Client(await play(mute), agent_id="bob") as bus:
        pending = None
        try:
            async with bus.pipeline() as pipe:
                pending = await pipe.append("plan", "a")
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        assert pending is not None
        with pytest.raises(EngramConnectionError, match="closed"):
            await pending


async def test_goaway_is_obeyed(play: Any) -> None:
    log = Log()

    async def stopping(caller: Any) -> None:
        await caller.hear()
        await caller.say("goaway", reason="stop", retry_after_ms=1, cursor="e1.0")
        await caller.stay()

    async with Client(await play(stopping, log.serve), agent_id="bob") as bus, bus.pipeline() as pipe:
        assert (await (await pipe.append("plan", "a"))).seq == 1


async def test_it_is_entered_before_it_is_used(closed_url: str) -> None:
    async with Client(closed_url, agent_id="bob") as bus:
        with pytest.raises(EngramConnectionError, match="not open"):
            await bus.pipeline().append("plan", "a")


async def test_several_refusals_are_counted(play: Any) -> None:
    async def refuse(caller: Any) -> None:
        while True:
            operation = await caller.hear()
            await caller.say("error", id=operation["id"], code="VERSION_MOVED", message="no", retryable=False)

    async with Client(await play(refuse), agent_id="bob") as bus:
        with pytest.raises(VersionMoved) as told:
            await send_all(bus.pipeline(), "abc")
    assert told.value.__notes__ == ["and 2 more appends of this pipeline were refused"]


async def test_a_second_answer_is_nobodys(play: Any) -> None:
    async def twice(caller: Any) -> None:
        await caller.subscribed("e1.0")
        operation = await caller.hear()
        for seq in (1, 2):
            await caller.appended(operation, seq)
        await caller.appended(await caller.hear(), 3)
        await caller.stay()

    async with Client(await play(twice), agent_id="bob") as bus, bus.pipeline() as pipe:
        pending = [await pipe.append("plan", text) for text in "ab"]
        assert [(await one).seq for one in pending] == [1, 3]
