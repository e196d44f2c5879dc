"""Waits before trying again: the dice and the clock that `backoff` does without, and the line in the log."""

import asyncio
import logging
import random
from typing import Final

from engram_client.backoff import Backoff
from engram_client.errors import EngramError

_log: Final = logging.getLogger("engram_client")


async def pause(backoff: Backoff, error: EngramError, what: str, *, for_ever: bool = False) -> None:
    """Until `what` may be tried again. Raises `error` where that makes no sense (any more)."""
    seconds = backoff.seconds(error, chance=random.random(), for_ever=for_ever)
    _log.warning("%s: again in %.2f s, after %s", what, seconds, error)
    await asyncio.sleep(seconds)
