"""Run kept inputs again: `python -m tests.fuzz.replay [TARGET [FILE]]`, by default all that are read in forks."""

import argparse
import logging
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fuzz.found import kept
from tests.fuzz.targets import TARGETS
from tests.fuzz.world import World
from tests.simulation.damage_look import in_child


@contextmanager
def made_world() -> Iterator[World]:
    """A world, without what a bus says of the damage that it meets there."""
    world = World()
    logging.disable()
    try:
        yield world
    finally:
        logging.disable(logging.NOTSET)
        world.close()


def replay(world: World, name: str, inputs: dict[str, bytes]) -> list[str]:
    """What is wrong with each, by its name."""
    wrong = []
    for file, data in inputs.items():
        try:
            TARGETS[name].check(world, data)
        except Exception as exc:
            wrong.append(f"{name}/{file}: {type(exc).__name__}: {exc}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", choices=TARGETS, metavar="TARGET")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    names = [asked.name] if asked.name else [name for name, target in TARGETS.items() if target.forks]
    wrong: list[str] = []
    with made_world() as world:
        world.look = in_child
        for name in names:
            inputs = kept(name) if asked.file is None else {asked.file.name: asked.file.read_bytes()}
            wrong += replay(world, name, inputs)
            print(f"{name}: {len(inputs)} inputs")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
