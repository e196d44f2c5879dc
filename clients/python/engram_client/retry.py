"""Waits before trying again: the dice and the clock that `backoff` does without, and the line in the log."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from engram_client.backoff import Backoff
from engram_client.errors import EngramConnectionError, EngramError, MinSeqTimeout

T = TypeVar("T")

_log: Final = logging.getLogger("engram_client")


async def pause(backoff: Backoff, error: EngramError, what: str, *, for_ever: bool = False) -> None:
    """Until `what` may be tried again. Raises `error` where that makes no sense (any more)."""
    seconds = backoff.seconds(error, chance=random.random(), for_ever=for_ever)
    _log.warning("%s: again in %.2f s, after %s", what, seconds, error)
    await asyncio.sleep(seconds)


async def again(ask: Callable[[], Awaitable[T]], *, max_retries: int, what: str, is_repeatable: bool = True) -> T:
    """What `ask` gets. It is asked again after a failure that may pass; what is not repeatable, not where it may have
    been carried out already."""
    backoff = Backoff(max_retries)
    while True:
        try:
            return await ask()
        except MinSeqTimeout:  # it has waited as long as it was asked to
            raise
        except EngramError as error:
            if isinstance(error, EngramConnectionError) and not is_repeatable:
                raise
            await pause(backoff, error, what)


async def waiting(
    ask: Callable[[float], Awaitable[T]], *, wait_seconds: float, max_retries: int | None, what: str
) -> T:
    """What `ask` gets within the seconds that are left of a wait. A failure that may pass is met by asking again; it
    is given up only when the wait is over."""
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_seconds
    backoff = Backoff(max_retries)
    seconds_left = wait_seconds
    while True:
        try:
            return await ask(seconds_left)
        except EngramError as error:
            await pause(backoff, error, what, for_ever=loop.time() < until)
        seconds_left = max(0.0, until - loop.time())
