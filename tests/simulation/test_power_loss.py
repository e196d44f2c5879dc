"""Power is lost at any moment: what was told is there, what was refused is not, and the bus goes on."""

import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from tests.disk import image as files_of
from tests.simulation import power_check
from tests.simulation.power_disk import Begun, Disk
from tests.simulation.power_loss import Round, Story, written
from tests.simulation.power_plants import PLANTS
from tests.simulation.power_trace import Kind, NotTraceable, Step, Trace, library, steps

ROOT = Path(__file__).parents[2]
IMAGES, UNITS = 40, 120
IMAGES_LONG = 1_000

SAY = """
import asyncio, os, sys
from pathlib import Path
from engram_bus.embedded import Bus
from tests.disk import opened
from tests.simulation.power_trace import Marks
from tests.simulation.power_workload import Acknowledged, Heard, Told

mark = Marks(Path(os.environ["POWER_TRACE"]))

def told(unit):
    return Told(unit.seq, unit.id, unit.context_id, unit.version, unit.agent_id, unit.payload)

async def say(*texts):
    async with Bus.open(sys.argv[1]) as bus:
        for text in texts:
            mark(Acknowledged([told(await bus.append("plan", text, agent_id="ann"))]))

async def hear():
    with opened(Path(sys.argv[1])) as log:
        mark(Heard([told(log.record(seq).unit) for seq in range(1, log.head + 1)]))
        os._exit(0)
"""


@pytest.fixture(scope="module", autouse=True)
def _traceable() -> None:
    try:
        library()
    except NotTraceable as exc:
        pytest.skip(str(exc))


def lose_power(*arguments: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.simulation.power_loss", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
    )
    print(ended.stdout, ended.stderr)
    return ended


# --- A bus at full speed ---------------------------------------------------------------------------------------------


class Short(NamedTuple):
    """One round that was kept."""

    ended: subprocess.CompletedProcess[str]
    path: Path


@pytest.fixture(scope="module")
def short(_traceable: None, tmp_path_factory: pytest.TempPathFactory) -> Short:
    path = tmp_path_factory.mktemp("power")
    ended = lose_power("--images", str(IMAGES), "--units", str(UNITS), "--kills", "1", "--keep", str(path))
    return Short(ended, path / "round-0")


@pytest.mark.timeout(300)
def test_images_of_a_short_run_are_whole(short: Short) -> None:
    assert short.ended.returncode == 0
    assert f"{IMAGES} images, 0 of them wrong" in short.ended.stdout


def test_the_trace_is_what_happened(short: Short) -> None:
    """Played again, it gives every file, byte by byte: nothing that a bus or its search writes escapes it."""
    disk = Disk(Story(short.path).round.begun)
    for step in steps(short.path / "trace"):
        disk.take(step)
    played = {name: content for name, content in disk.seen().items() if content is not None}
    assert {name: content for name, content in played.items() if not name.endswith("lock.mdb")} == files_of(
        short.path / "disk"
    )
    assert any("/log/data.mdb" in name for name in played)
    assert any("/search/" in name and name.endswith(".store") for name in played)


def test_an_image_can_be_made_again(short: Short, tmp_path: Path) -> None:
    made: list[dict[str, bytes]] = []
    for number in (0, 1):
        story = Story(short.path)
        ((_, _, image, _),) = story.images([7])
        written(image, tmp_path / str(number))
        made.append(files_of(tmp_path / str(number)))
    assert made[0] == made[1]


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_a_thousand_images_are_whole() -> None:
    ended = lose_power("--images", str(IMAGES_LONG), timeout=1_700)
    assert ended.returncode == 0


FOUND_IN = {
    "answered-before-the-flush": 100,
    "segment-written-over-before-lmdb-has-it": 200,
    "meta-page-not-flushed": 200,
    "names-not-flushed": 100,
    "index-marked-before-it-is-flushed": 1_000,
    "index-trusted-and-its-hits-not-checked": 300,
    "commits-without-a-checksum": 1_500,
}
"""Images that are more than enough."""


@pytest.mark.long
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("plant", FOUND_IN)
def test_a_planted_bug_is_found(plant: str) -> None:
    ended = lose_power("--plant", plant, "--images", str(FOUND_IN[plant]), "--failures", "1", timeout=1_700)
    assert ended.returncode == 1
    assert "AssertionError" in ended.stdout or "EngramError" in ended.stdout or "errors." in ended.stdout


# --- Few steps, and power lost after each of them --------------------------------------------------------------------


class Ran(NamedTuple):
    """What is run, killed when it has done some steps or not, and with a bug or without."""

    code: str
    kill: str | None = None
    plant: str = ""


