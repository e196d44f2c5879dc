"""Sixteen clients, a bus that is killed under them: what they saw of its locks is what one sequential object says."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from engram_bus.verify import verify
from tests.simulation.linearizability import NEVER, find_order, is_linearizable, parts, shortest_failure
from tests.simulation.lock_model import LockOperation, Locks, tokens_that_fell
from tests.simulation.lock_plants import PLANTS
from tests.simulation.lock_recorder import Recorder, load, save

pytestmark = pytest.mark.anyio


async def test_locks_are_linearizable_over_a_kill(tmp_path: Path) -> None:
    await record_and_check(tmp_path, operations=1_000, kills=1)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(20))
async def test_locks_are_linearizable_over_many_kills(tmp_path: Path, number: int) -> None:
    await record_and_check(tmp_path, operations=5_000, kills=5)


async def record_and_check(path: Path, *, operations: int, kills: int) -> None:
    seed = random.getrandbits(32)
    print(f"seed {seed}")
    recorder = Recorder(path / "data", seed=seed, operations=operations, kills=kills)
    history = await recorder.record()
    assert (len(history) >= operations, len(recorder.killed_at)) == (True, kills)
    save(history, path / "history.jsonl")
    check(history, path)
    check_plants(load(path / "history.jsonl"), random.Random(seed))
    report = verify(path / "data")
    assert report.is_whole, report.text()


def check(history: Sequence[LockOperation], path: Path) -> None:
    if not is_linearizable(history, Locks()):
        failure = shortest_failure(history, Locks())
        save(failure, path / "failure.jsonl")
        pytest.fail(
            f"not linearizable; all of it is in {path / 'history.jsonl'}, this part beside it:\n{text(failure)}"
        )
    assert tokens_that_fell(history) == []


def check_plants(history: Sequence[LockOperation], dice: random.Random) -> None:
    """Each lie finds room in some of the resources, and is seen in each."""
    for plant in PLANTS:
        planted = [lie for part in parts(history, Locks()) if (lie := plant(part, dice)) is not None]
        assert planted, plant.__name__
        for lie in planted:
            assert find_order(lie, Locks()) is None, plant.__name__


def text(failure: Sequence[LockOperation]) -> str:
    """A line for each operation: when it began and ended, whose it was, what was asked and answered. The last answer,
    which cannot be explained, stands last."""
    begin = min(one.invoked_at for one in failure)

    def ms(time: int) -> str:
        return "?" if time == NEVER else f"{(time - begin) / 1e6:.3f}"

    return "\n".join(
        f"{ms(one.invoked_at):>10} {ms(one.end):>10} {one.process:>9} {one.call} {one.result}"
        for one in sorted(failure, key=lambda one: one.invoked_at if one.result is None else one.end)
    )
