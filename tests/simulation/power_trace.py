"""What a bus did to its files, as `tests/faults/trace.c` records it: the library, its environment, its trace read."""

import atexit
import ctypes
import os
import shlex
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

SOURCE = Path(__file__).parents[1] / "faults" / "trace.c"
_HEAD = struct.Struct("<IIQQII")


class Kind(IntEnum):
    """As in the library."""

    CREATE = 1
    MKDIR = 2
    WRITE = 3
    RESIZE = 4
    SYNC_BEGIN = 5
    SYNC_END = 6
    RENAME = 7
    REMOVE = 8
    LINK = 9
    MARK = 10
    ESCAPE = 11


class NotTraceable(Exception):
    """Why nothing can be traced here."""


class Step(NamedTuple):
    """One record. `number` is an offset, a size or the number of a flush; `data` what was written, or a second path."""

    kind: Kind
    process: int
    inode: int
    number: int
    path: str
    data: bytes


@cache
def library() -> Path:
    """The library, compiled once for this process. Raises NotTraceable."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        raise NotTraceable(f"needs a C compiler ({compiler[0]}) for {SOURCE.name}: `make tools-faults` installs one")
    built = Path(tempfile.mkdtemp(prefix="engram-trace-")) / "trace.so"
    flags = [
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-shared",
        "-fPIC",
        "-o",
        str(built),
        str(SOURCE),
        "-ldl",
        "-lpthread",
    ]
    subprocess.run([*compiler, *flags], check=True)
    atexit.register(shutil.rmtree, built.parent)
    _try(built)
    return built


def _try(built: Path) -> None:
    """Raises NotTraceable where the kernel, or who confines us, has no filters of system calls."""
    nothing = {
        "LD_PRELOAD": str(built),
        "POWER_TRACE": str(built.parent / "trace"),
        "POWER_ROOT": str(built.parent / "no"),
    }
    assert ctypes.CDLL(str(built)).make_trace(nothing["POWER_TRACE"].encode()) == 0
    tried = subprocess.run(["true"], env=os.environ | nothing, stderr=subprocess.PIPE, text=True)
    if tried.returncode != 0:
        raise NotTraceable(f"needs a kernel that lets a process filter its system calls: {tried.stderr.strip()}")


class Marks:
    """Notes in a trace what somebody was told by now: between the steps before it and those after it."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, said: Any) -> None:
        data = msgspec.json.encode(said)
        os.write(self._file, _HEAD.pack(Kind.MARK, os.getpid(), 0, 0, 0, len(data)) + data)

    def close(self) -> None:
        os.close(self._file)


class Trace:
    """A trace that is being written, of what happens below a directory."""

    def __init__(self, file: Path, root: Path) -> None:
        self._file = file
        self._root = root.resolve()
        failed = ctypes.CDLL(str(library())).make_trace(str(file).encode())
        assert failed == 0, os.strerror(failed)
        self.mark = Marks(file)

    def environment(self, *, kill: str | None = None) -> dict[str, str]:
        """What a process is started with whose steps are traced, and which is killed when it has done so many of them
        ("9"), or then between the write and the flush of a write that is both ("9+")."""
        killed = {} if kill is None else {"POWER_KILL": kill}
        return {"LD_PRELOAD": str(library()), "POWER_TRACE": str(self._file), "POWER_ROOT": str(self._root), **killed}

    def close(self) -> None:
        self.mark.close()
        Path(f"{self._file}.lock").unlink()


def steps(file: Path) -> Iterator[Step]:
    """All of a trace, in order. Raises where something may have escaped it."""
    raw = memoryview(file.read_bytes())
    at = 0
    while at < len(raw):
        kind, process, inode, number, path_bytes, data_bytes = _HEAD.unpack_from(raw, at)
        path_at = at + _HEAD.size
        data_at = path_at + path_bytes
        at = data_at + data_bytes
        step = Step(
            Kind(kind), process, inode, number, os.fsdecode(bytes(raw[path_at:data_at])), bytes(raw[data_at:at])
        )
        if step.kind is Kind.ESCAPE:
            raise AssertionError(f"what happens to {step.path} is not traced: {step.data.decode()}")
        yield step
