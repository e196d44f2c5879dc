"""`engram tail`: watch units as they come."""

import asyncio
import os
import signal
import stat
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engram_bus.cli.failures import told
from engram_bus.cli.options import URL_DEFAULT, Url, pairs, type_names

if TYPE_CHECKING:
    from engram_client import Subscription, WorkUnit

_STOPS = (signal.SIGINT, signal.SIGTERM)
_FILTERS = "What to show (each may be repeated)"


def tail(
    contexts: Annotated[
        list[str] | None, typer.Argument(metavar="CONTEXT", help="Contexts to watch.", show_default="all")
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            metavar="CURSOR",
            help="Where to begin: 0 for the beginning, a seq, or the cursor of an earlier tail.",
            show_default="now",
        ),
    ] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", metavar="N", min=1, help="Stop after N units.")] = None,
    type: Annotated[
        list[str] | None, typer.Option(help="Units of this type: message, tool-call, ...", rich_help_panel=_FILTERS)
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Units of this kind, a glob: build.*", rich_help_panel=_FILTERS)
    ] = None,
    agent: Annotated[list[str] | None, typer.Option(help="Units of this agent.", rich_help_panel=_FILTERS)] = None,
    exclude_agent: Annotated[
        list[str] | None, typer.Option(help="No units of this agent.", rich_help_panel=_FILTERS)
    ] = None,
    resource: Annotated[
        list[str] | None, typer.Option(help="Units that touch this, a glob: src/*", rich_help_panel=_FILTERS)
    ] = None,
    meta: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Units with this in their meta.", rich_help_panel=_FILTERS),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one unit per line as JSON, for programs.")] = False,
    url: Url = URL_DEFAULT,
) -> None:
    """Watch units as they come, one line each, until Ctrl-C.

    A lost connection is made again by itself, and goes on where it was. At the end it says which cursor to go on from.
    """
    filters = {
        "type": type_names(type or ()) or None,
        "kind": kind or None,
        "agent": agent or None,
        "exclude_agent": exclude_agent or None,
        "resource": resource or None,
        "meta": pairs(meta or (), "--meta"),
    }
    with told(url, notices=True):
        asyncio.run(_watch(url, contexts or [], after, filters, count, _json_printer() if as_json else _line_printer()))


async def _watch(
    url: str,
    contexts: list[str],
    after: str | None,
    filters: dict[str, Any],
    count: int | None,
    show: "Callable[[WorkUnit], None]",
) -> None:
    from engram_client import Client, EngramError

    async with Client(url, agent_id="engram-tail", max_retries=0) as bus:
        await bus.status()  # a bus that is not there is told at once; one that goes away later is waited for
        subscription = bus.subscribe(*contexts, after=after, **filters)
        try:
            await _until_told(_show(subscription, count, show))
        except EngramError:  # it never started, or its cursor is of no use any more
            raise
        except OSError:
            _say_where_to_go_on(subscription.cursor)
            raise
        _say_where_to_go_on(subscription.cursor)


async def _show(subscription: "Subscription", count: int | None, show: "Callable[[WorkUnit], None]") -> None:
    from engram_client import Gap

    left = count
    async with subscription:
        while left is None or left > 0:
            try:
                show(await anext(subscription))
            except Gap as gap:
                print(f"engram: {gap}", file=sys.stderr, flush=True)
            else:
                left = None if left is None else left - 1


async def _until_told(showing: Coroutine[Any, Any, None]) -> None:
    """Run it until it ends, or Ctrl-C (or SIGTERM), which is no failure, or nobody reads the output any more."""
    task = asyncio.ensure_future(showing)
    loop = asyncio.get_running_loop()
    stops: list[BaseException | None] = []

    def stop(why: BaseException | None) -> None:
        stops.append(why)
        task.cancel()

    for number in _STOPS:
        loop.add_signal_handler(number, stop, None)
    output = sys.stdout.fileno()
    is_pipe = stat.S_ISFIFO(os.fstat(output).st_mode)
    if is_pipe:  # its other end closed is an event to read; a quiet bus would not let us notice otherwise
        loop.add_reader(output, stop, BrokenPipeError())
    try:
        await task
    except asyncio.CancelledError:
        if not stops:
            raise
        if stops[0] is not None:
            raise stops[0] from None
    finally:
        if is_pipe:
            loop.remove_reader(output)
        for number in _STOPS:
            loop.remove_signal_handler(number)


def _say_where_to_go_on(cursor: str | None) -> None:
    if cursor is not None:
        print(f"engram: stopped; go on with --after {cursor}", file=sys.stderr, flush=True)


def _json_printer() -> "Callable[[WorkUnit], None]":
    from engram_bus.cli.lines import unit_json

    def show(unit: "WorkUnit") -> None:
        print(unit_json(unit), flush=True)

    return show


def _line_printer() -> "Callable[[WorkUnit], None]":
    from rich.console import Console

    from engram_bus.cli.lines import Lines

    console = Console(highlight=False)
    lines = Lines()

    def show(unit: "WorkUnit") -> None:
        if console.is_terminal:
            console.print(lines.line(unit), no_wrap=True, overflow="ellipsis")
        else:  # a file has no width
            print(lines.line(unit).plain, flush=True)

    return show
