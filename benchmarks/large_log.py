"""A log that grows to ten million units over 100,000 contexts: what lies in it, and where."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.search_texts import grown, recorded
from engram_bus import Bus, Draft, UnitType

PAYLOAD_BYTES = 300
BULK = 1_000
CONVERSATION_UNITS = 100
CONTEXTS = 75_000
"""Of three in four units, each anywhere. Every fourth is of a conversation: of 25 at a time, until each has its 100."""

_AT_A_TIME = 25
_EVERY = 4
_ROUND = _EVERY * _AT_A_TIME * CONVERSATION_UNITS
_TEXTS = 20_000
_SCATTER = 2_654_435_761
"""An odd number: neighbours in the log are far from each other in the index."""
_MARK = b"@due=%016x,%08x " % (0, 0)
"""By which a load knows a unit when it reads it."""


class Content:
    """What each unit is, by its seq: the same however often the writing was ended."""

    def __init__(self) -> None:
        self._payloads = [_payload(text) for text in grown(recorded(), _TEXTS)]

    def drafts(self, first_seq: int, count: int) -> Sequence[Draft]:
        """As if these were the next ones."""
        return [self._draft(seq) for seq in range(first_seq, first_seq + count)]

    def _draft(self, seq: int) -> Draft:
        return Draft(
            context_id=_context_of(seq),
            agent_id=f"agent-{seq % 50}",
            type=UnitType.MESSAGE,
            payload=self._payloads[seq % _TEXTS],
        )


def conversations(head: int) -> Sequence[str]:
    """Those of a log of this size that are over: each has its 100 units among 10,000 of the log."""
    return [f"conversation/{number}" for number in range(max(1, head // _ROUND) * _AT_A_TIME)]


class Written(NamedTuple):
    """How long it took, opening and closing aside."""

    units: int
    seconds: float
    cpu_seconds: float


async def grow(path: Path, content: Content, *, units: int) -> Written:
    """Append what is missing, in bulks, without a server."""
    async with Bus.open(path) as bus:
        before, started, used = bus.head, time.perf_counter(), time.process_time()
        while bus.head < units:
            await bus.append_bulk(content.drafts(bus.head + 1, min(BULK, units - bus.head)))
        return Written(bus.head - before, time.perf_counter() - started, time.process_time() - used)


def _context_of(seq: int) -> str:
    if seq % _EVERY:
        return f"context/{seq * _SCATTER % 2**32 % CONTEXTS}"
    return f"conversation/{seq // _ROUND * _AT_A_TIME + seq // _EVERY % _AT_A_TIME}"


def _payload(text: str) -> bytes:
    said = text.encode()[: PAYLOAD_BYTES - len(_MARK)].decode(errors="ignore").encode()
    return (_MARK + said).ljust(PAYLOAD_BYTES)
