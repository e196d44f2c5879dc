"""`engram demo`: a bus in a temporary directory, recorded sessions played onto it, the live view, the summaries."""

import asyncio
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from engram_bus.cli.failures import Failure
from engram_bus.process import path_variables, python

if TYPE_CHECKING:
    from engram_bus.cli.replay.recording import Step

_RECORDINGS: Final = Path(__file__).parent / "recordings"
_FILES: Final = _RECORDINGS / "files.jsonl"
_PAUSE_SECONDS_MAX: Final = 300.0
"""Of recorded time: nights are slept through, the rhythm of the day stays."""
_STOP_SECONDS: Final = 10.0
_LOCKS_SECONDS: Final = 4.0
"""How long the second part may take: agents that edit the files of one repository."""
_SHOW_SECONDS: Final = 3.0
_STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WAITS_SHOWN: Final = 6
"""Lines of those who stand in line: enough to see what they look like."""

Show = Literal["fleet", "airline"]


def demo(
    recording: Annotated[
        Show, typer.Argument(help="A fleet of coding agents at their task tracker, or an airline's service desk.")
    ] = "fleet",
    seconds: Annotated[
        float, typer.Option(min=0, help="How long the session may take; 0 is flat out. Locks take a few more.")
    ] = 20.0,
) -> None:
    """Watch a bus at work: a real recorded session, played onto a bus of its own that is gone afterwards.

    Starts `engram serve` in a temporary directory, `engram tail` to show what happens, and `engram replay`; then, with
    `engram replay --locks`, agents that edit the files of one repository and wait for each other's locks.
    """
    asyncio.run(_until_stopped(_shown(_RECORDINGS / f"{recording}.jsonl", seconds)))


async def _until_stopped(showing: Coroutine[Any, Any, None]) -> None:
    """Until it ends, or a signal ends it: in order, and that goes on when more of them come."""
    task, loop = asyncio.ensure_future(showing), asyncio.get_running_loop()
    stops: list[int] = []

    def stop(number: int) -> None:
        if not stops:
            task.cancel()
        stops.append(number)

    for number in _STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop, number)
    try:
        await task
    except asyncio.CancelledError:
        if not stops:
            raise
        raise Failure("stopped", code=128 + stops[0]) from None


async def _shown(file: Path, seconds: float) -> None:
    with TemporaryDirectory(prefix="engram-demo-") as directory:
        await _show(file, directory, seconds)
        async with _started("verify", directory) as verifying:
            if await verifying.wait():
                raise Failure("the log of the demo is not whole")


async def _show(file: Path, directory: str, seconds: float) -> None:
    flags = ("--port", "0", "--data-dir", directory, "--log-level", "warning", "--workers", "0")
    async with _started("serve", *flags, stdout=PIPE) as bus:
        assert bus.stdout is not None, "it is a pipe"
        url = (await bus.stdout.readline()).decode().rpartition(" ")[2].strip()
        if not url:
            raise Failure("the bus did not start")
        print(f"A bus at {url} in {directory}. Onto it goes {file.stem}.jsonl. Ctrl-C stops everything.\n", flush=True)
        print(f"\n{await _play_session(file, url, seconds)}")
        print(
            "Now a team's agents edit one repository. Who edits a file locks it first; these have to wait:\n",
            flush=True,
        )
        print(f"\n{await _play_locks(url, min(seconds, _LOCKS_SECONDS))}", flush=True)


async def _play_session(file: Path, url: str, seconds: float) -> str:
    """The summary, after every unit has been shown."""
    steps = _steps(file)
    speed = max(step.due_seconds for step in steps) / seconds if seconds else 0.0
    # What tail says on stderr is how to go on after it, and that is not possible here.
    async with _started("tail", "--after", "0", "--count", f"{len(steps)}", "--url", url, stderr=DEVNULL) as tail:
        paced = ("--max-pause", f"{_PAUSE_SECONDS_MAX}", "--speed", f"{speed}")
        summary = await _replayed(f"{file}", *paced, "--url", url)
        try:
            await asyncio.wait_for(tail.wait(), _STOP_SECONDS)
        except TimeoutError:
            raise Failure("not every unit was shown") from None
        return summary


def _steps(file: Path) -> "Sequence[Step]":
    from engram_bus.cli.replay.recording import parse

    return parse(file.read_bytes(), run=file.stem, pause_seconds_max=_PAUSE_SECONDS_MAX).steps


async def _play_locks(url: str, seconds: float) -> str:
    """The figures, after the first who had to wait have been shown."""
    from engram_bus.cli.replay.locks.play import context_of
    from engram_bus.cli.replay.locks.workload import parse

    workload = parse(_FILES.read_bytes(), run=_FILES.stem)
    speed = workload.seconds / seconds if seconds else 0.0
    shown = ("--after", "0", "--kind", "lock.queued", "--count", f"{_WAITS_SHOWN}")
    async with _started("tail", context_of(workload.run), *shown, "--url", url, stderr=DEVNULL) as tail:
        figures = await _replayed("--locks", "--run", workload.run, "--speed", f"{speed}", "--url", url)
        try:
            await asyncio.wait_for(tail.wait(), _SHOW_SECONDS)
        except TimeoutError:  # there were fewer
            pass
        return figures


async def _replayed(*arguments: str) -> str:
    async with _started("replay", "--no-progress", *arguments, stdout=PIPE) as playing:
        said, _ = await playing.communicate()
    if playing.returncode:
        raise Failure(f"the replay failed\n{said.decode()}")
    return said.decode()


@asynccontextmanager
async def _started(*arguments: str, stdout: int | None = None, stderr: int | None = None) -> AsyncIterator[Process]:
    """Another command of ours beside this one; it is ended by its pid, whatever happens."""
    process = await asyncio.create_subprocess_exec(
        *python("engram_bus.cli", *arguments),
        stdout=stdout,
        stderr=stderr,
        env=path_variables(),
        start_new_session=True,  # a Ctrl-C is ours, and all are ended in order
    )
    try:
        yield process
    finally:
        await _end(process)


async def _end(process: Process) -> None:
    try:
        process.terminate()
    except ProcessLookupError:  # it has ended
        pass
    try:
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
