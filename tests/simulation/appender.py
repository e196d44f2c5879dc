"""A process to be killed: appends to a data directory and says on stdout what was acknowledged, line by line."""

import asyncio
import random
import sys
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from engram_bus.bus.writer import Answer
from engram_bus.embedded import Bus
from engram_bus.errors import EngramError
from engram_bus.units import (
    Append,
    AppendAtomic,
    Command,
    Draft,
    Relationship,
    RelationshipType,
    UnitType,
    UpdateContext,
)

IN_FLIGHT = 40


class Acknowledged(msgspec.Struct, frozen=True):
    """What a client was told of command `number`."""

    number: int
    seqs: list[int]
    ids: list[str]


def command(number: int) -> Command:
    """The command of this number, the same in every process: most are appends; some are atomic, some are updates."""
    dice = random.Random(number)
    context_id, key = f"c{dice.randrange(5)}", f"key-{number}"
    match dice.randrange(10):
        case 0:
            return AppendAtomic(
                appends=tuple(Append(draft=draft(dice, context_id, number)) for _ in range(dice.randint(1, 20))),
                idempotency_key=key,
            )
        case 1:
            return UpdateContext(
                context_id=context_id,
                agent_id="ann",
                add_agents=(f"agent-{number}",),
                meta={"number": str(number)},
                idempotency_key=key,
            )
        case _:
            return Append(draft=draft(dice, context_id, number), idempotency_key=key)


def draft(dice: random.Random, context_id: str, number: int) -> Draft:
    return Draft(
        context_id=context_id,
        agent_id="ann",
        type=UnitType.MESSAGE,
        payload=b"%d " % number + dice.randbytes(dice.choice([0, 10, 300, 9_000])).hex().encode(),
        relationships=[Relationship(f"target-{number % 7}", RelationshipType.REFERENCES)],
    )


async def append(path: Path, first: int) -> None:
    """Commands `first`, `first + 1`, ... without an end, many at once."""
    numbers = iter(range(first, sys.maxsize))
    async with Bus.open(path) as bus:
        say("open")

        async def client() -> None:
            for number in numbers:
                try:
                    said(number, await bus.execute(command(number)))
                except EngramError as exc:
                    say(f"refused {number} {exc.code}")

        async with asyncio.TaskGroup() as clients:
            for _ in range(IN_FLIGHT):
                clients.create_task(client())


def said(number: int, answer: Answer) -> None:
    units = [entry.unit for entry in answer.entries]
    say(msgspec.json.encode(Acknowledged(number, [one.seq for one in units], [one.id for one in units])).decode())


def say(line: Any) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    uvloop.run(append(Path(sys.argv[1]), int(sys.argv[2])))
