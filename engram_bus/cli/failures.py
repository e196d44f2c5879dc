"""What goes wrong on the command line: one line that names the cause and what to do, and an exit code."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

ASKED_WRONGLY = 2
"""It will not work, however often it is tried: an argument is at fault."""
HELD = 75
"""Another agent holds what was asked for, or the wait for it ended: what sysexits.h calls a temporary failure."""
DEADLOCK = 76
"""Waiting would never end."""
LOST = 77
"""The lock that a command ran under was lost; one to break is nobody's; one to release is another agent's."""


class Failure(Exception):
    """Ends the command: `message` goes to stderr, `code` to the shell (1: it did not work, 2: it was asked wrongly)."""

    def __init__(self, message: str, *, code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.code = code

    def leave(self) -> NoReturn:
        """Say it and end the process."""
        with contextlib.suppress(BrokenPipeError):
            print(f"engram: {self.message}", file=sys.stderr, flush=True)
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            # What is still buffered has no reader; the interpreter would complain about it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(self.code)


@contextlib.contextmanager
def told(url: str, *, notices: bool = False) -> Iterator[None]:
    """Turn what engram_client raises into a Failure that says what to do about it.

    With `notices` the client says on stderr when it has lost a connection and makes it again; that a lease is lost, the
    command says itself.
    """
    from engram_client import EngramConnectionError, EngramError, errors

    _log_plainly(logging.WARNING if notices else logging.CRITICAL)
    try:
        yield
    except EngramConnectionError as exc:
        raise Failure(
            f"no bus answers at {url} ({exc.message}). Start one with `engram serve`, or name another with --url."
        ) from exc
    except (errors.RouteNotFound, errors.UnsupportedMedia, errors.MethodNotAllowed) as exc:
        raise Failure(f"{url} answers, but not as a bus of this version: {exc}. Is --url right?") from exc
    except (errors.LockHeld, errors.WaitEnded) as exc:
        raise Failure(exc.message, code=HELD) from exc
    except errors.Deadlock as exc:
        raise Failure(exc.message, code=DEADLOCK) from exc
    except (errors.LockLost, errors.LockNotFound, errors.NotHolder) as exc:
        raise Failure(exc.message, code=LOST) from exc
    except EngramError as exc:
        if isinstance(exc, ValueError):  # ours, before any bus was asked
            advice = f" Is --url {url} right?" if exc.field == "url" else ""
            raise Failure(f"{exc.message}.{advice}", code=ASKED_WRONGLY) from exc
        if exc.code == "UNKNOWN":  # not an answer of ours
            raise Failure(f"{url} answers with status {exc.status}, but not as a bus. Is --url right?") from exc
        where = f" (field {exc.field})" if exc.field else ""
        again = " It may work later." if exc.retryable else ""
        code = ASKED_WRONGLY if isinstance(exc, errors.Invalid) else 1
        raise Failure(f"the bus refused: {exc}{where}.{again}", code=code) from exc
    except ValueError as exc:  # an answer that is not the bus's
        raise Failure(f"{exc}. Is --url {url} right?") from exc


@contextlib.contextmanager
def told_of_data(*, code: int = 1) -> Iterator[None]:
    """Turn what data directories, backups and exports raise into a Failure."""
    from engram_bus.errors import BackupError, DataDamaged, DataDirectoryError

    try:
        yield
    except DataDamaged as exc:
        advice = "`engram verify` says what is damaged, `engram repair` what can be done"
        raise Failure(f"{exc}. {advice}", code=code) from exc
    except (BackupError, DataDirectoryError) as exc:
        raise Failure(str(exc), code=code) from exc


def _log_plainly(level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("engram: %(message)s"))
    handler.addFilter(_Sparse())
    logger = logging.getLogger("engram_client")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level)


class _Sparse(logging.Filter):
    """One notice a second: a bus that goes away is noticed by every connection at once. None of a lease that is lost:
    the command says that."""

    def __init__(self) -> None:
        from engram_client.errors import LockLost

        super().__init__()
        self._loss = LockLost
        self._last_seconds = -1.0

    def filter(self, record: logging.LogRecord) -> bool:
        if any(isinstance(argument, self._loss) for argument in record.args or ()):
            return False
        shown = record.created - self._last_seconds >= 1.0
        if shown:
            self._last_seconds = record.created
        return shown
