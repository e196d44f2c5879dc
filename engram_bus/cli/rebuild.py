"""`engram rebuild`: the search index, made again from the log while the old one answers."""

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from engram_bus.cli.failures import told
from engram_bus.cli.options import URL_DEFAULT, Url

if TYPE_CHECKING:
    from engram_client import Client, SearchStatus

_LOOK_SECONDS = 0.25
_RETRIES = 3


def rebuild(
    url: Url = URL_DEFAULT,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it has taken the old one's place.")] = True,
) -> None:
    """Build the search index again from the log; the one there is answers until it is done.

    Nobody needs this in daily life: an index that is missing, damaged or of another version is built again without.
    """
    with told(url):
        asyncio.run(_rebuilt(url, wait=wait))


async def _rebuilt(url: str, *, wait: bool) -> None:
    from engram_client import Client

    async with Client(url, agent_id="engram-rebuild", max_retries=_RETRIES) as bus:
        before = await bus.rebuild_search()
        if wait:
            await _until_replaced(bus, before)
            print("the search index was built again", file=sys.stderr)
        else:
            print("the search index is being built again; engram status says how far it is", file=sys.stderr)


async def _until_replaced(bus: "Client", before: "SearchStatus") -> None:
    was_seen = False
    while True:
        status = await bus.status()
        search = status.search
        if search is not None and search.generation:
            if search.generation != before.generation or (was_seen and search.rebuilt_seq is None):
                return
            if search.rebuilt_seq is not None:
                was_seen = True
                if sys.stderr.isatty():
                    print(f"\r{search.rebuilt_seq:,} of {status.head:,} units", end="", file=sys.stderr)
        await asyncio.sleep(_LOOK_SECONDS)
