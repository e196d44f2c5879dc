"""`engram demo`: a bus in a temporary directory, recorded sessions played onto it, the live view, the summaries."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE
from tempfile import TemporaryDirectory
from typing import Annotated, Final, Literal

import typer

from engram_bus.cli.failures import Failure
from engram_bus.process import python

# S603 asks whether arguments can be trusted: these processes are ourselves, and no shell is between.
_RECORDINGS: Final = Path(__file__).parent / "recordings"
_FILES: Final = _RECORDINGS / "files.jsonl"
_PAUSE_SECONDS_MAX: Final = 300.0
"""Of recorded time: nights are slept through, the rhythm of the day stays."""
_STOP_SECONDS: Final = 10.0
_LOCKS_SECONDS: Final = 4.0
"""How long the second part may take: agents that edit the files of one repository."""
_SHOW_SECONDS: Final = 3.0
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
    file = _RECORDINGS / f"{recording}.jsonl"
    with TemporaryDirectory(prefix="engram-demo-") as directory:
        try:
            _show(file, directory, seconds)
        except KeyboardInterrupt:
            raise Failure("stopped", code=130) from None
        _engram("verify", directory)


def _show(file: Path, directory: str, seconds: float) -> None:
    flags = ("--port", "0", "--data-dir", directory, "--log-level", "warning", "--workers", "0")
    with _started("serve", *flags, stdout=PIPE) as bus:
        assert bus.stdout is not None, "it is a pipe"
        url = bus.stdout.readline().rpartition(" ")[2].strip()
        if not url:
            raise Failure("the bus did not start")
        print(f"A bus at {url} in {directory}. Onto it goes {file.stem}.jsonl. Ctrl-C stops everything.\n", flush=True)
        print(f"\n{_play_session(file, url, seconds)}")
        print(
            "Now a team's agents edit one repository. Who edits a file locks it first; these have to wait:\n",
            flush=True,
        )
        print(f"\n{_play_locks(url, min(seconds, _LOCKS_SECONDS))}")


def _play_session(file: Path, url: str, seconds: float) -> str:
    """The summary, after every unit has been shown."""
    from engram_bus.cli.replay.recording import parse

    steps = parse(file.read_bytes(), run=file.stem, pause_seconds_max=_PAUSE_SECONDS_MAX).steps
    speed = max(step.due_seconds for step in steps) / seconds if seconds else 0.0
    # What tail says on stderr is how to go on after it, and that is not possible here.
    with _started("tail", "--after", "0", "--count", f"{len(steps)}", "--url", url, stderr=DEVNULL) as tail:
        summary = _replayed(f"{file}", "--max-pause", f"{_PAUSE_SECONDS_MAX}", "--speed", f"{speed}", "--url", url)
        tail.wait(_STOP_SECONDS)
        return summary


def _play_locks(url: str, seconds: float) -> str:
    """The figures, after the first who had to wait have been shown."""
    from engram_bus.cli.replay.locks.play import context_of
    from engram_bus.cli.replay.locks.workload import parse

    workload = parse(_FILES.read_bytes(), run=_FILES.stem)
    speed = workload.seconds / seconds if seconds else 0.0
    shown = ("--after", "0", "--kind", "lock.queued", "--count", f"{_WAITS_SHOWN}")
    with _started("tail", context_of(workload.run), *shown, "--url", url, stderr=DEVNULL) as tail:
        figures = _replayed("--locks", "--run", workload.run, "--speed", f"{speed}", "--url", url)
        try:
            tail.wait(_SHOW_SECONDS)
        except subprocess.TimeoutExpired:  # there were fewer
            pass
        return figures


def _replayed(*arguments: str) -> str:
    played = subprocess.run(_command("replay", "--no-progress", *arguments), stdout=PIPE, text=True, check=False)  # noqa: S603
    if played.returncode:
        raise Failure(f"the replay failed\n{played.stdout}")
    return played.stdout


@contextmanager
def _started(*arguments: str, stdout: int | None = None, stderr: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """Another command of ours beside this one; it is ended by its pid, whatever happens."""
    process = subprocess.Popen(_command(*arguments), stdout=stdout, stderr=stderr, text=True)  # noqa: S603
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _engram(*arguments: str) -> None:
    subprocess.run(_command(*arguments), check=True)  # noqa: S603


def _command(*arguments: str) -> list[str]:
    return python("engram_bus.cli", *arguments)
