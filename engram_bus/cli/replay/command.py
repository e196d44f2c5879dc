"""`engram replay`: play a recorded session onto a bus, and look whether it arrives."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from engram_bus.cli.failures import Failure, told
from engram_bus.cli.options import URL_DEFAULT, Url

_DRAW_SECONDS = 0.1

if TYPE_CHECKING:
    from engram_bus.cli.replay.player import Player
    from engram_bus.cli.replay.recording import Recording
    from engram_bus.cli.replay.summary import Summary


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="The recording: one step per line, as JSON.")],
    speed: Annotated[
        float, typer.Option(min=0, metavar="X", help="1 as it was recorded, 10 ten times as fast, 0 flat out.")
    ] = 1.0,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What its contexts begin with. The same again adds only what is missing; another name plays it anew.",
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
        typer.Option(min=0, metavar="SECONDS", help="Cut recorded pauses to this.", show_default="as recorded"),
    ] = None,
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
    """
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
    from engram_bus.cli.replay.player import Player

    try:
        with told(url, notices=True):
            summary = asyncio.run(_replay(url, recording, Player(url, recording, speed=speed), progress))
    except KeyboardInterrupt:
        raise Failure("interrupted; the same command again goes on where it was", code=130) from None
    _print(summary, as_json=as_json)
    if not summary.is_clean:
        raise Failure("units were lost, repeated or out of order")


async def _replay(url: str, recording: "Recording", player: "Player", progress: bool) -> "Summary":
    from engram_bus.cli.replay.summary import summarise
    from engram_bus.cli.replay.watcher import watching
    from engram_client import Client

    async with Client(url, agent_id="engram-replay", max_retries=3) as bus:
        status = await bus.status()
    async with watching(url, after=status.cursor, prefix=f"{recording.run}/") as watcher:
        drawing = asyncio.create_task(_draw(player, len(recording.steps), progress and sys.stderr.isatty()))
        try:
            await player.play()
        finally:
            drawing.cancel()
            await asyncio.wait([drawing])
        watched = await watcher.watched(until_seq=max(one.receipt.seq for one in player.played))
    return summarise(recording, player.played, watched, after_seq=status.head)


async def _draw(player: "Player", total: int, wanted: bool) -> None:
    """The progress bar, until it is cancelled."""
    if not wanted:
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TextColumn("units"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        while True:
            bar.update(task, completed=len(player.played))
            await asyncio.sleep(_DRAW_SECONDS)


def _print(summary: "Summary", *, as_json: bool) -> None:
    if as_json:
        import msgspec

        print(msgspec.json.encode(summary).decode())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    for name, value in _rows(summary):
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
        rows.append((name, f"[bold red]{count:,}[/]" if count else "[green]0[/]"))
    return rows


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'s' * (number != 1)}"
