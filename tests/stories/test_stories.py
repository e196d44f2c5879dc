"""Conversations of several parties, each a text file that is played and compared.

A file is a list of steps: comments (`#`), one or more lines that are said in one turn, `----`, what came of them, an
empty line. `pytest tests/stories --rewrite` writes what comes of them into the files; read the difference like code.
The words are those of `stage.py`.
"""

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.stories.stage import Stage

STORIES = sorted(Path(__file__).parent.glob("*.txt"))
LINE = "----"


class Step(NamedTuple):
    comments: list[str]
    said: list[str]
    came: list[str]

    def __str__(self) -> str:
        return "\n".join([*self.comments, *self.said, *([LINE, *self.came] if self.said else [])])


def steps(text: str) -> Iterator[Step]:
    for part in text.strip().split("\n\n"):
        lines = iter(part.splitlines())
        before = list(takewhile(lambda line: line != LINE, lines))
        said = [line for line in before if not line.startswith("#")]
        yield Step([line for line in before if line.startswith("#")], said, list(lines))


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("story", STORIES, ids=lambda path: path.stem)
async def test_it_goes_as_told(story: Path, where: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    stage = Stage(tmp_path if where == "disk" else None)
    played: list[Step] = []
    try:
        for step in steps(story.read_text()):
            came = await stage.play(step.said) if step.said else []
            played.append(step._replace(came=came))
            if not pytestconfig.getoption("rewrite"):
                assert played[-1] == step, f"{story.name} at: {' / '.join(step.said)}"
    finally:
        await stage.close()
    if pytestconfig.getoption("rewrite"):
        story.write_text("\n\n".join(map(str, played)) + "\n")


def test_there_are_stories() -> None:
    assert STORIES
