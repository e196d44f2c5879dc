"""What a context is and may become: its version, its agents, pins, meta, fences, and whether it takes more units."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from engram_bus.errors import ContextClosed, EngramError, TooLarge, VersionMoved
from engram_bus.limits import (
    CONTEXT_AGENTS_MAX,
    CONTEXT_PINS_MAX,
    META_BYTES_MAX,
    META_ENTRIES_MAX,
)
from engram_bus.units import (
    FORMAT_JSON,
    Append,
    AppendAtomic,
    Context,
    Draft,
    KeyedCommand,
    Placed,
    Stamp,
    UnitType,
    UpdateContext,
    WorkUnit,
)

CREATED = "context.created"
JOINED = "context.joined"
LEFT = "context.left"
PINNED = "context.pinned"
UNPINNED = "context.unpinned"
CHANGED = "context.changed"
CLOSED = "context.closed"
REOPENED = "context.reopened"


class _State(msgspec.Struct, gc=False, omit_defaults=True):
    """One context, small while nothing but appends happened to it: most are many and plain."""

    version: int
    created_at: str
    updated_at: str
    details: "_Details | None" = None


class _Details(msgspec.Struct, omit_defaults=True):
    # Dictionaries, for their order and their lookup; the values mean nothing.
    display_name: str = ""
    agents: dict[str, None] = msgspec.field(default_factory=dict)
    pins: dict[str, None] = msgspec.field(default_factory=dict)
    meta: dict[str, str] = msgspec.field(default_factory=dict)
    fences: list[str] = msgspec.field(default_factory=list)
    closed: bool = False


class _Change(msgspec.Struct, omit_defaults=True):
    """The payload of a context unit: what it names is new, the rest is as it was."""

    agents: list[str] = []
    units: list[str] = []
    display_name: str | None = None
    meta: dict[str, str | None] = {}
    fences: list[str] | None = None


_NO_DETAILS = _Details()
_encode = msgspec.json.Encoder().encode
_decode_change = msgspec.json.Decoder(_Change).decode
_decode_states = msgspec.msgpack.Decoder(dict[str, _State]).decode


class Contexts:
    """The decision over contexts. A context exists from its first unit on, whoever wrote it."""

    name = "contexts.1"

    def __init__(self) -> None:
        self._states: dict[str, _State] = {}

    def __len__(self) -> int:
        return len(self._states)

    def version(self, context_id: str) -> int:
        """The version of a context's newest unit, 0 where there is none."""
        state = self._states.get(context_id)
        return 0 if state is None else state.version

    def fences(self, context_id: str) -> Sequence[str]:
        """The globs of the resources that may only be written about by who holds a lock on them."""
        state = self._states.get(context_id)
        return () if state is None or state.details is None else state.details.fences

    def view(self, context_id: str) -> Context | None:
        """The context as it stands."""
        state = self._states.get(context_id)
        if state is None:
            return None
        details = state.details or _NO_DETAILS
        return Context(
            id=context_id,
            version=state.version,
            created_at=state.created_at,
            updated_at=state.updated_at,
            display_name=details.display_name,
            agent_ids=list(details.agents),
            pinned_units=list(details.pins),
            meta=dict(details.meta),
            fences=list(details.fences),
            closed=details.closed,
        )

    # --- decide ------------------------------------------------------------------------------------------------------

    def decide(self, command: KeyedCommand, stamp: Stamp) -> Sequence[Draft]:
        """Raises VersionMoved, ContextClosed, TooLarge."""
        match command:
            case Append():
                self.check_append(command)
                return (command.draft,)
            case AppendAtomic():
                return self._append_all(command.appends)
            case UpdateContext():
                self._check_version(command.context_id, command.expected_version, before=0)
                return self._update(command)

    def _append_all(self, appends: Sequence[Append]) -> Sequence[Draft]:
        before: Counter[str] = Counter()
        for index, append in enumerate(appends):
            context_id = append.draft.context_id
            try:
                self.check_append(append, before=before[context_id])
            except EngramError as exc:
                raise exc.at(index) from None
            before[context_id] += 1
        return [append.draft for append in appends]

    def check_append(self, append: Append, *, before: int = 0) -> Sequence[str]:
        """Whether a context takes this now, after `before` units of the same batch; gives its fences. Raises
        VersionMoved, ContextClosed."""
        context_id = append.draft.context_id
        if append.expected_version is not None:
            self._check_version(context_id, append.expected_version, before=before)
        state = self._states.get(context_id)
        if state is None or state.details is None:
            return ()
        self.check_open(context_id)
        return state.details.fences

    def _check_version(self, context_id: str, expected: int | None, *, before: int) -> None:
        """`before`: units of the same batch that come first."""
        if expected is None:
            return
        current = self.version(context_id) + before
        if expected != current:
            raise VersionMoved(
                f"context {context_id!r} is at version {current}, expected {expected}",
                field="expected_version",
                current_version=current,
            )

    def check_open(self, context_id: str) -> None:
        """Raises ContextClosed."""
        state = self._states.get(context_id)
        if state is not None and state.details is not None and state.details.closed:
            raise ContextClosed(f"context {context_id!r} is closed", field="context_id")

    def _update(self, command: UpdateContext) -> Sequence[Draft]:
        state = self._states.get(command.context_id)
        details = (state.details if state else None) or _NO_DETAILS
        if details.closed and command.closed is not False and _names_a_change(command):
            raise ContextClosed(
                f"context {command.context_id!r} is closed: reopen it with closed=false", field="context_id"
            )
        _check_bounds(details, command)
        return [_draft(command, kind, change) for kind, change in _changes(state is None, details, command)]

    # --- evolve ------------------------------------------------------------------------------------------------------

    def evolve(self, unit: WorkUnit | Placed) -> None:
        state = self._states.get(unit.context_id)
        if state is None:
            state = self._states[unit.context_id] = _State(0, unit.ts, unit.ts)
        assert unit.version == state.version + 1, f"version {unit.version} after {state.version} at seq {unit.seq}"
        state.version = unit.version
        state.updated_at = unit.ts
        if unit.kind is not None and isinstance(unit, WorkUnit) and unit.kind.startswith("context."):
            if state.details is None:
                state.details = _Details()
            _apply(state.details, unit.kind, _decode_change(unit.payload))

    def snapshot(self) -> bytes:
        return msgspec.msgpack.encode(self._states)

    def restore(self, state: bytes | None) -> None:
        self._states = {} if state is None else _decode_states(state)


