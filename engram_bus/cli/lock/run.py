"""`engram lock run`: a command that runs under a lock, and not without it."""

import asyncio
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from typer.core import TyperCommand

from engram_bus.cli.failures import LOST, Failure, told
from engram_bus.cli.lock.commands import RETRIES, TTL_SECONDS, Reason, Resources, Shared, Ttl
from engram_bus.cli.options import URL_DEFAULT, Url, agent_or_user

if TYPE_CHECKING:
    from engram_bus.cli.lock.command import Command
    from engram_bus.cli.lock.guard import Guard
    from engram_bus.cli.lock.terminal import Terminal
    from engram_client import Client, Lease
    from engram_client.errors import LockLost

WAIT_SECONDS: Final = 3_600.0
"""As long as the bus lets anyone wait."""
NOT_FOUND: Final = 127
NOT_RUNNABLE: Final = 126
"""As shells say it."""
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_REASON_CHARACTERS: Final = 200
_NEVER_BEGAN: Final = -1
_ASK_SECONDS: Final = 1.0
"""What became of a lock is asked of the bus for so long; its command is ended meanwhile."""
_COMMAND: Final = "engram.command"

OnLost = Literal["kill", "warn"]


class WithCommand(TyperCommand):
    """A command line whose part after `--` is another command's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own, ctx.meta[_COMMAND] = _split(args)
        return super().parse_args(ctx, own)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "--", "COMMAND", "[ARGS]..."]


def _split(args: list[str]) -> tuple[list[str], list[str]]:
    place = args.index("--") if "--" in args else len(args)
    return args[:place], args[place + 1 :]


def run(
    context: typer.Context,
    resources: Resources,
    ttl: Ttl = TTL_SECONDS,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to wait in line for it; 0 is not at all.")
    ] = WAIT_SECONDS,
    shared: Shared = False,
    on_lost: Annotated[
        OnLost,
        typer.Option(help="When the lock is lost: end the command (SIGTERM, after 5 s SIGKILL), or say so on stderr."),
    ] = "kill",
    reason: Reason = "",
    agent: Annotated[
        str | None,
        typer.Option(help="Who holds it.", show_default="your user name, host and process: no two runs share a lock"),
    ] = None,
    url: Url = URL_DEFAULT,
) -> None:
    """Run a command while holding resources: waits for the lock, keeps it as long as the command runs, releases it.

    engram lock run deploy/production --wait 600 -- make deploy

    The command finds ENGRAM_FENCING_TOKEN, ENGRAM_LOCK_ID and ENGRAM_LOCK_RESOURCE (the first) in its environment,
    and ENGRAM_AGENT and ENGRAM_URL, so that what it posts is its holder's. Signals are passed on to it. A loss is
    noticed when the lock is refreshed: after a third of --ttl at the latest.

    The exit code is the command's (128 + the signal that ended it; 127 when there is no such command), or 75 when
    another agent holds the lock, 76 when waiting would never end, 77 when the lock was lost and the command ended for
    it. If this process is killed, or stands still until the lock has run out, the command is ended as well.
    """
    words: list[str] = context.meta[_COMMAND]
    if not words:
        raise Failure("name the command to run after --", code=2)
    from engram_bus.cli.lock.command import Command
    from engram_bus.cli.lock.guard import Guard
    from engram_bus.cli.lock.terminal import Terminal

    holder = agent_or_user(agent)
    if agent is None:
        holder = f"{holder}@{socket.gethostname()}:{os.getpid()}"
    asked = {
        "ttl_seconds": ttl,
        "wait_seconds": wait,
        "mode": "shared" if shared else "exclusive",
        # Its arguments stay out of it: they may hold secrets, and the log is for ever.
        "reason": reason or Path(words[0]).name.encode("utf-8", "replace").decode()[:_REASON_CHARACTERS],
    }
    # Both are forked before any thread, socket or loop is there to be inherited.
    guard, terminal = Guard(only_warns=on_lost == "warn"), Terminal()
    command = Command(words, guard, terminal)
    try:
        with told(url, notices=True):
            code = asyncio.run(_Run(guard, terminal, command, on_lost).under(url, holder, resources, asked))
    finally:
        command.over()
        guard.over()
    sys.exit(code)


class _Run:
    """One command and its lock."""

    def __init__(self, guard: "Guard", terminal: "Terminal", command: "Command", on_lost: OnLost) -> None:
        self._guard = guard
        self._terminal = terminal
        self._command = command
        self._on_lost = on_lost
        self._signals: list[int] = []
        self._receiver: Callable[[int], object] | None = None
        self._has_told = False
        """That the lock was lost, and what becomes of the command."""

    async def under(self, url: str, holder: str, resources: Sequence[str], asked: dict[str, Any]) -> int:
        """The exit code. Raises EngramError where there is no lock, Failure where a signal ended the wait for it."""
        from engram_client import Client
        from engram_client.errors import LockLost

        self._listen()
        task = asyncio.current_task()
        assert task is not None, "it runs in a loop"
        self._receiver = lambda number: task.cancel()
        code = _NEVER_BEGAN
        variables = {"ENGRAM_AGENT": holder, "ENGRAM_URL": url, "ENGRAM_LOCK_RESOURCE": resources[0]}
        try:
            async with Client(url, agent_id=holder, max_retries=RETRIES) as bus:
                await bus.status()  # a bus that is not there is told at once; one that goes away later is waited for
                async with bus.lock(*resources, on_lost="raise", **asked) as lease:
                    await asyncio.sleep(0)  # a signal that came together with the lock ends it here
                    self._receiver = None
                    code = await self._run(bus, lease, variables)
        except LockLost as loss:
            if code == _NEVER_BEGAN:
                raise
            if not self._has_told:
                _say(f"the lock was lost before the command had ended: {loss.message}")
        except asyncio.CancelledError:
            if not self._signals:
                raise
            raise Failure(f"no longer waiting for {', '.join(resources)}", code=128 + self._signals[0]) from None
        return code

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
                loop.add_signal_handler(number, self._receive, number)

    def _receive(self, number: int) -> None:
        self._signals.append(number)
        if self._receiver is not None:
            self._receiver(number)

    async def _run(self, bus: "Client", lease: "Lease", variables: dict[str, str]) -> int:
        lock = lease.lock
        variables = {
            **variables,
            "ENGRAM_LOCK_ID": lock.lock_id,
            "ENGRAM_FENCING_TOKEN": str(lock.fencing_token),
        }
        if lock.extended:
            _say(f"{lock.holder_agent} held the lock already; it is released when this command has ended")
        self._guard.until(lease.ends_at)
        try:
            self._command.begin(variables)
        except OSError as exc:
            self._guard.over()
            self._terminal.take_back(self._command.pid)
            _say(f"{self._command.name}: {exc.strerror}")
            return NOT_FOUND if isinstance(exc, FileNotFoundError) else NOT_RUNNABLE
        try:
            return await self._watch(bus, lease)
        finally:
            self._receiver = None
            self._terminal.take_back(self._command.pid)

    async def _watch(self, bus: "Client", lease: "Lease") -> int:
        """Until the command has ended, by itself or because the lock was lost."""
        from engram_bus.cli.lock.guard import signal_group

        loop, group = asyncio.get_running_loop(), self._command.pid
        loop.add_signal_handler(signal.SIGCHLD, self._follow_stop, lease, group)
        self._receiver = partial(signal_group, group)
        for number in self._signals:  # those that came while it began
            self._receiver(number)
        ended, lost = asyncio.create_task(self._command.ended()), asyncio.create_task(lease.lost())
        telling = asyncio.create_task(self._tell_guard(lease))
        try:
            await asyncio.wait([ended, lost], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                loss = lost.result()
                assert loss is not None, "nobody gives it back while the command runs"
                telling.cancel()
                if self._on_lost == "kill":
                    ending = asyncio.create_task(asyncio.to_thread(self._guard.end, group))
                    self._take_note(await _why(bus, lease, loss))
                    await ending
                    await ended
                    return LOST
                self._guard.until(math.inf)
                self._take_note(await _why(bus, lease, loss))
            code = await ended
        finally:
            for task in (lost, telling):
                task.cancel()
            await asyncio.wait([lost, telling])
        if await asyncio.to_thread(self._guard.over):
            return LOST
        return code if code >= 0 else 128 - code

    async def _tell_guard(self, lease: "Lease") -> None:
        while True:
            self._guard.until(lease.ends_at)
            await lease.refreshed()

    def _follow_stop(self, lease: "Lease", group: int) -> None:
        """A command that was stopped for longer than the lease goes on only if it may without."""
        from engram_client.errors import LockLost

        if not self._terminal.follow_stop(group):
            return
        try:
            lease.check()
        except LockLost as loss:
            self._take_note(loss.message)
            if self._on_lost == "kill":
                return  # it is ended as soon as the loop goes on
        self._terminal.go_on(group)

    def _take_note(self, why: str) -> None:
        if self._has_told:
            return
        self._has_told = True
        if self._on_lost == "kill":
            _say(f"the lock was lost, so the command is ended: {why}")
        else:
            self._guard.until(math.inf)
            _say(f"the lock was lost, and the command runs on without it: {why}")


async def _why(bus: "Client", lease: "Lease", loss: "LockLost") -> str:
    """Of a lock that was broken, by whom and what for; else what the loss says."""
    from engram_bus.cli.lines import plain
    from engram_client import EngramError
    from engram_client.values import LOCKS_CONTEXT

    try:
        async with asyncio.timeout(_ASK_SECONDS):
            broken = await bus.list(LOCKS_CONTEXT, kind="lock.broken", reverse=True)
    except (EngramError, TimeoutError):
        return loss.message
    for unit in broken:
        change = unit.json()
        if change["lock_id"] == lease.lock.lock_id:
            reason = f": {change['reason']}" if "reason" in change else ""
            return plain(f"{unit.agent_id} broke {', '.join(lease.lock.resources)}{reason}")
    return loss.message


def _say(text: str) -> None:
    print(f"engram: {text}", file=sys.stderr, flush=True)
