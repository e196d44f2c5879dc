"""Power is lost at any moment, and the disk keeps what was flushed and any part of the rest: `make power-loss`.

A bus at full speed, its search process and its agents leave one trace (`power_trace.py`, `power_workload.py`). For each
image a moment of it is drawn, most often inside a commit, and what a disk may hold then (`power_disk.py`), and that is
opened and checked (`power_check.py`) in a process of its own. A round has one trace, in which the bus is killed and
started again; the next round begins on a disk that lost its power in the one before.

An image depends on the trace and the seed alone. Where one is wrong, its trace is kept, and the command is printed that
makes it again.
"""

import argparse
import asyncio
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import msgspec

from engram_bus.log.directory import boot_id
from engram_client import backoff
from tests.process import ENGRAM
from tests.replays import SHIPPED
from tests.simulation import power_check, power_plants
from tests.simulation.power_disk import Begun, Disk, write
from tests.simulation.power_trace import Kind, Step, Trace, steps
from tests.simulation.power_workload import Mark, TracedBus, decode_mark, texts, work

ROUND_IMAGES = 250
ROUND_UNITS = 400
SEARCH_EVERY = 8
CHECK_SECONDS = 60
OPENING_STEPS = 120
CLOSING_STEPS = 40
ANOTHER_BOOT = "00000000-dead-beef-0000-000000000000"

WEIGHTS = {
    "meta": 6,
    "flush": 5,
    "log": 5,
    "names": 4,
    "opening": 4,
    "closing": 2,
    "ended": 2,
    "search": 3,
    "flush of search": 3,
    "other": 2,
}
"""How often power is lost before a step of each sort, however many steps of it there are."""


class Round(msgspec.Struct, frozen=True):
    """What is kept of a round beside its trace: enough to make each image of it again."""

    seed: int
    number: int
    begun: Begun
    marks: list[Mark]
    """Of the rounds before, up to the moment at which this one begins."""
    plant: str | None = None


class Failure(NamedTuple):
    """A wrong image: how to make it again, and what is wrong."""

    command: str
    why: str


class Story:
    """A round's trace, and its images."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.round = msgspec.msgpack.decode((path / "round").read_bytes(), type=Round)
        self.steps = list(steps(path / "trace"))
        self._marks = [(at, decode_mark(one.data)) for at, one in enumerate(self.steps) if one.kind is Kind.MARK]
        self._sorts = self._sorted()

    def dice(self, image: int) -> random.Random:
        return random.Random(f"{self.round.seed}/{self.round.number}/{image}")

    def moment(self, dice: random.Random) -> int:
        """The step before which power is lost. What was told by then is told."""
        sorts = [sort for sort in WEIGHTS if self._sorts[sort]]
        (sort,) = dice.choices(sorts, [WEIGHTS[sort] for sort in sorts])
        return dice.choice(self._sorts[sort])

    def _sorted(self) -> defaultdict[str, list[int]]:
        sorts: defaultdict[str, list[int]] = defaultdict(list)
        of_process: defaultdict[int, list[int]] = defaultdict(list)
        writing_meta = False
        for at, one in enumerate(self.steps):
            if one.kind is Kind.MARK:
                continue
            of_process[one.process].append(at)
            is_lmdb, is_flush = one.path.endswith("/log/data.mdb"), one.kind in (Kind.SYNC_BEGIN, Kind.SYNC_END)
            is_log = is_lmdb or one.path.endswith("/log/segment")
            if is_lmdb and one.kind is Kind.WRITE:
                writing_meta = one.number < 8_192 and len(one.data) < 4_096
            sorts[_sort(one, is_log=is_log, is_flush=is_flush, is_meta=is_lmdb and writing_meta)].append(at)
        for moments in of_process.values():
            sorts["opening"] += moments[:OPENING_STEPS]
            sorts["closing"] += moments[-CLOSING_STEPS:]
            sorts["ended"].append(moments[-1] + 1)
        return sorts

    def expected(self, moment: int) -> power_check.Expected:
        told = [*self.round.marks, *(mark for _, mark in self._marks)]
        return power_check.Expected(self.told(moment), refused=told)

    def told(self, moment: int) -> list[Mark]:
        return [*self.round.marks, *(mark for at, mark in self._marks if at < moment)]

    def images(self, numbers: Sequence[int]) -> Iterator[tuple[int, int, dict[str, bytes | None], random.Random]]:
        """Each with its number and moment, as they come in the trace, and with the dice for what follows."""
        dice = {number: self.dice(number) for number in numbers}
        moments = sorted((self.moment(dice[number]), number) for number in numbers)
        disk, taken = Disk(self.round.begun), 0
        for moment, number in moments:
            while taken < moment:
                disk.take(self.steps[taken])
                taken += 1
            yield number, moment, disk.left(dice[number], strict=is_strict(number)), dice[number]


def is_strict(number: int) -> bool:
    """Whether an image's names are lost as POSIX allows it, or as usual."""
    return number % 2 == 0


