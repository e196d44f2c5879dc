"""`engram status`: how a bus is."""

import asyncio
from typing import TYPE_CHECKING

from engram_bus.cli.failures import told
from engram_bus.cli.options import URL_DEFAULT, AsJson, Url
from engram_bus.words import counted

if TYPE_CHECKING:
    from engram_client import SearchStatus, Status


def status(url: Url = URL_DEFAULT, as_json: AsJson = False) -> None:
    """Show how a bus is: how far its log has come, what it takes on the disk, who listens.

    Exit code 1 when no bus answers.
    """
    with told(url):
        found = asyncio.run(_status(url))
    if as_json:
        import msgspec

        print(msgspec.json.encode(found).decode())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    for name, value in _rows(url, found):
        table.add_row(name, value)
    Console(highlight=False, soft_wrap=True).print(table)


async def _status(url: str) -> "Status":
    from engram_client import Client

    async with Client(url, agent_id="engram-status", max_retries=0) as bus:
        return await bus.status()


def _rows(url: str, found: "Status") -> list[tuple[str, str]]:
    disk = found.disk
    state = "[green]ready[/]" if found.ready else f"[bold red]not ready[/]: {found.reason}"
    return [
        ("bus", f"{url} (engram-bus {found.version})"),
        ("state", state),
        ("head", f"{counted(found.head, 'unit')}, in {counted(found.contexts, 'context')}"),
        ("epoch", f"{found.epoch} (cursor {found.cursor})"),
        ("durability", found.durability),
        ("waiting", f"{counted(found.queue_commands, 'command')} to be written"),
        ("subscribers", f"{found.subscribers:,}; the furthest behind lags {counted(found.lag_units, 'unit')}"),
        ("search", _search(found.search)),
        ("disk", f"log {_size(disk.log_bytes)}, index {_size(disk.index_bytes)}, free {_free(disk.free_bytes)}"),
        ("up", f"{_duration(found.uptime_seconds)}, since {found.started_at}"),
    ]


def _search(search: "SearchStatus | None") -> str:
    from rich.markup import escape

    if search is None:
        return "not started: it is with the first search"
    behind = f"{counted(search.lag_units, 'unit')} to take in, {search.lag_ms / 1_000:.1f} s behind"
    again = "" if search.rebuilt_seq is None else f"; built again up to {search.rebuilt_seq:,}"
    embedder = f"; {search.embedder} has {search.embedder_lag_units:,} to see" if search.embedder_lag_units else ""
    trouble = f"; {search.embedder}: {escape(search.embedder_trouble)}" if search.embedder_trouble else ""
    return f"{behind if search.lag_units else 'has everything'}{again}{embedder}{trouble}"


def _free(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else _size(size_bytes)


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
