"""The data directory that fuzzing mutates: small, with everything odd in it, and made of the same bytes each time."""

import asyncio
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from engram_bus.backup.manifest import empty, save
from engram_bus.backup.segments import SegmentWriter
from engram_bus.bus.writer import Answer, Writer
from engram_bus.clock import Clock
from engram_bus.log.contract import Epoch
from engram_bus.log.directory import DEFAULT_TENANT, Identity, begin_tenant
from engram_bus.log.lmdb import LmdbLog
from engram_bus.log.record import GENESIS, parse
from engram_bus.units import (
    FORMAT_BYTES,
    FORMAT_JSON,
    AcquireLock,
    Append,
    AppendAtomic,
    Command,
    Draft,
    Relationship,
    RelationshipType,
    UnitType,
    UpdateContext,
    ts_text,
)
from tests.disk import opened
from tests.simulation.damage_look import Job, Seen, look

LOG = "tenants/default/log/data.mdb"
INDEX = "tenants/default/index/data.mdb"
SEGMENT = "tenants/default/log/segment"
MARK = "tenants/default/index/mark"
TENANT = "tenants/default/identity"
START_US = 4_102_444_800_000_000
"""The year 2100: a bus that opens it goes on from there, so that the lease in it is not over."""
EPOCHS = [Epoch("e0123456789ab", 1)]
UNITS = 24
BIG_BYTES = 6_000
_TARGET = "00000000-0000-7000-8000-00000000000a"
_MEMORY = Path("/dev/shm")


class BrokenPromise(AssertionError):
    """What came of an input must never come of any."""


def require(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise BrokenPromise(otherwise)


class World:
    """What is mutated, made once; each input gets a copy. In memory where there is room: a start flushes a lot."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None)
        self.path = Path(self._folder.name)
        self.data, self.backup, self.records = self.path / "data", self.path / "backup", self.path / "records"
        self.killed = self.path / "killed"
        """The same, of a bus that was killed: its newest commits are in the segment alone."""
        self.raws = _make_data(self.data, self.killed)
        self._chains = [GENESIS, *(raw[16:48] for raw in self.raws)]
        _make_backup(self.backup, self.raws)
        self.records.write_bytes(msgspec.msgpack.encode(self.raws))
        self.look: Callable[[Job], Seen] = look
        """How a directory is looked at: here, or in a process of its own where damage may end that."""

    def close(self) -> None:
        self._folder.cleanup()

    def chain_before(self, seq: int) -> bytes:
        """The chain digest that the record at a seq follows; of none that there is, the beginning."""
        return self._chains[seq - 1] if 0 < seq <= len(self.raws) else GENESIS

    @contextmanager
    def copied(self, whole: Path) -> Iterator[Path]:
        """A copy to be damaged, of a process of its own."""
        at = self.path / f"{whole.name}-{os.getpid()}"
        shutil.copytree(whole, at)
        try:
            yield at
        finally:
            shutil.rmtree(at)


# --- How it is made --------------------------------------------------------------------------------------------------


def _draft(context_id: str, payload: bytes, **fields: Any) -> Draft:
    return Draft(**{"context_id": context_id, "agent_id": "ann", "type": UnitType.MESSAGE} | fields, payload=payload)


def _commands() -> Iterator[Command]:
    related = [Relationship(_TARGET, RelationshipType.REFERENCES, {"why": "é"})]
    yield Append(draft=_draft("c0", b"the first", id=_TARGET))
    for number in range(UNITS):
        payload = b"%d said" % number + b" and more" * (BIG_BYTES // 9 if number == 7 else 3)
        yield Append(
            draft=_draft(
                f"c{number % 3}",
                payload,
                meta={"k": "v\n"} if number % 4 == 0 else {},
                resources=["src/a.py", "日本.md"] if number % 5 == 0 else [],
                relationships=related if number % 3 == 0 else [],
                content_type=FORMAT_BYTES if number % 6 == 1 else "text/plain; charset=utf-8",
            ),
            idempotency_key=f"k{number + 1}" if number % 2 else None,
        )
    yield AppendAtomic(appends=tuple(Append(draft=_draft("batch", b"of", kind="build.done")) for _ in range(3)))
    yield UpdateContext(context_id="c0", agent_id="ann", add_agents=("ann", "bob"), pin_units=(_TARGET,))
    yield AcquireLock(resources=("src/", "日本.md"), agent_id="ann", ttl_ms=3_600_000)
    yield Append(draft=_draft("c1", b'{"n": [1, null]}', content_type=FORMAT_JSON), idempotency_key="last")


def _make_data(path: Path, killed: Path) -> list[bytes]:
    """A closed data directory, and one that was not; gives their records."""
    tenant = path / "tenants" / DEFAULT_TENANT
    for folder in (path / "keys", *(tenant / part for part in ("log", "index", "search"))):
        folder.mkdir(parents=True)
    (path / "identity").write_bytes(msgspec.json.encode(Identity(1, "0123456789abcdef", ts_text(START_US))))
    begin_tenant(tenant, DEFAULT_TENANT, EPOCHS)
    with opened(path) as log:
        asyncio.run(_fill(log))
        raws = [log.record(seq).raw for seq in range(1, log.head + 1)]
        shutil.copytree(path, killed)
    for folder in (path, killed):
        for lock in [folder / "lock", *folder.rglob("lock.mdb")]:
            lock.unlink()
    return raws


def _make_backup(path: Path, raws: list[bytes]) -> None:
    path.mkdir()
    writer = SegmentWriter.begin(path, 1)
    for seq, raw in enumerate(raws, start=1):
        writer.add(parse(raw, seq))
    segment = writer.flush()
    writer.close()
    begun = empty(DEFAULT_TENANT, EPOCHS, ts_text(START_US))
    save(path, msgspec.structs.replace(begun, head=len(raws), chain=raws[-1][16:48].hex(), segments=(segment,)))


async def _fill(log: LmdbLog) -> None:
    now_us, dice = START_US, random.Random(1)

    def tick() -> int:
        nonlocal now_us
        now_us += 1_001
        return now_us

    outcomes: list[Any] = []
    writer = Writer(
        log,
        clock=lambda not_before_us: Clock(not_before_us, boot_us=tick, wall_us=lambda: now_us),
        entropy=dice.randbytes,
        tell=lambda entries: None,
    )
    for number, command in enumerate(_commands()):
        if number == UNITS // 2:
            log.settle()  # What comes later is in the segment alone, until the log is closed.
        writer.submit(command, 1, outcomes.append)
        await asyncio.sleep(0)
    writer.close()
    assert all(isinstance(outcome, Answer) for outcome in outcomes), outcomes
