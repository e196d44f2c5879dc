"""A coverage-guided loop of our own, for inputs that may end the process that reads them: each is read in forks, which
tell which lines of the bus they reached. What LMDB's or tantivy's own code does with them is not seen.
"""

import argparse
import gc
import time
from random import Random

import msgspec

from tests.fuzz.edges import Edges
from tests.fuzz.found import END, Ended, Found, kept
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.world import World

_STEP_BYTES = 6
_TELL_SECONDS = 30
_FAVOURED = 16
"""Half of the inputs come of so many that were kept last: what is new leads further."""


def run(name: str, *, seconds: float, seed: int) -> Found:
    """Search for so long, and tell what came of it."""
    target, found, dice = TARGETS[name], Found(name), Random(seed)
    world, edges = World(), Edges()
    world.look = edges.look
    corpus: list[bytes] = []
    began = told = time.monotonic()
    try:
        for data in [*target.seeds(world), *kept(name).values()]:
            _try(target, world, data, found, edges, corpus)
        first = len(edges.reached)
        gc.freeze()  # So that a fork does not copy what it never touches.
        while (now := time.monotonic()) < began + seconds:
            _try(target, world, _mutated(corpus, dice), found, edges, corpus)
            if now > told + _TELL_SECONDS:
                told = now
                print(
                    f"{found.outcomes.total()} executions, {len(edges.reached)} edges, {len(corpus)} kept", flush=True
                )
    finally:
        world.close()
    _leave(found, corpus)
    ended = Ended(found.outcomes, len(found.failures), first, len(edges.reached))
    print(END + msgspec.json.encode(ended).decode(), flush=True)
    return found


def _try(target: Target, world: World, data: bytes, found: Found, edges: Edges, corpus: list[bytes]) -> None:
    before = len(edges.reached)
    try:
        found.outcomes[target.check(world, data)] += 1
    except Exception as exc:
        found.failed(data, exc)
        return
    if len(edges.reached) > before or not corpus:
        corpus.append(data)


def _mutated(corpus: list[bytes], dice: Random) -> bytes:
    pool = corpus[-_FAVOURED:] if dice.random() < 0.5 else corpus
    data = bytearray(dice.choice(pool))
    for _ in range(1 << dice.randrange(4)):
        _mutate(data, dice, dice.choice(corpus))
    return bytes(data)


def _mutate(data: bytearray, dice: Random, other: bytes) -> None:
    at = dice.randrange(len(data)) if data else 0
    step = 1 + at // _STEP_BYTES * _STEP_BYTES
    match dice.randrange(7):
        case 0 if data:
            data[at] ^= 1 << dice.randrange(8)
        case 1 if data:
            data[at] = dice.randrange(256)
        case 2:
            del data[step : step + _STEP_BYTES]
        case 3:
            data[step:step] = dice.randbytes(_STEP_BYTES)
        case 4:
            data[step:step] = other[1 : 1 + _STEP_BYTES]
        case 5 if data:
            data[at] = (data[at] + dice.choice((-1, 1))) % 256
        case _:
            data[step : step + _STEP_BYTES] = dice.randbytes(_STEP_BYTES)


def _leave(found: Found, corpus: list[bytes]) -> None:
    folder = found.folder / "corpus"
    folder.mkdir(exist_ok=True)
    for number, data in enumerate(corpus):
        (folder / f"{number:05}").write_bytes(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[name for name, target in TARGETS.items() if target.forks])
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    asked = parser.parse_args()
    raise SystemExit(bool(run(asked.name, seconds=asked.seconds, seed=asked.seed).failures))
