"""What a search asks of every indexed unit, as columns: entry n is of the n-th unit.

`units` holds what each unit has one of, `pairs` what it may have many of (resources as numbers, meta and targets as
digests), `names` what has a number. They are flushed before the keyword index is committed, which says how many units
count.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from engram_bus.globs import matcher
from engram_bus.projections.contract import Damaged
from engram_bus.projections.search.analysis import path_of
from engram_bus.projections.search.commits import Stamp
from engram_bus.projections.search.scope import EVERYTHING, Scope
from engram_bus.projections.search.tables import AppendedFile, Array, Growing, Table
from engram_bus.units import UnitType, WorkUnit, ts_us

Mask = NDArray[np.bool_]
Places = NDArray[np.intp]

FACETS = ("context", "agent", "type", "kind")
_NUMBERS = {name: number for number, name in enumerate(UnitType)}
_DIGESTS_FROM = 2**63
_NOWHERE = -1
_TYPES = [str(name) for name in UnitType]


class Columns:
    """Opened with the first `count` units, the last one at `cursor`. Raises Damaged where they are not there."""

    def __init__(self, path: Path, *, count: int, cursor: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        fields = [
            *((name, "<i8") for name in ("seq", "ts", "pairs_end", "names_end")),
            *((name, "<u4") for name in (*FACETS, "names_crc")),
        ]
        self._units = Table(path / "units", fields, count)
        if self._units.last("seq") != cursor:
            raise Damaged(f"unit {count} of {path} is at {self._units.last('seq')}, not {cursor}")
        self._pairs = Table(path / "pairs", [("unit", "<u4"), ("value", "<u8")], self._units.last("pairs_end"))
        self._names = _Names(path / "names", self._units.last("names_end"))
        if count and self._names.stamp.crc != self._units.last("names_crc"):
            raise Damaged(f"{path / 'names'} is not what was written")
        self._before = Growing(np.dtype(np.int32), _places_before(self._units.column("context")))
        self._last_of = _last_places(self._units.column("context"))

    # --- Taking in ---------------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        return self._units.count

    @property
    def stamps(self) -> dict[str, Stamp]:
        """Of its files, as they were flushed."""
        return {"units": self._units.stamp, "pairs": self._pairs.stamp, "names": self._names.stamp}

    def add(self, unit: WorkUnit) -> None:
        for value in (*_digests(unit), *{self._names.number("resource", name) for name in unit.resources}):
            self._pairs.add(unit=self.count, value=value)
        context = self._names.number("context", unit.context_id)
        self._before.add(self._last_of.get(context, _NOWHERE))
        self._last_of[context] = self.count
        self._units.add(
            seq=unit.seq,
            ts=ts_us(unit.ts),
            context=context,
            agent=self._names.number("agent", unit.agent_id),
            type=_NUMBERS[unit.type],
            kind=self._names.number("kind", unit.kind or ""),
            pairs_end=self._pairs.count,
            names_end=self._names.size_bytes,
        )

    def flush(self) -> None:
        """Make what was added durable."""
        if self._units.unwritten:
            self._pairs.flush()
            self._names.flush()
            self._units.set_last("names_crc", self._names.stamp.crc)
            self._units.flush()

    # --- Answering ---------------------------------------------------------------------------------------------------

    def exact(self, scope: Scope) -> Scope | None:
        """The same with names instead of globs; None where a glob matches none, and so lets nothing through."""
        kinds, resources = self._matching("kind", scope.kinds), self._matching("resource", scope.resources)
        if bool(kinds) < bool(scope.kinds) or bool(resources) < bool(scope.resources):
            return None
        return msgspec.structs.replace(scope, kinds=kinds, resources=resources)

    def _matching(self, field: str, globs: Sequence[str]) -> tuple[str, ...]:
        if not globs:
            return ()
        matches = matcher(globs)
        return tuple(name for name in self._names.of(field) if matches(name) is not None)

    def mask(self, exact: Scope) -> Mask | None:
        """Which units a scope without globs lets through; None for all of them."""
        if exact == EVERYTHING:
            return None
        mask = np.ones(self.count, np.bool_)
        for field, names in (("context", exact.contexts), ("agent", exact.agents), ("kind", exact.kinds)):
            if names:
                known = self._names.of(field)
                numbers = [known[name] for name in names if name in known]
                mask &= _one_of(self._units.column(field), numbers, self._names.count)
        if exact.types:
            mask &= _one_of(self._units.column("type"), [_NUMBERS[one] for one in exact.types], len(_TYPES))
        for field, after, before in (
            ("seq", exact.after_seq, exact.before_seq),
            ("ts", exact.after_us, exact.before_us),
        ):
            if after is not None:
                mask &= self._units.column(field) > after
            if before is not None:
                mask &= self._units.column(field) < before
        if exact.resources:
            mask &= self.touching(exact.resources)
        for wanted in _wanted_digests(exact):
            mask &= self._having(wanted)
        return mask

    def places_of(self, seqs: Sequence[int]) -> Places:
        """The places of units, which must be there."""
        return np.searchsorted(self._units.column("seq"), np.array(seqs, np.int64))

    def seqs_of(self, places: Places) -> list[int]:
        seqs: list[int] = self._units.column("seq")[places].tolist()
        return seqs

    def times_of(self, seqs: Sequence[int]) -> dict[int, int]:
        """When each of these units came, in microseconds."""
        return dict(zip(seqs, self._units.column("ts")[self.places_of(seqs)].tolist(), strict=True))

    def adjacent(self, seqs: Sequence[int]) -> list[tuple[int, int]]:
        """Which two of these follow each other in their context, with no unit between them that is searched."""
        places = self.places_of(seqs)
        before = self._before.array[places]
        follow = (before != _NOWHERE) & np.isin(before, places)
        return list(zip(self.seqs_of(before[follow]), self.seqs_of(places[follow]), strict=True))

    def commonest(self, field: str, places: Places | None, values_max: int) -> dict[str, int]:
        """How many of these units (None: of all) have which value of a facet's field: the commonest ones, in order."""
        column = self._units.column(field)
        counts = np.bincount(column if places is None else column.take(places))
        numbers = np.flatnonzero(counts)
        if len(numbers) > values_max:
            least = np.partition(counts[numbers], -values_max)[-values_max]
            numbers = np.flatnonzero(counts >= least)
        name_of: Callable[[int], str] = _TYPES.__getitem__ if field == "type" else self._names.name
        counted = {name_of(number): int(counts[number]) for number in numbers.tolist()}
        order = sorted(counted, key=lambda value: (-counted[value], value))[:values_max]
        return {value: counted[value] for value in order}

    def _having(self, wanted: Sequence[int]) -> Mask:
        mask = np.zeros(self.count, np.bool_)
        mask[self._pairs.column("unit")[_any_of(self._pairs.column("value"), wanted)]] = True
        return mask

    def ending(self, paths: Sequence[str]) -> list[str]:
        """The resources that are one of these paths, or end with one."""
        return [name for path in paths for name in self._names.ending(path)]

    def touching(self, resources: Sequence[str]) -> Mask:
        """Which units touch one of these. A glob may match very many: they are looked up by their numbers."""
        known = self._names.of("resource")
        values = self._pairs.column("value")
        of_resources = np.flatnonzero(values < _DIGESTS_FROM)
        wanted = _one_of(values[of_resources], [known[name] for name in resources], self._names.count)
        mask = np.zeros(self.count, np.bool_)
        mask[self._pairs.column("unit")[of_resources[wanted]]] = True
        return mask