def is_searched(number: int) -> bool:
    """Whether an image is searched too, of both sorts: that costs more than all the rest."""
    return number // 2 % SEARCH_EVERY == 0


def _sort(step: Step, *, is_log: bool, is_flush: bool, is_meta: bool) -> str:
    if is_meta:
        return "meta"
    if is_log:
        return "flush" if is_flush else "log"
    if step.kind not in (Kind.WRITE, Kind.RESIZE, Kind.SYNC_BEGIN, Kind.SYNC_END):
        return "names"
    if "/search/" in step.path:
        return "flush of search" if is_flush else "search"
    return "other"


def written(image: dict[str, bytes | None], path: Path) -> None:
    """An image as the files of a machine that runs again: it has another boot id."""
    boots = boot_id().encode(), ANOTHER_BOOT.encode()
    marks = {name: content for name, content in image.items() if content is not None and "/index/mark" in name}
    write(image | {name: content.replace(*boots) for name, content in marks.items()}, path)


# --- One image -------------------------------------------------------------------------------------------------------


def checked(story: Story, moment: int, path: Path, dice: random.Random, *, search: bool) -> str | None:
    """What is wrong with an image, if anything."""
    try:
        power_check.check(path / "data", story.expected(moment), dice, search=search)
    except BaseException:  # A panic in Rust is no Exception.
        return traceback.format_exc()
    return None