def story_of(path: Path, *runs: Ran) -> Story:
    """A round of these processes, one after the other."""
    disk = path / "disk"
    disk.mkdir(parents=True)
    told = Round(0, 0, Begun.of(disk.resolve()), [])
    (path / "round").write_bytes(msgspec.msgpack.encode(told))
    trace = Trace(path / "trace", disk)
    for code, kill, plant in runs:
        planted = f"from tests.simulation.power_plants import plant; plant({plant!r})" if plant else ""
        run = subprocess.run(
            [sys.executable, "-c", f"{SAY}\n{planted}\nasyncio.run({code})", str(disk / "data")],
            env=os.environ | trace.environment(kill=kill),
            cwd=ROOT,
        )
        assert run.returncode == (0 if kill is None else -9)
    trace.close()
    return Story(path)


def check_images(story: Story, path: Path, moments: Sequence[int], images: int) -> None:
    """Power is lost at each of these, in so many ways."""
    disk, taken = Disk(story.round.begun), 0
    for moment in moments:
        while taken < moment:
            disk.take(story.steps[taken])
            taken += 1
        for number in range(images):
            dice = random.Random(f"{moment}/{number}")
            one = path / f"{moment}-{number}"
            written(disk.left(dice, strict=number % 2 == 0), one)
            print(f"power lost before step {moment}, image {number}: {story.steps[moment : moment + 1]!r:.150}")
            power_check.check(one / "data", story.expected(moment), dice, search=False)


def test_a_first_start_survives_a_loss_of_power_at_each_of_its_steps(tmp_path: Path) -> None:
    """Also where the directories that lead to the log are only as durable as POSIX has them."""
    story = story_of(tmp_path / "story", Ran("say('one')"))
    moments = [at for at in range(1, len(story.steps) + 1) if story.steps[at - 1].kind is not Kind.MARK]
    check_images(story, tmp_path, moments, images=2)


def is_commit(step: Step) -> bool:
    return step.kind is Kind.WRITE and step.path.endswith("/log/segment") and step.number > 0


def killed_in_a_flush(path: Path, plant: str = "") -> Story:
    """A process wrote the commit of its second unit, and was killed before that was flushed. Then another one opened
    the log, appended nothing (its disk may be full), and said what it saw."""
    whole = story_of(path / "whole", Ran("say('one', 'two')", None, plant))
    wrote = max(at for at, step in enumerate(whole.steps) if is_commit(step))
    made = sum(step.kind is not Kind.MARK for step in whole.steps[: wrote + 1])
    story = story_of(path / "killed", Ran("say('one', 'two')", f"{made}", plant), Ran("hear()", None, plant))
    processes = [step.process for step in story.steps]
    assert is_commit([step for step in story.steps if step.process == processes[0] and step.kind is not Kind.MARK][-1])
    return story


def test_what_a_killed_process_did_not_flush_is_flushed_before_anybody_hears_of_it(tmp_path: Path) -> None:
    story = killed_in_a_flush(tmp_path)
    assert len(story.expected(len(story.steps)).units) == 2
    check_images(story, tmp_path, [len(story.steps)], images=10)


@pytest.mark.long
def test_what_a_killed_process_did_not_flush_is_missed_where_that_bug_is_planted(tmp_path: Path) -> None:
    story = killed_in_a_flush(tmp_path, "answers-from-memory-after-a-kill")
    with pytest.raises(AssertionError, match="unit 2 was told, and the log ends at 1"):
        check_images(story, tmp_path, [len(story.steps)], images=10)


def test_every_planted_bug_has_its_test() -> None:
    assert set(PLANTS) == {*FOUND_IN, "answers-from-memory-after-a-kill"}


# --- What would escape the trace -------------------------------------------------------------------------------------

MAPPED = """
file = open(sys.argv[1], "w+b"); file.truncate(4096)
mmap.mmap(file.fileno(), 4096)[0:3] = b"new"
"""
LINKED = "os.symlink('elsewhere', sys.argv[1])"


@pytest.mark.parametrize(
    ("code", "what"), [(MAPPED, "a shared writable mapping"), (LINKED, "a symbolic link")], ids=["mapping", "link"]
)
def test_what_would_escape_the_trace_is_told(tmp_path: Path, code: str, what: str) -> None:
    (tmp_path / "disk").mkdir()
    trace = Trace(tmp_path / "trace", tmp_path / "disk")
    program = [sys.executable, "-c", f"import mmap, os, sys\n{code}", str(tmp_path / "disk" / "file")]
    subprocess.run(program, env=os.environ | trace.environment(), check=True)
    trace.close()
    with pytest.raises(AssertionError, match=re.escape(what)):
        list(steps(tmp_path / "trace"))
