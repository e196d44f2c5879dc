"""AppendStream without a wire: what only a certain order of the loop's steps shows."""

import asyncio

import pytest

from engram_bus.api.append_stream import AppendStream
from engram_bus.embedded import Bus
from engram_bus.errors import ShuttingDown


async def test_a_stop_ends_a_stream_that_has_not_begun_to_read() -> None:
    async with Bus.open(None) as bus, asyncio.timeout(10):
        stream = AppendStream(bus, agent_id="ann")
        serving = asyncio.ensure_future(stream.run(nothing_comes, nobody_reads))
        # Between the first step of the call and the first of its reader.
        asyncio.get_running_loop().call_soon(stream.goaway)
        with pytest.raises(ShuttingDown):
            await serving


async def nothing_comes() -> bytes:
    await asyncio.Event().wait()
    raise AssertionError("it waits for ever")


async def nobody_reads(message: bytes) -> None:
    raise AssertionError("nothing was asked")
