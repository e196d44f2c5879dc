"""What agents said, as many texts as one wants: those of a recording, and more made of them."""

import json
import random
from collections.abc import Iterator, Sequence

from benchmarks.harness import ROOT

RECORDED = ROOT.parent / "shared" / "data" / "entire_dev.jsonl"
SHIPPED = ROOT / "engram_bus" / "cli" / "recordings" / "fleet.jsonl"
_SEED = 4


def recorded() -> list[str]:
    """The texts of three days of coding agents where their recording lies beside the repository, else those of the
    recording that ships."""
    path = RECORDED if RECORDED.exists() else SHIPPED
    lines = path.read_text(encoding="utf-8").splitlines()
    return [text for line in lines if (text := json.loads(line).get("text", "").strip())]


def grown(texts: Sequence[str], size: int) -> Iterator[str]:
    """As many: first the texts themselves, then the first half of one and the second half of another, drawn with a
    fixed seed."""
    draw = random.Random(_SEED)
    yield from texts[:size]
    for _ in range(size - len(texts)):
        first, last = draw.choice(texts), draw.choice(texts)
        yield f"{first[: len(first) // 2]} {last[len(last) // 2 :]}"


def remembered(texts: Sequence[str], count: int) -> list[str]:
    """Three to six words that stand together in one of the texts: what someone remembers of it."""
    draw = random.Random(_SEED + 1)
    queries: list[str] = []
    while len(queries) < count:
        words = [word for word in draw.choice(texts).split() if word.isalpha()]
        if len(words) > 6:
            first = draw.randrange(len(words) - 6)
            queries.append(" ".join(words[first : first + draw.randint(3, 6)]))
    return queries
