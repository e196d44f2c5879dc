"""What fuzzing found, and the inputs that reach the most, run again without a fuzzer: no promise is broken by any."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.found import CORPUS, kept
from tests.fuzz.replay import made_world, replay
from tests.fuzz.targets import TARGETS
from tests.fuzz.world import BrokenPromise, World

CORPUS_BYTES_MAX = 300_000
HERE = [name for name, target in TARGETS.items() if not target.forks]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with made_world() as made:
        yield made


@pytest.mark.parametrize("name", HERE)
def test_no_input_that_was_kept_breaks_a_promise(world: World, name: str) -> None:
    inputs = {f"seed {number}": data for number, data in enumerate(TARGETS[name].seeds(world))} | kept(name)
    wrong = replay(world, name, inputs)
    assert not wrong, "\n".join(wrong)


def test_no_file_that_was_kept_breaks_a_promise() -> None:
    """In a process of its own, which forks for each: this one may have threads by now."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TOKENIZERS_PARALLELISM": "false"}
    ended = subprocess.run([sys.executable, "-m", "tests.fuzz.replay"], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_record_that_nobody_wrote_would_be_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    written = b"\0" + world.raws[0]
    monkeypatch.setattr(world, "raws", [world.raws[1], *world.raws[1:]])
    with pytest.raises(BrokenPromise, match="nobody wrote"):
        TARGETS["record"].check(world, written)


def test_every_kind_of_stored_thing_has_a_corpus_that_stays_small() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == TARGETS.keys()
    assert sum(_bytes(folder) for folder in CORPUS.iterdir()) <= CORPUS_BYTES_MAX


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
