"""Read a log's records in a process of its own, beside the one that writes, which damage may end without ending ours.

for seq, raw in raws_beside(path / "log", after=0, last=1_000):
    ...  # bytes, or a `Wrong` in the place of a record that cannot be read

The pages are bounded and each is read in a transaction of its own, so a bus that is running is not held up. Where a
torn map ends the child, the next one reads record by record up to the one that did it, and the one after goes on behind
it.
"""

import contextlib
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import msgspec

from engram_bus.errors import DataDirectoryError
from engram_bus.log.directory import LogHeader
from engram_bus.log.lmdb import LogReader
from engram_bus.log.record import RecordError
from engram_bus.process import path_variables, python

_FRAME = struct.Struct(">QBI")
"""The seq, what it is, and how many bytes of it follow."""
_RAW, _WRONG = 0, 1
_PAGE_UNITS = 500
_END_SECONDS = 10.0
_DEATHS_MAX = 100
"""Records that may end a reader: of a file that is worse than that, the rest is taken as lost."""


class Wrong(NamedTuple):
    """Why a record cannot be read."""

    what: str


class Beginning(msgspec.Struct, frozen=True):
    """What a log says of itself before its first record is read; each None where it cannot be read."""

    header: LogHeader | None = None
    head: int | None = None
    wrong: str = ""


def beginning_beside(path: Path) -> Beginning:
    """The header and the head of the log in `path`, its environment."""
    asked = _ask(path, "beginning")
    with asked:
        assert asked.stdout is not None
        said = asked.stdout.read()
    if asked.returncode == 0:
        return msgspec.json.decode(said, type=Beginning)
    _forget_dead_readers(path)
    return Beginning(wrong=f"{path} cannot be read: {_ending(asked)}")


def raws_beside(path: Path, *, after: int, last: int) -> Iterator[tuple[int, bytes | Wrong]]:
    """The raw records with after < seq <= last of the log in `path`, each exactly once and in order."""
    seq, deaths, page_units = after, 0, _PAGE_UNITS
    while seq < last:
        child = _ask(path, str(seq), str(last if page_units > 1 else min(seq + _PAGE_UNITS, last)), str(page_units))
        assert child.stdout is not None
        try:
            for found in _frames(child.stdout):
                seq = found[0]
                yield found
        finally:
            child.stdout.close()
            _end(child, path)
        if child.returncode == 0:
            page_units = _PAGE_UNITS
            continue
        _forget_dead_readers(path)
        if page_units > 1:
            page_units = 1  # Once more, to see which record it was.
            continue
        deaths, page_units = deaths + 1, _PAGE_UNITS
        reached = seq + 1 if deaths < _DEATHS_MAX else last
        for lost in range(seq + 1, reached + 1):
            yield lost, Wrong(f"cannot be read: {_ending(child)}")
        seq = reached


def _frames(stream: IO[bytes]) -> Iterator[tuple[int, bytes | Wrong]]:
    """What the child said, up to where it ended."""
    while len(head := stream.read(_FRAME.size)) == _FRAME.size:
        seq, kind, size = _FRAME.unpack(head)
        content = stream.read(size)
        if len(content) < size:
            return
        yield seq, content if kind == _RAW else Wrong(content.decode())


def _ask(path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - ourselves, with a path as one argument
        python("engram_bus.log.beside", str(path), *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=path_variables(),
    )


def _end(child: subprocess.Popen[bytes], path: Path) -> None:
    """Let it end by itself, for it notices that nobody listens: killed, it would leave its place among the readers."""
    try:
        child.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
        _forget_dead_readers(path)


def _ending(child: subprocess.Popen[bytes]) -> str:
    code = child.returncode
    return f"reading it ended in {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"


def _forget_dead_readers(path: Path) -> None:
    """The child died while it read: a running bus could not use again the pages it stood on."""
    with _ask(path, "forget-dead-readers"):
        pass


# --- In the child ----------------------------------------------------------------------------------------------------


def _say_beginning(path: Path, out: IO[bytes]) -> None:
    try:
        reader = LogReader(path)
    except DataDirectoryError as exc:
        out.write(msgspec.json.encode(Beginning(wrong=str(exc))))
        return
    header, head, wrong = None, None, ""
    try:
        header = reader.header()
    except RecordError as exc:
        wrong = f"the header {exc}"
    wrong = wrong or reader.segment_damage
    try:
        head = reader.head()
    except RecordError as exc:
        wrong = f"the log {exc}"
    out.write(msgspec.json.encode(Beginning(header, head, wrong)))


def _say_raws(path: Path, after: int, last: int, page_units: int, out: IO[bytes]) -> None:
    reader = None
    why = ""
    try:
        reader = LogReader(path)
    except DataDirectoryError as exc:
        why = str(exc)
    seq = after
    while seq < last:
        if reader is None:
            seq += 1
            _say(out, seq, _WRONG, why.encode())
            continue
        try:
            for at, raw in reader.raws(last, after=seq, page_units=page_units):
                _say(out, at, _RAW, raw)
                seq = at
                if page_units == 1:
                    out.flush()
        except RecordError as exc:
            seq += 1
            _say(out, seq, _WRONG, str(exc).encode())


def _say(out: IO[bytes], seq: int, kind: int, content: bytes) -> None:
    out.write(_FRAME.pack(seq, kind, len(content)))
    out.write(content)


def _main(arguments: list[str], out: IO[bytes]) -> None:
    match arguments:
        case [path, "beginning"]:
            _say_beginning(Path(path), out)
        case [path, "forget-dead-readers"]:
            LogReader(Path(path)).forget_dead_readers()
        case [path, after, last, page_units]:
            _say_raws(Path(path), int(after), int(last), int(page_units), out)
        case _:
            raise SystemExit("usage: python -m engram_bus.log.beside LOG_DIR AFTER LAST PAGE_UNITS")
    out.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # If damage ends it, that is told, and leaves no core file.
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # It ends with who asked, and says nothing of its own.
    with contextlib.suppress(BrokenPipeError):
        _main(sys.argv[1:], sys.stdout.buffer)
