"""`engram replay`: play a recorded session onto a bus, and look whether it arrives."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from engram_bus.cli.failures import Failure, told
from engram_bus.cli.options import URL_DEFAULT, Url

_DRAW_SECONDS = 0.1

if TYPE_CHECKING:
    from engram_bus.cli.replay.locks.contention import Contention
    from engram_bus.cli.replay.locks.workload import Workload
    from engram_bus.cli.replay.player import Player
    from engram_bus.cli.replay.recording import Recording
    from engram_bus.cli.replay.summary import Summary

_FILES = Path(__file__).parents[1] / "recordings" / "files.jsonl"


def replay(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE.jsonl",
            help="The recording: one step per line, as JSON.",
            show_default="with --locks, one that is shipped",
        ),
    ] = None,
    speed: Annotated[
        float, typer.Option(min=0, metavar="X", help="1 as it was recorded, 10 ten times as fast, 0 flat out.")
    ] = 1.0,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What its contexts begin with. The same again adds only what is missing; another name plays it anew. "
            "With --locks, always a new one.",
            show_default="the file's name",
        ),
    ] = None,
    context_from: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD", help="Which field names a step's context.", show_default="session, or else trace"
        ),
    ] = None,
    order: Annotated[
        Literal["context", "file"],
        typer.Option(help="Keep the recorded order within each context, or (slower) over the whole file."),
    ] = "context",
    max_pause: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Cut recorded pauses to this.",
            show_default="as recorded; with --locks 0.5, which makes an hour of five weeks",
        ),
    ] = None,
    locks: Annotated[
        bool, typer.Option("--locks", help="FILE holds file operations: play them as agents who lock what they write.")
    ] = False,
    progress: Annotated[bool, typer.Option(help="Draw a progress bar, on a terminal.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, for programs.")] = False,
    url: Url = URL_DEFAULT,
) -> None:
    """Play a recorded session onto a running bus, as the agents that appear in it.

    Every agent has its own connection. A subscriber in a process of its own watches; at the end the summary says how
    fast units went through and whether any was lost, repeated or out of order (then the exit code is 1). It can be
    interrupted and run again: what the bus already has is not added twice.

    A step needs "agent" and "text". Used where they are there: "type_hint" (message, tool_call, ...), "ts", "session",
    "trace", "tool_use_id" (relates a result to its call), "path" and "op" of a file change, "item", "event" and
    "depends_on" of a task. All else is kept as meta.

    With --locks a step needs "agent", "op" (read, edit or write) and "path". Who edits or writes stands in line for the
    file's lock, holds it until its next step of the recording (at most 30 s, and faster with --speed), appends the
    change under the lock's fence to a context that asks for fences, and releases; reads take nothing. At --speed 0 all
    agents work at once, each in its order, and hold nothing for longer than the append takes. A subscriber folds the
    lock units by itself; any broken promise (two holders, a write without a lock, a token that does not grow, one
    overtaken in line) is told, and the exit code is 1.
    """
    if not locks and file is None:
        raise Failure("name the recording (without one, only --locks has something to play)", code=2)
    if locks and (context_from is not None or order != "context"):
        raise Failure("--context-from and --order say how steps become contexts; --locks has one context", code=2)
    try:
        if locks:
            _play_locks(file or _FILES, url, speed=speed, run=run, max_pause=max_pause, drawn=progress, as_json=as_json)
        else:
            assert file is not None
            recording = _recording(file, run=run, context_from=context_from, order=order, max_pause=max_pause)
            _play(recording, url, speed=speed, drawn=progress, as_json=as_json)
    except KeyboardInterrupt:
        again = "the same command again plays it anew" if locks else "the same command again goes on where it was"
        raise Failure(f"interrupted; {again}", code=130) from None


def _recording(
    file: Path, *, run: str | None, context_from: str | None, order: Literal["context", "file"], max_pause: float | None
) -> "Recording":
    from engram_bus.cli.replay.recording import RecordingError, parse

    try:
        recording = parse(
            file.read_bytes(),
            run=run or file.stem,
            context_from=context_from,
            order=order,
            pause_seconds_max=max_pause,
        )
    except (OSError, RecordingError) as exc:
        raise Failure(f"{file}: {exc}", code=2) from exc
    if not recording.steps:
        raise Failure(f"{file} has no steps", code=2)
    return recording


def _play(recording: "Recording", url: str, *, speed: float, drawn: bool, as_json: bool) -> None:
    from engram_bus.cli.replay.player import Player

    with told(url, notices=True):
        summary = asyncio.run(_replay(url, recording, Player(url, recording, speed=speed), drawn))
    _print(summary, _rows(summary), as_json=as_json)
    if not summary.is_clean:
        raise Failure("units were lost, repeated or out of order")


def _play_locks(
    file: Path, url: str, *, speed: float, run: str | None, max_pause: float | None, drawn: bool, as_json: bool
) -> None:
    with told(url, notices=True):
        found = asyncio.run(_replay_locks(file, url, speed=speed, run=run, max_pause=max_pause, drawn=drawn))
    _print(found, _contention_rows(found), as_json=as_json)
    if not found.is_clean:
        raise Failure(f"promises were broken: {'; '.join(found.violations_told)}")


async def _replay(url: str, recording: "Recording", player: "Player", progress: bool) -> "Summary":
    from engram_bus.cli.replay.summary import summarise
    from engram_bus.cli.replay.watcher import watching
    from engram_client import Client

    async with Client(url, agent_id="engram-replay", max_retries=3) as bus:
        status = await bus.status()
    async with watching(url, after=status.cursor, prefix=f"{recording.run}/") as watcher:
        async with _drawn(lambda: len(player.played), len(recording.steps), "units", wanted=progress):
            await player.play()
        watched = await watcher.watched(until_seq=max(one.receipt.seq for one in player.played))
    return summarise(recording, player.played, watched, after_seq=status.head)


async def _replay_locks(
    file: Path, url: str, *, speed: float, run: str | None, max_pause: float | None, drawn: bool
) -> "Contention":
    from engram_bus.cli.replay.locks.agents import Agents
    from engram_bus.cli.replay.locks.play import context_of, play
    from engram_client import Client
    from engram_client.errors import VersionMoved

    async with Client(url, agent_id="engram-replay", max_retries=3) as bus:
        head = (await bus.status()).head
    workload = _workload(file, run=run or f"{file.stem}-{head}", max_pause=max_pause)
    context_id = context_of(workload.run)
    agents = Agents(url, workload, context_id=context_id, speed=speed)
    try:
        async with _drawn(lambda: agents.done, len(workload.edits), "edits", wanted=drawn):
            return await play(url, agents, workload)
    except VersionMoved as exc:
        raise Failure(f"the context {context_id!r} is there already; name another run with --run", code=2) from exc


def _workload(file: Path, *, run: str, max_pause: float | None) -> "Workload":
    from engram_bus.cli.replay.locks.workload import PAUSE_SECONDS_MAX, parse
    from engram_bus.cli.replay.recording import RecordingError

    try:
        workload = parse(
            file.read_bytes(), run=run, pause_seconds_max=PAUSE_SECONDS_MAX if max_pause is None else max_pause
        )
    except (OSError, RecordingError) as exc:
        raise Failure(f"{file}: {exc}", code=2) from exc
    if not workload.edits:
        raise Failure(f"{file} has no steps that write", code=2)
    return workload


@asynccontextmanager
async def _drawn(done: Callable[[], int], total: int, things: str, *, wanted: bool) -> AsyncIterator[None]:
    """With a progress bar, on a terminal."""
    drawing = asyncio.create_task(_draw(done, total, things, wanted and sys.stderr.isatty()))
    try:
        yield
    finally:
        drawing.cancel()
        await asyncio.wait([drawing])


async def _draw(done: Callable[[], int], total: int, things: str, wanted: bool) -> None:
    """The progress bar, until it is cancelled."""
    if not wanted:
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TextColumn(things), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        while True:
            bar.update(task, completed=done())
            await asyncio.sleep(_DRAW_SECONDS)


def _print(summary: "Summary | Contention", rows: Sequence[tuple[str, str]], *, as_json: bool) -> None:
    if as_json:
        import msgspec

        print(msgspec.json.encode(summary).decode())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows:
        table.add_row(name, value)
    Console(highlight=False, soft_wrap=True).print(table)


def _rows(summary: "Summary") -> list[tuple[str, str]]:
    who = f"{_count(summary.agents, 'agent')} in {_count(summary.contexts, 'context')}"
    known = f", {summary.replayed_units:,} were there from before" if summary.replayed_units else ""
    rows = [
        (
            "units",
            f"{summary.appended_units:,} by {who}{known}",
        ),
        ("speed", f"{summary.units_per_second:,} units/s over {summary.seconds:,.1f} s"),
    ]
    for name, found in (("delivered", summary.delivery_ms), ("acknowledged", summary.acknowledgement_ms)):
        if found is not None:
            rows.append((name, f"p50 {found.p50} ms, p99 {found.p99} ms, max {found.max} ms after it was sent"))
    for name, count in (("lost", summary.lost), ("repeated", summary.repeated), ("out of order", summary.out_of_order)):
        rows.append((name, _red_unless_0(count)))
    return rows


def _contention_rows(found: "Contention") -> list[tuple[str, str]]:
    waited = "" if found.wait_ms is None else f", p50 {found.wait_ms.p50} ms, p99 {found.wait_ms.p99} ms"
    refused = ", ".join(f"{count:,} {code}" for code, count in sorted(found.refusals.items())) or "0"
    who = f"{_count(found.agents, 'agent')} to {_count(found.files, 'file')}"
    return [
        ("edits", f"{found.edits:,} by {who}, of {_count(found.operations, 'operation')}"),
        ("speed", f"{found.units_per_second:,} units/s over {found.seconds:,.1f} s"),
        ("locks", f"{found.locks:,} taken"),
        ("waits", f"{found.waits:,}{waited}; longest queue {found.longest_queue:,}"),
        ("refused", refused),
        ("fenced writes", f"{found.written:,}"),
        ("violations", _red_unless_0(found.violations)),
    ]


def _red_unless_0(count: int) -> str:
    return f"[bold red]{count:,}[/]" if count else "[green]0[/]"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"
