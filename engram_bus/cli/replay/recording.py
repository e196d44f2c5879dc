"""A recorded session as what is to be sent: one step per line of the file, its place, its time and its unit. Pure."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import sha256
from itertools import count
from typing import Any, Final, Literal
from uuid import UUID, uuid5

import msgspec

from engram_bus.limits import (
    META_BYTES_MAX,
    META_ENTRIES_MAX,
    META_KEY_BYTES_MAX,
    META_VALUE_BYTES_MAX,
    NAME_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    RELATIONSHIPS_MAX,
    RESOURCE_BYTES_MAX,
)
from engram_client import Draft, Relationship, RelationshipType, UnitType

Order = Literal["context", "file"]

CONTEXT_FIELDS: Final = ("session", "trace")
"""What makes a context, where nothing else is asked: the first of these that the recording has."""
STEP_SECONDS: Final = 1.0
"""Between two steps of a recording that has no times."""

_NAMESPACE: Final = UUID("5f3f6e1e-3a0c-5d0b-9a57-0f7c1d0a7b52")
_ELSEWHERE: Final = frozenset({"agent", "type_hint", "text", "depends_on"})
"""Fields that are the unit's own; the rest is its meta."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_KIND: Final = re.compile(r"[a-z0-9_]+\Z")


class RecordingError(Exception):
    """A line is not a step; names the line."""


class Step(msgspec.Struct, frozen=True):
    """One unit to send: its place in the file, the strand whose order it keeps, and when it is due, in seconds of the
    recording from its start."""

    place: int
    strand: str
    due_seconds: float
    agent_id: str
    draft: Draft


class Recording(msgspec.Struct, frozen=True):
    """A whole session under the name it is played by; its steps in the order they are due."""

    run: str
    steps: Sequence[Step]

    @property
    def agents(self) -> int:
        return len({step.agent_id for step in self.steps})

    @property
    def contexts(self) -> int:
        return len({step.draft.context_id for step in self.steps})


def parse(
    raw: bytes,
    *,
    run: str,
    context_from: str | None = None,
    order: Order = "context",
    pause_seconds_max: float | None = None,
) -> Recording:
    """The recording in the bytes of a JSON Lines file. Raises RecordingError.

    Ids and idempotency keys derive from the bytes, the run and the line: the same file played again under the same run
    sends the same units.
    """
    rows = list(rows_of(raw, needed=("agent", "text")))
    field = context_from or next((name for name in CONTEXT_FIELDS if any(name in row for row in rows)), "trace")
    if context_from is not None and not any(context_from in row for row in rows):
        raise RecordingError(f"no line has the field {context_from!r} to take contexts from")
    writer = _Writer(f"{sha256(raw).hexdigest()}/{run}", run, field)
    drafts = [writer.draft(place, row) for place, row in enumerate(rows)]
    strands = [draft.context_id if order == "context" else "" for draft in drafts]
    dues = dues_of([time_of(row.get("ts"), place + 1) for place, row in enumerate(rows)], strands, pause_seconds_max)
    steps = [
        Step(place, strand, due, draft.agent_id or "", draft)
        for place, (strand, due, draft) in enumerate(zip(strands, dues, drafts, strict=True))
    ]
    return Recording(run, sorted(steps, key=lambda step: step.due_seconds))


def rows_of(raw: bytes, *, needed: Sequence[str]) -> Iterable[dict[str, Any]]:
    """The lines of a JSON Lines file, each with the texts that every step needs. Raises RecordingError."""
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise RecordingError(f"line {number} is not a JSON object: {exc}") from exc
        for name in needed:
            if not isinstance(row.get(name), str):
                raise RecordingError(f"line {number} has no text in {name!r}; every step needs {' and '.join(needed)}")
        yield row


def dues_of(times: Sequence[float | None], strands: Sequence[str], pause_seconds_max: float | None) -> Sequence[float]:
    """When each step is due. Time does not go back, and a step without one comes with the one before.

    Where none has a time, every strand begins at once and takes one step after another.
    """
    if all(time is None for time in times):
        counters: defaultdict[str, count[int]] = defaultdict(count)
        return [next(counters[strand]) * STEP_SECONDS for strand in strands]
    dues: list[float] = []
    now, latest = 0.0, next(time for time in times if time is not None)
    for time in times:
        pause = max(0.0, (time or latest) - latest)
        now += pause if pause_seconds_max is None else min(pause, pause_seconds_max)
        latest += pause
        dues.append(now)
    return dues


def time_of(ts: Any, number: int) -> float | None:
    """The `ts` of a line, in seconds. Raises RecordingError."""
    if ts is None:
        return None
    try:
        return datetime.fromisoformat(ts).timestamp()
    except (TypeError, ValueError) as exc:
        raise RecordingError(f"line {number}: ts {ts!r} is not a time") from exc


