"""How far a long command is, on a terminal only: one line on stderr that is gone when it ends."""

import sys
from types import TracebackType
from typing import Self

_CLEAR = "\r\x1b[K"


class Progress:
    """Called with a seq and the last one; says nothing where stderr is no terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._is_shown = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __call__(self, seq: int, last: int) -> None:
        if self._is_shown:
            print(f"{_CLEAR}{self._what}: {seq:,} of {last:,} units", end="", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_shown:
            print(_CLEAR, end="", file=sys.stderr, flush=True)
