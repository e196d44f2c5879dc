"""Recorded file operations as a lock workload: who writes what, when, and how long it holds the file's lock. Pure.

A writing operation holds its file's lock until its agent's next operation, as recorded, but at most HOLD_SECONDS_MAX
(so does an agent's last one). Reading takes no lock; it only ends a hold.
"""

from collections.abc import Sequence
from posixpath import normpath
from typing import Final

import msgspec

from engram_bus.cli.replay.recording import RecordingError, dues_of, name_of, resource_of, rows_of, time_of

HOLD_SECONDS_MAX: Final = 30.0
"""Of recorded time: who has not gone on by then has turned to something else."""
PAUSE_SECONDS_MAX: Final = 0.5
"""Of recorded time, between two operations, where nothing else is asked: five weeks of a team become an hour. It brings
agents closer together than they were, so there is more contention than was recorded."""
WRITES: Final = ("edit", "write")
READS: Final = ("read",)


class Edit(msgspec.Struct, frozen=True):
    """One writing operation: its line in the file, when it is due and how long it holds its lock (of recorded time)."""

    place: int
    agent_id: str
    op: str
    resource: str
    size_bytes: int
    due_seconds: float
    hold_seconds: float


class Workload(msgspec.Struct, frozen=True):
    """What each agent writes, in its order, under the name it is played by."""

    run: str
    operations: int
    """Lines of the recording; those that read are not in `edits`."""
    edits: Sequence[Edit]

    @property
    def seconds(self) -> float:
        """How long it takes where nobody has to wait: who holds for longer than to its next edit is late for that."""
        ends: dict[str, float] = {}
        for edit in self.edits:
            ends[edit.agent_id] = max(ends.get(edit.agent_id, 0.0), edit.due_seconds) + edit.hold_seconds
        return max(ends.values(), default=0.0)

    @property
    def by_agent(self) -> dict[str, list[Edit]]:
        found: dict[str, list[Edit]] = {}
        for edit in self.edits:
            found.setdefault(edit.agent_id, []).append(edit)
        return found


def parse(raw: bytes, *, run: str, pause_seconds_max: float | None = PAUSE_SECONDS_MAX) -> Workload:
    """The workload in the bytes of a JSON Lines file. Raises RecordingError."""
    rows = list(rows_of(raw, needed=("agent", "op", "path")))
    for place, row in enumerate(rows):
        if row["op"] not in (*READS, *WRITES):
            raise RecordingError(f"line {place + 1}: op {row['op']!r} is not one of {', '.join((*READS, *WRITES))}")
    agents = [name_of(row["agent"]) for row in rows]
    times = [time_of(row.get("ts"), place + 1) for place, row in enumerate(rows)]
    dues = dues_of(times, agents, pause_seconds_max)
    holds = _holds(agents, dues_of(times, agents, None))
    edits = [
        Edit(place, agents[place], row["op"], _resource(run, row["path"]), _size(row), dues[place], holds[place])
        for place, row in enumerate(rows)
        if row["op"] in WRITES
    ]
    return Workload(run, len(rows), sorted(edits, key=lambda edit: edit.due_seconds))


def _holds(agents: Sequence[str], recorded: Sequence[float]) -> list[float]:
    """How long each operation holds: until its agent's next one."""
    holds = [HOLD_SECONDS_MAX] * len(agents)
    last: dict[str, int] = {}
    for place, agent in enumerate(agents):
        if (before := last.get(agent)) is not None:
            holds[before] = min(HOLD_SECONDS_MAX, recorded[place] - recorded[before])
        last[agent] = place
    return holds


def _resource(run: str, path: str) -> str:
    """The file under the run's name: two runs on one bus are not in each other's way."""
    return resource_of(run + normpath("/" + path.lstrip("/")))


def _size(row: dict[str, object]) -> int:
    size = row.get("bytes")
    return size if isinstance(size, int) else 0