class _Writer:
    """Turns rows into drafts, and remembers the calls and tasks that later ones relate to."""

    def __init__(self, seed: str, run: str, context_field: str) -> None:
        self._seed = seed
        self._run = run
        self._context_field = context_field
        self._calls: dict[tuple[str, str], str] = {}
        self._items: dict[tuple[str, str], str] = {}

    def draft(self, place: int, row: dict[str, Any]) -> Draft:
        unit_id = str(uuid5(_NAMESPACE, f"{self._seed}/{place}"))
        hint = str(row.get("type_hint") or "message").upper()
        payload, cut = _cut(row["text"], PAYLOAD_BYTES_MAX)
        return Draft(
            context_id=name_of(f"{self._run}/{row.get(self._context_field) or row.get('trace') or 'steps'}"),
            payload=payload,
            type=hint if hint in UnitType.__members__ else UnitType.UNKNOWN,
            kind=_kind(row),
            meta=_meta(row, extra={"cut_from_bytes": str(len(row["text"].encode()))} if cut else {}),
            resources=_resources(row, hint),
            relationships=self._relationships(row, hint, unit_id) or None,
            id=unit_id,
            idempotency_key=f"replay-{unit_id}",
            agent_id=name_of(row["agent"]),
        )

    def _relationships(self, row: dict[str, Any], hint: str, unit_id: str) -> list[Relationship]:
        """To what was recorded before: a result to its call, a task's event to its task, a task to what it needs."""
        trace = str(row.get("trace"))
        found: list[Relationship] = []
        if call := row.get("tool_use_id"):
            if hint not in ("TOOL_RESULT", "ERROR"):
                self._calls[trace, call] = unit_id
            elif target := self._calls.get((trace, call)):
                found.append(Relationship(target, RelationshipType.RESPONDS_TO))
        if item := row.get("item"):
            if (target := self._items.get((trace, item))) is not None:
                found.append(Relationship(target, RelationshipType.MODIFIES))
            self._items.setdefault((trace, item), unit_id)
        found += (
            Relationship(target, RelationshipType.DEPENDS_ON, {"type": str(needed.get("type", ""))})
            for needed in row.get("depends_on") or ()
            if (target := self._items.get((trace, needed["on"]))) is not None
        )
        return found[:RELATIONSHIPS_MAX]


def _kind(row: dict[str, Any]) -> str | None:
    for prefix, field in (("file", "op"), ("task", "event")):
        value = row.get(field)
        if isinstance(value, str) and _KIND.match(value):
            return f"{prefix}.{value}"
    return None


def _resources(row: dict[str, Any], hint: str) -> list[str] | None:
    """What a step touches: the file it changes, the task it is about."""
    touched = row.get("path") if hint == "FILE_CHANGE" else row.get("item")
    return [resource_of(str(touched))] if touched else None


def _meta(row: dict[str, Any], *, extra: dict[str, str]) -> dict[str, str]:
    """Everything else that is known of a step, as text, as far as meta has room."""
    meta: dict[str, str] = {}
    room_bytes = META_BYTES_MAX
    for key, value in (*row.items(), *extra.items()):
        if key in _ELSEWHERE or value is None or len(meta) == META_ENTRIES_MAX:
            continue
        name = _cut(_plain(key), META_KEY_BYTES_MAX)[0]
        text = _cut(value if isinstance(value, str) else msgspec.json.encode(value).decode(), META_VALUE_BYTES_MAX)[0]
        room_bytes -= len(name.encode()) + len(text.encode())
        if room_bytes < 0:
            break
        if name:
            meta[name] = text
    return meta


def _plain(text: str) -> str:
    return _CONTROL.sub(" ", text)


def resource_of(text: str) -> str:
    """A resource's name as the bus takes it, its end cut off where it is too long."""
    return _cut(_plain(text), RESOURCE_BYTES_MAX)[0]


def name_of(text: str) -> str:
    """A name the bus takes; of one that is too long the end becomes its digest, so that it stays its own."""
    text = _plain(text) or "-"
    if len(text.encode()) <= NAME_BYTES_MAX:
        return text
    digest = sha256(text.encode()).hexdigest()[:16]
    return f"{_cut(text, NAME_BYTES_MAX - 17)[0]}-{digest}"


def _cut(text: str, bytes_max: int) -> tuple[str, bool]:
    """The text as far as it fits, in whole characters, and whether anything is missing."""
    raw = text.encode()
    if len(raw) <= bytes_max:
        return text, False
    return raw[:bytes_max].decode(errors="ignore"), True
