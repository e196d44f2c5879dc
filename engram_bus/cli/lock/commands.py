"""`engram lock acquire`, `release`, `list` and `break`: one question to the bus each."""

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from engram_bus.cli.failures import told
from engram_bus.cli.options import URL_DEFAULT, AsJson, Url, agent_or_user

if TYPE_CHECKING:
    from engram_client import Lock, LockState

RETRIES: Final = 3
"""Half a second on average: a bus that restarts is met again, one that is not there is told at once."""
TTL_SECONDS: Final = 30.0

_COLUMN_CELLS_MAX: Final = 40
"""How wide a column is made where there is no terminal: what is longer is whole, and moves its own line alone."""

Resources = Annotated[
    list[str],
    typer.Argument(metavar="RESOURCE", help="What to hold, all or none: a path, a name. What lies below is held too."),
]
Agent = Annotated[str | None, typer.Option(envvar="ENGRAM_AGENT", help="Who asks.", show_default="your user name")]
Ttl = Annotated[
    float, typer.Option(metavar="SECONDS", help="How long it is held unless it is extended (0.1 to 86,400).")
]
Shared = Annotated[bool, typer.Option("--shared", help="Share it with others who share, instead of alone.")]
Reason = Annotated[str, typer.Option(help="Why; told to whom it is in the way of.", show_default=False)]


def acquire(
    resources: Resources,
    ttl: Ttl = TTL_SECONDS,
    shared: Shared = False,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to wait in line for it (at most 3,600); 0 is not at all.")
    ] = 0.0,
    reason: Reason = "",
    agent: Agent = None,
    url: Url = URL_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Hold resources for a while: prints the lock's id, its fencing token and until when it is held.

    The lock is the agent's: asking again extends it. Scripts that are to exclude each other need an --agent each.

    Exit code 75 when another agent holds it (also after --wait), 76 when waiting would never end because its holder
    waits for this agent.
    """
    with told(url):
        lock = asyncio.run(_acquire(url, agent_or_user(agent), resources, ttl, shared, wait, reason))
    if as_json:
        _print_json(lock)
    else:
        again = ", held before and extended" if lock.extended else ""
        print(f"lock_id {lock.lock_id}, token {lock.fencing_token}, until {lock.expires_at}{again}")


async def _acquire(
    url: str, agent_id: str, resources: Sequence[str], ttl: float, shared: bool, wait: float, reason: str
) -> "Lock":
    from engram_client import Client

    async with Client(url, agent_id=agent_id, max_retries=RETRIES) as bus:
        if wait:  # a bus that is not there is told at once; one that goes away during the wait is waited for
            await bus.status()
        return await bus.acquire_lock(*resources, ttl_seconds=ttl, mode=_mode(shared), wait_seconds=wait, reason=reason)


def _mode(shared: bool) -> str:
    return "shared" if shared else "exclusive"


def release(
    resource: Annotated[str, typer.Argument(help="What is held: one of the lock's resources.")],
    lock_id: Annotated[str, typer.Argument(metavar="LOCK_ID", help="What `engram lock acquire` printed.")],
    agent: Agent = None,
    url: Url = URL_DEFAULT,
) -> None:
    """Give a lock back. One that is not held any more (released, broken, run out) is no failure.

    Exit code 77 when the lock is another agent's.
    """
    with told(url):
        was_held = asyncio.run(_release(url, agent_or_user(agent), resource, lock_id))
    print(f"released {resource}" if was_held else f"{resource} was not held any more under {lock_id}")


async def _release(url: str, agent_id: str, resource: str, lock_id: str) -> bool:
    from engram_client import Client, Lock, LockMode

    # What the bus asks for is whose lock it is, on what, and its id; the rest of a lock is for its holder.
    lock = Lock(
        lock_id=lock_id,
        resources=[resource],
        holder_agent=agent_id,
        mode=LockMode.EXCLUSIVE,
        fencing_token=0,
        granted_at="",
        expires_at="",
        remaining_seconds=0.0,
    )
    async with Client(url, agent_id=agent_id, max_retries=RETRIES) as bus:
        return await bus.release_lock(lock)


def break_(
    resource: Annotated[str, typer.Argument(help="What to take from those who hold just this.")],
    reason: Annotated[str, typer.Option(help="Why. It stands in the log, with your name.")],
    lock_id: Annotated[
        str | None, typer.Option(metavar="LOCK_ID", help="This lock alone.", show_default="all on the resource")
    ] = None,
    agent: Agent = None,
    url: Url = URL_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Take a resource from its holders, on the record. What they write under its fence is refused from then on.

    Exit code 77 when nobody holds it.
    """
    with told(url):
        broken = asyncio.run(_break(url, agent_or_user(agent), resource, reason, lock_id))
    if as_json:
        _print_json(broken)
    else:
        print("\n".join(f"broke {resource}, lock_id {name}" for name in broken))


