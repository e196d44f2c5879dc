"""libFuzzer's search, by atheris: the modules of the bus are instrumented, and what reaches more of them is kept."""

import argparse
import logging
import re
import sys
import time
from functools import cache

import atheris
import msgspec

with atheris.instrument_imports(include=["engram_bus"]):
    from tests.fuzz.found import CORPUS, END, Ended, Found
    from tests.fuzz.targets import TARGETS
    from tests.fuzz.world import World

_INPUT_BYTES_MAX = 4_096
_INPUT_SECONDS_MAX = 30
_MEMORY_MIB_MAX = 4_096
_WORDS = ("-1", "18446744073709551616", "1e400", "null", "true", "[" * 64, "{" * 8, "\\ud800", "2001-99-99", "&a *a")


def run(name: str, *, seconds: int, seed: int) -> None:
    """Search for so long. Does not return: libFuzzer ends the process."""
    target, found, world = TARGETS[name], Found(name), World()
    seeds = list(target.seeds(world))
    corpus = found.folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    words = found.folder / "words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in (*_WORDS, *_words_of(seeds))))

    until = time.monotonic() + seconds

    def one(data: bytes) -> None:
        if time.monotonic() > until:
            end()
        else:
            try:
                found.outcomes[target.check(world, data)] += 1
            except Exception as exc:
                found.failed(data, exc)

    @cache
    def end() -> None:
        """Once. libFuzzer ends the process later, without a word to Python."""
        world.close()
        print(END + msgspec.json.encode(Ended(found.outcomes, len(found.failures))).decode(), flush=True)

    kept = [str(CORPUS / name)] if (CORPUS / name).is_dir() else []
    options = {
        "max_total_time": seconds + 1,
        "len_control": 0,
        "seed": seed,
        "max_len": max(_INPUT_BYTES_MAX, *(2 * len(data) for data in seeds)),
        "timeout": _INPUT_SECONDS_MAX,
        "rss_limit_mb": _MEMORY_MIB_MAX,
        "artifact_prefix": f"{found.folder}/died-",
        "dict": str(words),
        "print_final_stats": 1,
    }
    atheris.Setup([sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus), *kept], one)
    atheris.Fuzz()


def _words_of(seeds: list[bytes]) -> list[str]:
    """What is a word in what is whole: names of fields."""
    found = dict.fromkeys(word.decode() for data in seeds for word in re.findall(rb"[A-Za-z_]{4,24}", data))
    return list(found)[:80]


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"')


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[name for name, target in TARGETS.items() if not target.forks])
    parser.add_argument("--seconds", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    asked = parser.parse_args()
    logging.disable()  # A bus that meets damage says so, a thousand times a second.
    run(asked.name, seconds=asked.seconds, seed=asked.seed)