def _names_a_change(command: UpdateContext) -> bool:
    return any(
        (
            command.add_agents,
            command.remove_agents,
            command.pin_units,
            command.unpin_units,
            command.meta,
            command.display_name is not None,
            command.fences is not None,
        )
    )


def _changes(is_new: bool, details: _Details, command: UpdateContext) -> Iterator[tuple[str, _Change]]:
    """What really changes, in the order a reader expects: open it, describe it, people, pins, close it."""
    if details.closed and command.closed is False:
        yield REOPENED, _Change()
    described = _Change(
        display_name=command.display_name if command.display_name != details.display_name else None,
        meta={key: value for key, value in command.meta.items() if details.meta.get(key) != value},
        fences=list(command.fences) if command.fences not in (None, tuple(details.fences)) else None,
    )
    if is_new:
        yield CREATED, described
    elif described != _Change():
        yield CHANGED, described
    if left := [agent for agent in dict.fromkeys(command.remove_agents) if agent in details.agents]:
        yield LEFT, _Change(agents=left)
    if joined := [agent for agent in dict.fromkeys(command.add_agents) if agent not in details.agents]:
        yield JOINED, _Change(agents=joined)
    if unpinned := [unit for unit in dict.fromkeys(command.unpin_units) if unit in details.pins]:
        yield UNPINNED, _Change(units=unpinned)
    if pinned := [unit for unit in dict.fromkeys(command.pin_units) if unit not in details.pins]:
        yield PINNED, _Change(units=pinned)
    if command.closed and not details.closed:
        yield CLOSED, _Change()


def _check_bounds(details: _Details, command: UpdateContext) -> None:
    agents = len((details.agents.keys() - set(command.remove_agents)) | set(command.add_agents))
    if agents > CONTEXT_AGENTS_MAX:
        raise TooLarge(f"{agents} agents, at most {CONTEXT_AGENTS_MAX}", field="add_agents", limit=CONTEXT_AGENTS_MAX)
    pins = len((details.pins.keys() - set(command.unpin_units)) | set(command.pin_units))
    if pins > CONTEXT_PINS_MAX:
        raise TooLarge(f"{pins} pinned units, at most {CONTEXT_PINS_MAX}", field="pin_units", limit=CONTEXT_PINS_MAX)
    meta = _merged(details.meta, command.meta)
    if len(meta) > META_ENTRIES_MAX:
        raise TooLarge(f"{len(meta)} entries, at most {META_ENTRIES_MAX}", field="meta", limit=META_ENTRIES_MAX)
    meta_bytes = sum(len(key.encode()) + len(value.encode()) for key, value in meta.items())
    if meta_bytes > META_BYTES_MAX:
        raise TooLarge(f"{meta_bytes} bytes, at most {META_BYTES_MAX}", field="meta", limit=META_BYTES_MAX)


def _merged(meta: dict[str, str], changes: dict[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in (meta | changes).items() if value is not None}


def _draft(command: UpdateContext, kind: str, change: _Change) -> Draft:
    return Draft(
        context_id=command.context_id,
        agent_id=command.agent_id,
        type=UnitType.SYSTEM,
        kind=kind,
        content_type=FORMAT_JSON,
        payload=_encode(change),
    )


def _apply(details: _Details, kind: str, change: _Change) -> None:
    match kind:
        case "context.joined":
            details.agents.update(dict.fromkeys(change.agents))
        case "context.left":
            _remove(details.agents, change.agents)
        case "context.pinned":
            details.pins.update(dict.fromkeys(change.units))
        case "context.unpinned":
            _remove(details.pins, change.units)
        case "context.closed":
            details.closed = True
        case "context.reopened":
            details.closed = False
        case "context.created" | "context.changed":
            _describe(details, change)
        case _:
            raise AssertionError(f"{kind}: clients cannot write context units, and this version writes no such kind")


def _describe(details: _Details, change: _Change) -> None:
    if change.display_name is not None:
        details.display_name = change.display_name
    if change.fences is not None:
        details.fences = change.fences
    details.meta = _merged(details.meta, change.meta)


def _remove(names: dict[str, Any], gone: Sequence[str]) -> None:
    for name in gone:
        names.pop(name, None)
