"""What becomes of a client's own when it is closed."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from engram_client import Client, EngramConnectionError

Play = Callable[..., Awaitable[str]]


async def quiet(caller: Any) -> None:
    await caller.subscribed("e1.0")
    await caller.stay()


async def test_an_end_that_fails_keeps_nothing_else_open(play: Play) -> None:
    class Failing:
        async def aclose(self) -> None:
            raise ZeroDivisionError

    client = Client(await play(quiet), agent_id="bob")
    subscriptions = [client.subscribe("plan") for _ in range(3)]
    for subscription in subscriptions:
        await subscription.wait_subscribed()
    client._running.add(Failing())
    with pytest.raises(ZeroDivisionError):
        await client.aclose()
    for subscription in subscriptions:
        assert [unit async for unit in subscription] == []
    with pytest.raises(EngramConnectionError, match="closed"):
        await client.status()


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_nothing_begins_in_a_closed_client(closed_url: str, scheme: str) -> None:
    async with Client(closed_url.replace("http", scheme), agent_id="bob") as client:
        subscription = client.subscribe("plan")
    for begins in (
        subscription.wait_subscribed,
        client.pipeline().__aenter__,
        client.lock("plan.md").__aenter__,
        client.lock("plan.md", session=True).__aenter__,
    ):
        with pytest.raises(EngramConnectionError, match="the client is closed") as told:
            await begins()
        assert not told.value.retryable
