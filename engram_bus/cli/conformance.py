"""`engram conformance`: does a bus keep to the protocol, over every transport it offers?"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engram_bus.cli.failures import Failure, told
from engram_bus.cli.options import URL_DEFAULT, Url

if TYPE_CHECKING:
    from engram_bus.conformance.report import Report
    from engram_bus.conformance.stages import Stages
    from engram_bus.conformance.transports.connections import Place
    from engram_bus.conformance.vectors import Exchange


def conformance(
    url: Url = URL_DEFAULT,
    grpc: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where it speaks gRPC; without, where its /readyz says.")
    ] = None,
    transport: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only over this one; may be repeated.")
    ] = None,
    exchange: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only exchanges with this in their sentence or file.")
    ] = None,
    restart: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Restarts the bus (ENGRAM_STAGE says how: restart, kill) and returns when it answers. Without, what "
            "needs a restart is left out.",
        ),
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The exchanges; without, those that came with this program."),
    ] = None,
) -> None:
    """Play what every bus must agree on (proto/vectors) over every transport of a bus that runs.

    What it writes stays on that bus, under names of its own: thousands of contexts, and some locks, which are held
    until they run out (after a day at the latest). Best it is a bus to try things on.

    One line for each exchange that fails; exit code 1 when one did, else 0.
    """
    from engram_bus.conformance.vectors import VectorError

    try:
        report = asyncio.run(_played(url, grpc, transport or [], exchange, restart, vectors))
    except (VectorError, OSError) as exc:
        raise Failure(str(exc), code=2) from exc
    print(*report.lines(), sep="\n")
    sys.stdout.flush()
    if not report.is_well:
        raise Failure(f"{url} does not conform" if report.failed else "nothing was played")


async def _played(
    url: str, grpc: str | None, names: Sequence[str], text: str | None, restart: str | None, vectors: Path | None
) -> "Report":
    from engram_bus.conformance.report import Report, failure_line
    from engram_bus.conformance.runner import Outcome, Runner
    from engram_bus.conformance.vectors import load, load_refusals

    chosen, exchanges = _transports(names), _exchanges(load(vectors), text)
    place = await _place(url, grpc)
    report = Report()

    def tell(outcome: Outcome) -> None:
        report.take(outcome)
        if outcome.failure is not None:
            print(failure_line(outcome), flush=True)

    runner = Runner(place, load_refusals(vectors), stages=_stages(restart))
    await runner.play(exchanges, chosen, tell)
    return report


def _transports(names: Sequence[str]) -> list[str]:
    from engram_bus.conformance.transports.table import TRANSPORTS

    for name in names:
        if name not in TRANSPORTS:
            raise Failure(f"--transport {name!r} is none of {', '.join(TRANSPORTS)}", code=2)
    return list(names or TRANSPORTS)


def _exchanges(exchanges: "list[Exchange]", text: str | None) -> "list[Exchange]":
    if text is None:
        return exchanges
    return [exchange for exchange in exchanges if text in exchange.name or text in exchange.file]


async def _place(url: str, grpc: str | None) -> "Place":
    """Where the bus is, and whether there is one."""
    from engram_bus.conformance.transports.connections import find
    from engram_bus.conformance.transports.contract import Broken, Refused
    from engram_client import Client

    with told(url):  # What is no URL.
        await Client(url, agent_id="engram-conformance").aclose()
    try:
        return await find(url, grpc)
    except (Broken, Refused) as exc:
        raise Failure(
            f"no bus answers at {url} ({exc}). Start one with `engram serve`, or name another with --url."
        ) from exc


def _stages(restart: str | None) -> "Stages":
    from engram_bus.conformance.stages import ByCommand, Nothing

    return Nothing() if restart is None else ByCommand(restart)
