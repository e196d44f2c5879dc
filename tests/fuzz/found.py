"""Where fuzzing leaves what it found: failing inputs by name, each broken promise once."""

import hashlib
import re
import traceback
from collections import Counter
from pathlib import Path

import msgspec

CORPUS = Path(__file__).parent / "corpus"
LEFT = Path("build/fuzz")
END = "ENDED "
"""Before what a search came to, as it tells who started it."""


class Ended(msgspec.Struct, frozen=True):
    """How many inputs came to what, and how many promises were broken."""

    outcomes: dict[str, int]
    broken: int
    first_edges: int = 0
    edges: int = 0


class Found:
    """What came of the inputs of one run."""

    def __init__(self, target: str) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failures: dict[str, Path] = {}
        self.folder = LEFT / target
        self.folder.mkdir(parents=True, exist_ok=True)

    def failed(self, data: bytes, exc: BaseException) -> None:
        """Keep the input, if nothing else broke in the same place."""
        self.outcomes["broken"] += 1
        innermost = traceback.extract_tb(exc.__traceback__)[-1]
        said = re.sub(r"\d+", "N", f"{type(exc).__name__}: {exc}")[:120]
        name = f"{Path(innermost.filename).name}:{innermost.lineno} {said}"
        if name not in self.failures:
            file = self.folder / f"failed-{hashlib.sha1(data).hexdigest()[:12]}"
            file.write_bytes(data)
            self.failures[name] = file
            print(f"BROKEN {type(exc).__name__}: {exc}\n  the input is in {file}", flush=True)
            (file.with_suffix(".txt")).write_text("".join(traceback.format_exception(exc)))


def kept(target: str) -> dict[str, bytes]:
    """The regression corpus: inputs by their names."""
    return {file.name: file.read_bytes() for file in sorted((CORPUS / target).glob("*"))}
