"""`make fuzz TARGET=name SECONDS=600 SEED=n`: search one kind of stored thing, or all of them one after another.

Prints the seed, executions, how coverage grew and what inputs came to. A failing input is kept in build/fuzz/TARGET,
each broken promise once, and is run again by `python -m tests.fuzz.replay TARGET FILE`.
"""

import argparse
import os
import re
import subprocess
import sys
from random import Random

import msgspec

from tests.fuzz.found import END, LEFT, Ended
from tests.fuzz.targets import TARGETS

_COVERAGE = re.compile(r"(?:INITED|DONE)\s+cov: (\d+)")


def search(name: str, *, seconds: int, seed: int, is_quiet: bool) -> bool:
    """Whether no promise was broken, and the search did not end before its time."""
    loop = "forked" if TARGETS[name].forks else "covered"
    command = [sys.executable, "-m", f"tests.fuzz.{loop}", name, "--seconds", str(seconds), "--seed", str(seed)]
    print(f"== {name}: SEED={seed} SECONDS={seconds}", flush=True)
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false"}
    ended, coverage = None, []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as process:
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip()
            coverage += [int(found) for found in _COVERAGE.findall(line)]
            if line.startswith(END):
                ended = msgspec.json.decode(line.removeprefix(END), type=Ended)
            elif not is_quiet or line.startswith(("BROKEN", "  the input")):
                print(line, flush=True)
    if ended is None or process.returncode not in (0, 1):
        print(f"{name} ended with {process.returncode} before its time: the input is in {LEFT / name}", flush=True)
        return False
    first, last = (coverage[0], coverage[-1]) if coverage else (ended.first_edges, ended.edges)
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sorted(ended.outcomes.items()))
    executions = sum(ended.outcomes.values())
    print(f"{name}: {executions} executions, coverage {first} to {last}, {outcomes}; {ended.broken} promises broken")
    return ended.broken == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all, if none is named")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=Random().randrange(1, 2**31))
    parser.add_argument("--verbose", action="store_true", help="also what the loops themselves say")
    asked = parser.parse_args()
    if unknown := set(asked.names) - TARGETS.keys():
        parser.error(f"{', '.join(unknown)} is no target: there are {', '.join(TARGETS)}")
    names = asked.names or list(TARGETS)
    ends = [search(one, seconds=asked.seconds, seed=asked.seed, is_quiet=not asked.verbose) for one in names]
    return 0 if all(ends) else 1


if __name__ == "__main__":
    raise SystemExit(main())
