"""The writing half of a socket, without one."""

import asyncio

import pytest

from engram_bus.api.edge.socket import Written


class Transport(asyncio.Transport):
    """Counts how often it is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.cuts = 0
        self.is_cut = asyncio.Event()

    def abort(self) -> None:
        self.cuts += 1
        self.is_cut.set()


@pytest.mark.parametrize("seconds", [(0.001, 3_600), (3_600, 0.001)])
async def test_of_two_times_to_cut_a_connection_the_sooner_counts(seconds: tuple[float, float]) -> None:
    socket = connected()
    for each in seconds:
        socket.abort_after(each)
    async with asyncio.timeout(10):
        await socket.transport.is_cut.wait()


@pytest.mark.parametrize("seconds", [(0.001, 0.002), (0.002, 0.001)])
async def test_of_two_times_to_cut_a_connection_one_is_left(seconds: tuple[float, float]) -> None:
    socket = connected()
    for each in seconds:
        socket.abort_after(each)
    both_are_over = asyncio.Event()
    asyncio.get_running_loop().call_later(0.004, both_are_over.set)
    await both_are_over.wait()
    assert socket.transport.cuts == 1


class Connected(Written):
    transport: Transport


def connected() -> Connected:
    socket = Connected()
    socket.transport = Transport()
    return socket