def _places_before(contexts: Array) -> Array:
    """Of each unit the place of the one before it in its context."""
    order = np.argsort(contexts, kind="stable")
    before = np.full(len(contexts), _NOWHERE, np.int32)
    follows = contexts[order[1:]] == contexts[order[:-1]]
    before[order[1:][follows]] = order[:-1][follows]
    return before


def _last_places(contexts: Array) -> dict[int, int]:
    """The place of each context's newest unit."""
    numbers, from_end = np.unique(contexts[::-1], return_index=True)
    return dict(zip(numbers.tolist(), (len(contexts) - 1 - from_end).tolist(), strict=True))


def _digest(field: str, value: str) -> int:
    """What stands for one value of a field that can have many: above every number of a name."""
    raw = blake2b(f"{field}\0{value}".encode(), digest_size=8).digest()
    return int.from_bytes(raw, "little") | _DIGESTS_FROM


def _digests(unit: WorkUnit) -> set[int]:
    return {
        *(_digest("target", edge.target_id) for edge in unit.relationships),
        *(_digest("meta", f"{key}\0{value}") for key, value in unit.meta.items()),
    }


def _wanted_digests(exact: Scope) -> list[list[int]]:
    """Of each of these, a unit must have one."""
    wanted = []
    if exact.related_to:
        wanted.append([_digest("target", name) for name in exact.related_to])
    by_key: dict[str, list[int]] = {}
    for key, value in exact.meta:
        by_key.setdefault(key, []).append(_digest("meta", f"{key}\0{value}"))
    return [*wanted, *by_key.values()]