class Checks:
    """Images being checked, each in a process of its own, which damage may end."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._running: list[tuple[multiprocessing.Process, Connection, Path, int]] = []

    def begin(self, story: Story, number: int, moment: int, path: Path, dice: random.Random) -> Iterator[Failure]:
        while len(self._running) >= self._jobs:
            yield from self._end(story, *self._running.pop(0))
        ours, theirs = multiprocessing.Pipe(duplex=False)
        search = is_searched(number)
        process = multiprocessing.get_context("fork").Process(
            target=_check_in_child, args=(theirs, story, moment, path, dice, search)
        )
        process.start()
        theirs.close()
        self._running.append((process, ours, path, number))

    def finish(self, story: Story) -> Iterator[Failure]:
        while self._running:
            yield from self._end(story, *self._running.pop(0))

    def _end(
        self, story: Story, process: multiprocessing.Process, said: Connection, path: Path, number: int
    ) -> Iterator[Failure]:
        try:
            why = said.recv()
        except EOFError:
            process.join()
            why = f"checking it ended with {process.exitcode}"
        process.join()
        shutil.rmtree(path)
        if why is not None:
            command = f"{sys.executable} -m tests.simulation.power_loss --again {story.path} --image {number}"
            yield Failure(command, why)


def _check_in_child(said: Connection, story: Story, moment: int, path: Path, dice: random.Random, search: bool) -> None:
    signal.alarm(CHECK_SECONDS)
    sys.stderr = (path / "stderr").open("w")
    said.send(checked(story, moment, path, dice, search=search))
    os._exit(0)  # Threads of the index are not waited for.


# --- A round ---------------------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """What happens in a round."""

    recordings: Sequence[Path]
    units: int
    kills: int


def play(path: Path, begun_from: dict[str, bytes | None], told: Round, plan: Plan) -> Story:
    """A new trace, of a bus that begins on such a disk."""
    path.mkdir()
    disk = path / "disk"
    written(begun_from, disk)
    dice = random.Random(f"{told.seed}/{told.number}")
    kept = msgspec.structs.replace(told, begun=Begun.of(disk.resolve()))
    (path / "round").write_bytes(msgspec.msgpack.encode(kept))
    trace = Trace(path / "trace", disk)
    command = ENGRAM if told.plant is None else power_plants.command(told.plant)
    said = texts(plan.recordings)
    first = dice.randrange(len(said))
    kills = [f"{dice.randint(200, 1_500)}+", str(dice.choice([dice.randint(1, 80), dice.randint(80, 3_000)]))]
    dice.shuffle(kills)
    with TracedBus(disk / "data", trace, command) as bus:
        asyncio.run(work(bus, trace, (said * 2)[first : first + plan.units], dice, kills[: plan.kills]))
        bus.end(signal.SIGTERM if dice.random() < 0.7 else signal.SIGKILL)
    trace.close()
    return Story(path)


class Run:
    """Rounds, one after the other, until there were so many images."""

    def __init__(self, path: Path, seed: int, plan: Plan, *, jobs: int, keeps: bool, plant: str | None = None) -> None:
        self.images = 0
        self.failures: list[Failure] = []
        self._keeps = keeps
        self._path = path
        self._seed = seed
        self._plan = plan
        self._checks = Checks(jobs)
        self._plant = plant

    def run(self, images: int, *, failures_max: int) -> None:
        begun: dict[str, bytes | None] = {}
        marks: list[Mark] = []
        number = 0
        while self.images < images and len(self.failures) < failures_max:
            about = Round(self._seed, number, Begun("", {}), marks, self._plant)
            story = play(self._path / f"round-{number}", begun, about, self._plan)
            count = min(ROUND_IMAGES, images - self.images)
            self._say(story, number)
            with tempfile.TemporaryDirectory(prefix="engram-images-", dir=_fast()) as files:
                self._check(story, count, Path(files), failures_max)
            *_, (_, moment, begun, _) = story.images([count])  # One more: on it goes on.
            marks = story.told(moment)
            if not self.failures and not self._keeps:
                shutil.rmtree(story.path)
            number += 1

    def _check(self, story: Story, count: int, files: Path, failures_max: int) -> None:
        for number, moment, image, dice in story.images(range(count)):
            path = files / str(number)
            written(image, path)
            self.images += 1
            self.failures += self._checks.begin(story, number, moment, path, dice)
            if len(self.failures) >= failures_max:
                break
        self.failures += self._checks.finish(story)

    def _say(self, story: Story, number: int) -> None:
        flushes = sum(step.kind is Kind.SYNC_END for step in story.steps)
        marks = sum(step.kind is Kind.MARK for step in story.steps)
        print(f"round {number}: {len(story.steps) - marks} steps, {flushes} flushes, {marks} answers", flush=True)


def _fast() -> str | None:
    """Images are read once: a disk in memory will do, where there is one with some room."""
    try:
        disk = os.statvfs("/dev/shm")
    except OSError:
        return None
    return "/dev/shm" if disk.f_bavail * disk.f_frsize > 256 * 2**20 else None


def again(path: Path, number: int) -> int:
    """Make one image again, leave it, and check a copy."""
    story = Story(path)
    if story.round.plant is not None:
        power_plants.plant(story.round.plant)
    ((_, moment, image, dice),) = story.images([number])
    left, copy = path / f"image-{number}", path / f"image-{number}.checked"
    for one in (left, copy):
        shutil.rmtree(one, ignore_errors=True)
        written(image, one)
    print(f"power was lost before step {moment}, {story.steps[moment : moment + 1]!r:.200}; the image is {left}")
    why = checked(story, moment, copy, dice, search=is_searched(number))
    print(why or "it is whole")
    return why is not None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--units", type=int, default=ROUND_UNITS, help="what is said in a round")
    parser.add_argument("--kills", type=int, choices=range(3), default=2, help="how often the bus is killed in a round")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--keep", type=Path, default=None, help="keep all traces there, not only those of wrong images")
    parser.add_argument("--recording", type=Path, action="append", help="what is said (the recordings of the package)")
    parser.add_argument("--plant", choices=sorted(power_plants.PLANTS), help="a bug, to see that it is found")
    parser.add_argument("--failures", type=int, default=5, help="end after so many")
    parser.add_argument("--again", type=Path, help="a kept round, of which one image is made again")
    parser.add_argument("--image", type=int, default=0)
    chosen = parser.parse_args(arguments)
    if chosen.again is not None:
        return again(chosen.again, chosen.image)
    seed = random.getrandbits(32) if chosen.seed is None else chosen.seed
    print(f"seed {seed}", flush=True)
    path = chosen.keep or Path(tempfile.mkdtemp(prefix="engram-power-"))
    path.mkdir(exist_ok=True)
    if chosen.plant is not None:
        power_plants.plant(chosen.plant)
    # Who waits seconds for a bus that is back wastes ours.
    backoff.BACKOFF_SECONDS_MAX = 0.2
    logging.getLogger("engram_client").setLevel(logging.ERROR)
    began = time.monotonic()
    plan = Plan(chosen.recording or sorted(SHIPPED.glob("*.jsonl")), chosen.units, chosen.kills)
    run = Run(path, seed, plan, jobs=chosen.jobs, keeps=chosen.keep is not None, plant=chosen.plant)
    run.run(chosen.images, failures_max=chosen.failures)
    for failure in run.failures:
        print(f"\n{failure.why}\n{failure.command}")
    seconds = time.monotonic() - began
    print(f"{run.images} images, {len(run.failures)} of them wrong, in {seconds:.0f} s (seed {seed})")
    if not run.failures and chosen.keep is None:
        shutil.rmtree(path)
    return bool(run.failures)


if __name__ == "__main__":
    sys.exit(main())
