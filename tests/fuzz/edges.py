"""Which lines of the bus followed which: what tells our own loop, and who keeps a corpus, that an input is new."""

import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import engram_bus
from tests.simulation.damage_look import Job, Seen, in_child, look

_HERE = str(Path(engram_bus.__file__).parent)
READERS = ("/backup/", "/bus/writer.py", "/embedded.py", "/log/", "/projections/", "/verify.py")
"""Who reads files. The rest does the same whatever is in them, and would take half of the time."""
_Trace = Callable[[FrameType, str, Any], Any]


class Edges:
    """What was reached: a number for each pair of lines, the same in every process."""

    def __init__(self, traced: tuple[str, ...] = READERS) -> None:
        self._traced = traced
        self.reached: set[int] = set()
        self._names: dict[CodeType, int | None] = {}

    @contextmanager
    def traced(self) -> Iterator[None]:
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(None)

    def _enter(self, frame: FrameType, event: str, argument: object) -> _Trace | None:
        code = frame.f_code
        if code not in self._names:
            file = code.co_filename.removeprefix(_HERE)
            self._names[code] = (
                zlib.crc32(f"{file} {code.co_qualname}".encode()) if file.startswith(self._traced) else None
            )
        name = self._names[code]
        if name is None:
            return None
        last, add = frame.f_lineno, self.reached.add

        def line(frame: FrameType, event: str, argument: object) -> _Trace:
            nonlocal last
            at = frame.f_lineno
            add(name ^ last << 32 ^ at << 48)
            last = at
            return line

        return line

    def look(self, job: Job) -> Seen:
        """Look in a fork, and take over what it reached. One that died reached only its death."""
        left = Path(f"{job.path}.edges")

        def traced(job: Job) -> Seen:
            known, self.reached = self.reached, set()
            with self.traced():
                seen = look(job)
            left.write_bytes(b"".join(edge.to_bytes(8, "big") for edge in self.reached - known))
            return seen

        seen = in_child(job, traced)
        if left.exists():
            raw = left.read_bytes()
            self.reached.update(int.from_bytes(raw[at : at + 8], "big") for at in range(0, len(raw), 8))
            left.unlink()
        self.reached.add(zlib.crc32(f"{job.what} {seen.outcome}".encode()))
        return seen