def _one_of(column: Array, numbers: Sequence[int], count: int) -> Mask:
    """Which are one of these, of so many numbers there are: looked up, however many are wanted."""
    if len(numbers) == 1:
        return np.asarray(column == column.dtype.type(numbers[0]))
    wanted = np.zeros(count, np.bool_)
    wanted[numbers] = True
    return wanted.take(column)


def _any_of(column: Array, wanted: Sequence[int]) -> Mask:
    if len(wanted) == 1:
        return np.asarray(column == column.dtype.type(wanted[0]))
    return np.isin(column, np.array(wanted, column.dtype))


def _last(path: str) -> str:
    return path.rpartition("/")[2]


class _Names:
    """Names by field, each with a number: contexts, agents, kinds, and the resources that globs are matched with."""

    def __init__(self, path: Path, end: int) -> None:
        self._file = AppendedFile(path, end)
        self._entries: list[str] = []
        self._resources_by_last: dict[str, list[str]] = {}
        self._by_field: dict[str, dict[str, int]] = {field: {} for field in ("context", "agent", "kind", "resource")}
        self._unwritten: list[bytes] = []
        self.size_bytes = end
        try:
            for line in self._file.raw.splitlines():
                self._keep(*_decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError, KeyError) as exc:
            raise Damaged(f"{path} is not what was written: {exc}") from exc
        self._file.forget()

    @property
    def stamp(self) -> Stamp:
        return self._file.stamp

    def number(self, field: str, name: str) -> int:
        """Its number: a new one, where it was not known."""
        known = self._by_field[field].get(name)
        if known is not None:
            return known
        line = _encode((field, name)) + b"\n"
        self._unwritten.append(line)
        self.size_bytes += len(line)
        return self._keep(field, name)

    def _keep(self, field: str, name: str) -> int:
        number = self._by_field[field][name] = len(self._entries)
        self._entries.append(name)
        if field == "resource":
            self._resources_by_last.setdefault(_last(path_of(name)), []).append(name)
        return number

    @property
    def count(self) -> int:
        return len(self._entries)

    def name(self, number: int) -> str:
        return self._entries[number]

    def of(self, field: str) -> dict[str, int]:
        return self._by_field[field]

    def ending(self, path: str) -> Iterator[str]:
        """The resources that are this path, or end with it."""
        for name in self._resources_by_last.get(_last(path), ()):
            if path and f"/{path_of(name)}".endswith(f"/{path}"):
                yield name

    def flush(self) -> None:
        self._file.append(b"".join(self._unwritten))
        self._unwritten.clear()


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[str, str]).decode
