"""Logs to be taken elsewhere: small ones with everything odd in them, and what two of them have in common."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
from hypothesis import strategies as st

from engram_bus.log.contract import Epoch
from engram_bus.log.directory import read_tenant
from engram_bus.log.record import Private, Record
from engram_bus.units import WorkUnit, ts_text
from tests.disk import opened, tenant
from tests.values import sealed, unit, units


def fill(path: Path, seqs: Sequence[int], *, group: int = 1, payload_bytes: int = 2) -> None:
    """Add plain units in three contexts, `group` at a time as one command; unit n was said in second n."""
    with opened(path) as log:
        for first in range(0, len(seqs), group):
            some = seqs[first : first + group]
            private = Private(key=f"k{some[0]}", body_digest=b"d")
            log.append(sealed(log, [plain(seq, payload_bytes) for seq in some], private=private, atomic=group > 1))


def plain(seq: int, payload_bytes: int = 2) -> WorkUnit:
    payload = f"{seq:0{payload_bytes}}".encode()
    return unit(seq, context_id=f"c{seq % 3}", version=(seq + 2) // 3, payload=payload, ts_us=seq * 1_000_000)


def write(path: Path, commands: Sequence[Sequence[WorkUnit]]) -> None:
    """A log of any units, each sequence a command; they get the places and times that follow."""
    versions: dict[str, int] = {}
    with opened(path) as log:
        for number, command in enumerate(commands):
            placed = []
            for one in command:
                versions[one.context_id] = versions.get(one.context_id, 0) + 1
                seq = log.head + len(placed) + 1
                placed.append(_placed(one, seq, versions[one.context_id], ts_text(number * 1_000_000)))
            private = Private(key=f"k{number}", body_digest=b"d") if number % 2 else Private()
            log.append(sealed(log, placed, private=private, atomic=True))


def _placed(one: WorkUnit, seq: int, version: int, ts: str) -> WorkUnit:
    return msgspec.structs.replace(one, seq=seq, version=version, ts=ts)


COMMANDS = st.lists(st.lists(units(), min_size=1, max_size=4), max_size=5).filter(
    lambda commands: len({one.id for command in commands for one in command}) == sum(map(len, commands))
)
"""Units of any kind, none of the same id twice."""


def records_of(path: Path) -> list[Record]:
    with opened(path) as log:
        return [log.record(seq) for seq in range(1, log.head + 1)]


def raws_of(path: Path) -> list[bytes]:
    return [record.raw for record in records_of(path)]


def epochs_of(path: Path) -> list[Epoch]:
    return read_tenant(tenant(path), "default").epochs
