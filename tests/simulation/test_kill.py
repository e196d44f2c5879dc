"""A process is killed at any moment: what it acknowledged is there, and nothing is there twice."""

import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import msgspec
import pytest

from engram_bus.bus.writer import Answer
from engram_bus.embedded import Bus
from engram_bus.log.contract import Log
from engram_bus.verify import verify
from tests.simulation.appender import IN_FLIGHT, Acknowledged, command

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(1_800)])])
async def test_what_was_acknowledged_survives_kill_minus_9(tmp_path: Path, kills: int) -> None:
    seed = random.getrandbits(32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    acknowledged: dict[int, Acknowledged] = {}
    first = 0
    for _ in range(kills):
        told = run_and_kill(tmp_path, first, dice)
        acknowledged |= {one.number: one for one in told}
        if (tmp_path / "identity").exists():
            assert verify(tmp_path).damage == ()
        first = await check_and_retry(tmp_path, acknowledged, first)
    assert len(acknowledged) > kills, "the runs were long enough to say something"


def run_and_kill(path: Path, first: int, dice: random.Random) -> list[Acknowledged]:
    """Run until some were acknowledged, or for a moment of its start, and a moment longer; what it said by then."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.simulation.appender", str(path), str(first)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(dice.choice([0, 1, 2, 50, 400]))]
        until = time.perf_counter() + dice.uniform(0, 0.005 if lines else 0.4)
        while time.perf_counter() < until:
            pass
        process.kill()
        lines += process.stdout.read().splitlines(keepends=True)
    assert process.returncode == -9
    said = [line for line in lines if line.endswith(b"\n") and line != b"open\n"]
    assert not any(line.startswith(b"refused") for line in said)
    return [msgspec.json.decode(line, type=Acknowledged) for line in said]


async def check_and_retry(path: Path, acknowledged: dict[int, Acknowledged], first: int) -> int:
    """Open what was left, compare it, and retry as clients do that do not know. Gives the number to go on with."""
    last = max([first, *acknowledged]) + IN_FLIGHT + 1
    async with Bus.open(path) as bus:
        recorded = check_log(bus.log, acknowledged)
        for number in range(max(0, first - IN_FLIGHT), last):
            answer = await bus.execute(command(number))
            assert answer.replayed is (number in recorded)
            retried = told(answer, number)
            assert acknowledged.setdefault(number, retried) == retried
        assert check_log(bus.log, acknowledged) == set(range(last))
    return last


def check_log(log: Log, acknowledged: dict[int, Acknowledged]) -> set[int]:
    """Seqs and versions without a gap, commands whole and once each, and what was acknowledged; gives their numbers."""
    records = [log.record(seq) for seq in range(1, log.head + 1)]
    versions: defaultdict[str, int] = defaultdict(int)
    for seq, record in enumerate(records, start=1):
        versions[record.unit.context_id] += 1
        assert (record.unit.seq, record.unit.version) == (seq, versions[record.unit.context_id])
    assert len({record.unit.id for record in records}) == len(records)
    for one in acknowledged.values():
        assert [records[seq - 1].unit.id for seq in one.seqs] == one.ids
    groups = [records[seq : seq + one.group_units] for seq, one in enumerate(records) if one.group_index == 0]
    assert [one for group in groups for one in group] == records
    assert all([one.group_index for one in group] == list(range(group[0].group_units)) for group in groups)
    keys = [group[0].private.key for group in groups]
    assert len(set(keys)) == len(keys), "no command is there twice"
    return {int(key.removeprefix("key-")) for key in keys if key is not None}


def told(answer: Answer, number: int) -> Acknowledged:
    units = [entry.unit for entry in answer.entries]
    return Acknowledged(number, [unit.seq for unit in units], [unit.id for unit in units])
