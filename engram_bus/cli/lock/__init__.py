"""`engram lock`: hold resources from a terminal or a script, see who does, and run a command under a lock.

Exit codes that a script can tell apart are in `engram_bus.cli.failures`.
"""

import typer

from engram_bus.cli.failures import DEADLOCK, HELD, LOST
from engram_bus.cli.lock import commands, run

app = typer.Typer(
    name="lock",
    help="Hold resources so that nobody else does; see who does; run a command under a lock.",
    epilog=f"Exit codes: {HELD} held by another, {DEADLOCK} waiting would never end, {LOST} lost (run), another's "
    "(release) or nobody's (break), 1 it did not work, 2 it was asked wrongly.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.command("acquire")(commands.acquire)
app.command("release")(commands.release)
app.command("list")(commands.list_)
app.command("break")(commands.break_)
app.command("run", cls=run.WithCommand)(run.run)
