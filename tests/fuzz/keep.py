"""Put into the corpus what a search left that reaches more than is kept: `python -m tests.fuzz.keep TARGET...`."""

import hashlib
import resource
import sys
from pathlib import Path

from tests.fuzz.edges import READERS, Edges
from tests.fuzz.found import CORPUS, LEFT, kept
from tests.fuzz.replay import made_world
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.world import World

INPUT_BYTES_MAX = 4_096
INPUTS_MAX = 20
"""Of each target, added at once: a run of them all takes seconds."""


def keep(name: str, world: World) -> list[Path]:
    """The smallest first; each must lead where none before it led."""
    target = TARGETS[name]
    edges = Edges(READERS if target.forks else ("/",))
    world.look = edges.look if target.forks else world.look
    for data in [*target.seeds(world), *kept(name).values()]:
        _grows(target, world, data, edges)
    left = sorted((LEFT / name / "corpus").glob("*"), key=lambda file: file.stat().st_size)
    added: list[Path] = []
    for data in (file.read_bytes() for file in left if file.stat().st_size <= INPUT_BYTES_MAX):
        if len(added) < INPUTS_MAX and _grows(target, world, data, edges):
            added.append(CORPUS / name / hashlib.sha1(data).hexdigest()[:12])
            added[-1].parent.mkdir(parents=True, exist_ok=True)
            added[-1].write_bytes(data)
    return added


def _grows(target: Target, world: World, data: bytes, edges: Edges) -> bool:
    before = len(edges.reached)
    try:
        if target.forks:
            target.check(world, data)
        else:
            with edges.traced():
                target.check(world, data)
    except Exception as exc:
        print(f"broken, and so not kept: {exc}")
        return False
    return len(edges.reached) > before


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for one in sys.argv[1:]:
        with made_world() as made:
            files = keep(one, made)
            print(f"{one}: {len(files)} inputs added, {sum(file.stat().st_size for file in files)} bytes")