async def _break(url: str, agent_id: str, resource: str, reason: str, lock_id: str | None) -> Sequence[str]:
    from engram_client import Client

    async with Client(url, agent_id=agent_id, max_retries=RETRIES) as bus:
        return await bus.break_lock(resource, reason=reason, lock_id=lock_id)


def list_(
    resource: Annotated[
        str | None, typer.Argument(help="This one alone, and who waits for it.", show_default="everything that is held")
    ] = None,
    holder: Annotated[str | None, typer.Option(metavar="AGENT", help="Only what this agent holds.")] = None,
    prefix: Annotated[str, typer.Option(help="Only resources that begin with this.", show_default=False)] = "",
    url: Url = URL_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Show who holds what; of one resource, also who waits for it, in order."""
    from engram_bus.cli.failures import Failure

    if resource is not None and (holder is not None or prefix):
        raise Failure("--holder and --prefix choose among all resources; one is named already", code=2)
    with told(url):
        if resource is None:
            locks = asyncio.run(_locks(url, holder, prefix))
            _print_json(locks) if as_json else _print_locks(locks)
        else:
            state = asyncio.run(_state(url, resource))
            _print_json(state) if as_json else _print_state(state)


async def _locks(url: str, holder: str | None, prefix: str) -> "list[Lock]":
    from engram_client import Client

    async with Client(url, agent_id="engram-lock", max_retries=0) as bus:
        return [lock async for lock in bus.locks(holder, prefix, limit=1_000)]


async def _state(url: str, resource: str) -> "LockState":
    from engram_client import Client

    async with Client(url, agent_id="engram-lock", max_retries=0) as bus:
        return await bus.get_lock(resource)


def _print_state(state: "LockState") -> None:
    if state.holders:
        _print_locks(state.holders)
    else:
        print(f"{state.resource} is free")
    if state.queue:
        print()
        _print_table(
            ("waits", "mode", "since", "until", "reason"),
            [(wait.agent_id, wait.mode, wait.queued_at, wait.deadline, wait.reason) for wait in state.queue],
        )
    if (more := state.queue_length - len(state.queue)) > 0:
        print(f"and {more:,} more")


def _print_locks(locks: "Sequence[Lock]") -> None:
    _print_table(
        ("resource", "mode", "holder", "token", "remaining", "reason"),
        [
            (
                lock.resources[0],
                lock.mode,
                lock.holder_agent,
                str(lock.fencing_token),
                f"{lock.remaining_seconds:.1f} s",
                lock.reason,
            )
            for lock in locks
        ],
    )


def _print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from engram_bus.cli.lines import plain

    if not sys.stdout.isatty():
        _print_columns([names, *([plain(value) for value in row] for row in rows)])
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(value)) for value in row))
    Console(highlight=False).print(table)


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    from rich.cells import cell_len

    widths = [min(max(map(cell_len, column)), _COLUMN_CELLS_MAX) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (value + " " * (width - cell_len(value)) for value, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _print_json(value: "Lock | LockState | Sequence[Lock] | Sequence[str]") -> None:
    import msgspec

    print(msgspec.json.encode(value).decode())
