"""`engram verify`: walk a data directory in a process of its own, which damage may end without ending ours.

report = verify(Path("data"))
report.damage      # empty, or the first damage of each part
report.text()      # for people
"""

import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import msgspec

from engram_bus.decisions.state import State
from engram_bus.errors import DataDamaged, DataDirectoryError
from engram_bus.log.contract import cursor_text
from engram_bus.log.directory import Identity, read_identity, read_tenant, refuse_elsewhere
from engram_bus.log.lmdb import LogReader
from engram_bus.log.verify import Damage, LogReport, walk
from engram_bus.process import path_variables, python
from engram_bus.words import counted


class Reading(msgspec.Struct, frozen=True, tag=True):
    """Progress: what is read next."""

    file: str
    seq: int


class VerifyReport(msgspec.Struct, frozen=True, tag=True):
    """What a data directory holds, and the first damage of each part of it."""

    path: str
    logs: tuple[LogReport, ...]
    damage: tuple[Damage, ...]

    @property
    def is_whole(self) -> bool:
        return not self.damage

    def text(self) -> str:
        """A few lines for people."""
        lines = [f"{self.path}: {'whole' if self.is_whole else 'DAMAGED'}"]
        lines += [f"  {damage}" for damage in self.damage]
        for log in self.logs:
            lines += [f"  {line}" for line in _lines(log)]
        return "\n".join(lines)


def verify(path: Path | str, *, tell: Callable[[Reading], None] = lambda _: None) -> VerifyReport:
    """Walk the data directory at `path`, read-only, also while a bus uses it. `tell` hears of the progress."""
    path = Path(path)
    child = subprocess.Popen(  # noqa: S603 - ourselves, with a path as one argument
        python("engram_bus.verify", str(path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=path_variables(),
    )
    with child:
        try:
            report = _hear(child, path, tell)
        except BaseException:
            child.kill()
            raise
    if child.returncode < 0:
        _forget_dead_readers(path)
    return report


def _hear(child: subprocess.Popen[bytes], path: Path, tell: Callable[[Reading], None]) -> VerifyReport:
    assert child.stdout is not None
    assert child.stderr is not None
    reading = Reading("identity", 0)
    for line in child.stdout:
        said: Reading | VerifyReport = _decode(line)
        if isinstance(said, VerifyReport):
            return said
        reading = said
        tell(said)
    last_words = child.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
    code = child.wait()
    ending = signal.Signals(-code).name if code < 0 else last_words or f"exit code {code}"
    return VerifyReport(str(path), (), (Damage(reading.file, f"reading it ended in {ending}", reading.seq or None),))


def _forget_dead_readers(path: Path) -> None:
    """The child died while it read: a running bus could not use again the pages it stood on."""
    for file in path.glob("tenants/*/*/lock.mdb"):
        subprocess.run(  # noqa: S603 - as above
            python("engram_bus.verify", "--forget-dead-readers", str(file.parent)),
            stderr=subprocess.DEVNULL,
            env=path_variables(),
            check=False,
        )


def _lines(log: LogReport) -> list[str]:
    epoch = log.epochs[-1].name if log.epochs else "?"
    snapshots = "".join(f", snapshot of {name} at {seq}" for name, seq in log.snapshots.items())
    return [
        f"{log.tenant}: {log.whole_units} of {counted(log.head, 'unit')} whole, in {counted(log.contexts, 'context')}",
        f"{log.tenant}: cursor {cursor_text(epoch, log.whole_units)}, chain {log.chain}",
        f"{log.tenant}: index {log.index}{snapshots}",
    ]


# --- In the child ----------------------------------------------------------------------------------------------------

_decode = msgspec.json.Decoder(Reading | VerifyReport).decode
_encode = msgspec.json.Encoder().encode


def _walk_all(path: Path, say: Callable[[Reading | VerifyReport], None]) -> VerifyReport:
    try:
        identity = read_identity(path)
    except DataDirectoryError as exc:
        return VerifyReport(str(path), (), (Damage("identity", str(exc)),))
    logs = tuple(
        walk(tenant, tenant.name, State().parts, lambda file, seq: say(Reading(file, seq)))
        for tenant in sorted(path.glob("tenants/*"))
    )
    elsewhere = tuple(_elsewhere(path, identity))
    return VerifyReport(str(path), logs, (*elsewhere, *(damage for log in logs for damage in log.damage)))


def _elsewhere(path: Path, identity: Identity) -> Iterator[Damage]:
    """Logs of other directories. An identity that cannot be read is damage of its own."""
    for file in sorted(path.glob("tenants/*/identity")):
        try:
            tenant = read_tenant(file.parent, file.parent.name)
        except DataDirectoryError:
            continue
        try:
            refuse_elsewhere(path, identity, tenant)
        except DataDamaged as exc:
            yield Damage("identity", str(exc))


def _main(arguments: list[str], out: IO[bytes]) -> None:
    def say(message: Reading | VerifyReport) -> None:
        out.write(_encode(message) + b"\n")
        out.flush()

    match arguments:
        case ["--forget-dead-readers", path]:
            LogReader(Path(path)).forget_dead_readers()
        case [path]:
            say(_walk_all(Path(path), say))
        case _:
            raise SystemExit("usage: python -m engram_bus.verify DATA_DIR")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # If damage ends it, that is told, and leaves no core file.
    _main(sys.argv[1:], sys.stdout.buffer)
