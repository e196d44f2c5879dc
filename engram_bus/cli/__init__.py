"""`engram`: every command of the bus on the command line.

Commands import what they need when they run, so that `engram --help` answers at once. All but `serve` and what
works on files (`verify`, `backup`, `restore`, ...) are users of engram_client, like anybody else's program.
"""

import sys

from engram_bus.cli.failures import Failure


def main() -> None:
    """Run the command line; what goes wrong is one line on stderr and an exit code, never a traceback."""
    # httpx has a command line of its own, which it loads where it can: with click, pygments and rich's widgets, a third
    # of what each of our commands took. It does without where that cannot be imported.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # None: "there is no such module"
    try:
        from engram_bus.cli.app import app  # here, for a Ctrl-C while it loads is one like any other

        app(prog_name="engram")
    except Failure as failure:
        failure.leave()
    except BrokenPipeError:
        Failure("whoever read the output has stopped reading").leave()
    except OSError as exc:  # of the output: a full disk
        Failure(str(exc)).leave()
    except KeyboardInterrupt:
        sys.exit(130)
