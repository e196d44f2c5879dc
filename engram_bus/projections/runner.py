"""Keeps one projection beside its log: reads on, commits, tells how far it is, and folds it again while it answers.

A projection has a directory, `NAME.N`, where the name tells the version of its format. The lowest N answers; a higher
one is being folded to take its place, and goes on being folded after a restart. Replacing is removing the lower.
"""

import errno
import logging
import shutil
import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from engram_bus.limits import SEARCH_ANSWER_SECONDS_MAX
from engram_bus.log.record import RecordError
from engram_bus.log.room import room
from engram_bus.projections.contract import Damaged, Followed, Projection

log = logging.getLogger(__name__)

P = TypeVar("P", bound=Projection)

SLICE_UNITS = 32
"""Taken in by one step: a few milliseconds."""
SLICE_BYTES = 256 * 1024
SHARED_SLICES = 4
"""One of so many goes to what is folded again, while what answers is behind."""
REST = 9
"""So many times what a step took, nothing is taken in then, where the log grows faster than it could be taken in: there
is no keeping up, more of the processor would cost the bus, and gain nobody an answer, unless somebody asks."""
ASKED_SECONDS = 5.0
"""For so long after somebody asked nothing rests."""
COMMIT_UNITS = 1_000
COMMIT_SECONDS = 0.5
BEHIND_UNITS = 2_000
"""Who asks waits for as many to be taken in; beyond, it is told that the projection is being built."""
REACH_SECONDS = 5.0
"""For so long; then it is told the same. Less than a search may take."""
ROOM_SECONDS = 1.0
"""How often a full disk is looked at again."""
DOUBT_SECONDS = 60.0
"""Files that were looked at and found whole are not looked at again for so long: it reads all of them."""

_NOT_DAMAGE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENOMEM, errno.EAGAIN}
)
"""A disk or a machine that refuses does not get better by folding again."""

assert COMMIT_UNITS < BEHIND_UNITS, "who waits for units does not wait for a commit"
assert REACH_SECONDS < SEARCH_ANSWER_SECONDS_MAX


class Progress(msgspec.Struct, frozen=True):
    """How far a projection is: up to `cursor` it outlives a restart, up to `taken` it answers."""

    cursor: int
    taken: int
    generation: int
    """Of its directory: the next one to take its place has a higher number."""
    rebuilt: int | None
    """Up to where the one that is to take its place was folded; None while there is none."""


class Runner(Generic[P]):
    """Called from one thread; a call takes a few milliseconds, but for `reach`."""

    def __init__(
        self,
        source: Followed,
        path: Path,
        name: str,
        opened: Callable[[Path], P],
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open what was left under the path, or begin anew. Raises OSError where the disk refuses."""
        self.head = source.head
        self._source = source
        self._now = now
        self._path = path
        self._name = name
        self._opened = opened
        self._has_room = True
        self._slices = 0
        self._newest = self.head
        self._looked_at = now()
        self._rest_until = -inf
        self._asked_until = -inf
        self._damage: RecordError | None = None
        self._doubt_at = -inf
        generations = self._generations()
        if self.head and not generations:
            log.warning("%s holds no %s: it is built from the log", path, name)
        kept = [one for generation in generations if (one := self._reopened(generation)) is not None]
        self._serving = kept[0] if kept else self._begun(1)
        self._next = kept[1] if len(kept) > 1 else None

    @property
    def projection(self) -> P:
        """The one that answers."""
        return self._serving.projection

    def owns(self, path: Path) -> bool:
        """Whether a directory is one of this projection's."""
        return path in (self._serving.path, None if self._next is None else self._next.path)

    def hear(self, head: int) -> None:
        """The log goes up to here, for sure."""
        self.head = max(self.head, head)

    @property
    def is_behind(self) -> bool:
        return self.projection.taken < self.head

    @property
    def progress(self) -> Progress:
        rebuilt = None if self._next is None else self._next.projection.taken
        return Progress(self.projection.cursor, self.projection.taken, self._serving.generation, rebuilt)

    # --- Going on ----------------------------------------------------------------------------------------------------

    def idle_seconds(self) -> float | None:
        """Until there is something to do of itself; None: nothing, until it hears of more."""
        if self._can_take:
            return max(0.0, self._rest_until - self._now()) if self._has_room else ROOM_SECONDS
        return self._serving.until_commit()

    def step(self) -> None:
        """What is most urgent, for a few milliseconds."""
        if self._can_take and self._now() >= self._rest_until and self._finds_room():
            self._go_on()
        if self._serving.is_due:
            self._commit()

    @property
    def _can_take(self) -> bool:
        return self._damage is None and (self.is_behind or self._next is not None)

    def _go_on(self) -> None:
        """What answers comes first; but where it never catches up, the other one goes on too."""
        began, before = self._now(), self.projection.taken
        self._slices = (self._slices + 1) % SHARED_SLICES
        if self._next is not None and (not self.is_behind or self._slices == 0):
            self._fold_again(self._next)
        else:
            self._take(self._serving)
        self._rest(self._now() - began, self.projection.taken - before)

    def _rest(self, took_seconds: float, taken: int) -> None:
        """Where the log outruns what is taken in, and nobody asks, who would be refused anyway."""
        newest, now = self._source.head, self._now()
        grown, passed_seconds = newest - self._newest, now - self._looked_at
        self._newest, self._looked_at = newest, now
        is_far = newest - self.projection.taken > BEHIND_UNITS
        # What could have been taken in since, without a rest.
        if is_far and now >= self._asked_until and grown * took_seconds > max(taken, SLICE_UNITS) * passed_seconds:
            self._rest_until = now + REST * took_seconds

    def _commit(self) -> None:
        if self._finds_room():
            self._serving.commit()
        else:
            self._serving.postpone(ROOM_SECONDS)

    def reach(self, seq: int) -> bool:
        """Take in all units up to here, or as far as they can be read, before an answer. False: they are too many, they
        take too long, or there is no room for them."""
        self.hear(seq)
        now = self._now()
        self._asked_until, self._rest_until = now + ASKED_SECONDS, now
        until = now + REACH_SECONDS
        while self.projection.taken < seq and self._damage is None:
            is_far = seq - self.projection.taken > BEHIND_UNITS or self._now() >= until
            if is_far or not self._finds_room():
                return False
            self._take(self._serving)
            if self._serving.is_due:
                self._commit()
        return True

    def _take(self, kept: "_Kept[P]") -> None:
        """The next units, none beyond what was heard of: before, they are not sure to stay."""
        projection = kept.projection
        units_max = min(SLICE_UNITS, self.head - projection.taken)
        try:
            projection.take(self._source.units(projection.taken, units_max=units_max, bytes_max=SLICE_BYTES))
        except RecordError as exc:
            log.error("%s ends before the unit after %d, which cannot be read: %s", kept.path, projection.taken, exc)
            self._damage = exc
        kept.taken_more()

    def _finds_room(self) -> bool:
        """Whether the disk has more room than the bus needs for itself: what is taken in is written too."""
        free_bytes, reserve_bytes = room(self._path)
        has_room = free_bytes >= 2 * reserve_bytes
        if has_room != self._has_room:
            log.warning("%s %s", self._path, "goes on" if has_room else "waits: the disk is full")
            self._has_room = has_room
        return has_room

    # --- Folding again -----------------------------------------------------------------------------------------------

    def rebuild(self) -> None:
        """Fold another from the log's first unit, beside the one that answers until then; not a second one at once."""
        if self._next is None:
            self._next = self._begun(self._serving.generation + 1)

    def _fold_again(self, following: "_Kept[P]") -> None:
        if following.projection.taken < self.head:
            self._take(following)
            if following.is_due:
                following.commit()
        # In the step that reached the head: under load, the next one finds more to take.
        if following.projection.taken == self.head:
            self._replace(following)

    def _replace(self, following: "_Kept[P]") -> None:
        following.commit()
        before = self._serving
        self._succeed(following)
        before.projection.close()
        self._remove(before.path)
        log.info("%s took the place of %s", following.path, before.path)

    def _succeed(self, following: "_Kept[P]") -> None:
        before, self._serving, self._next = self._serving, following, None
        following.projection.succeed(before.projection)

    def doubt(self, why: str) -> bool:
        """After an answer that failed: look whether the files it was read from are damaged. Where they are, True, and
        from now on another one answers, which is folded from the log."""
        if self._now() < self._doubt_at:
            return False
        try:
            self.projection.check()
        except (Damaged, OSError) as exc:
            self._give_up(f"{why}; {exc}")
            return True
        self._doubt_at = self._now() + DOUBT_SECONDS
        return False

    def _give_up(self, reason: str) -> None:
        given_up = self._serving
        log.warning("%s is built again: %s", given_up.path, reason)
        self._succeed(self._next or self._begun(given_up.generation + 1))
        try:
            given_up.projection.close()
        except BaseException as exc:  # A panic in Rust is no Exception.
            log.warning("%s did not close: %s", given_up.path, exc)
        self._remove(given_up.path)

    # --- Files -------------------------------------------------------------------------------------------------------

    def _generations(self) -> list[int]:
        """Of the directories there are, lowest first."""
        ends = (one.name.removeprefix(f"{self._name}.") for one in self._path.glob(f"{self._name}.*") if one.is_dir())
        return sorted(int(end) for end in ends if end.isascii() and end.isdecimal())

    def _at(self, generation: int) -> Path:
        return self._path / f"{self._name}.{generation}"

    def _begun(self, generation: int) -> "_Kept[P]":
        return _Kept(self._at(generation), generation, self._opened(self._at(generation)), self._now)

    def _reopened(self, generation: int) -> "_Kept[P] | None":
        """As it was left; None where it cannot be used, and is removed: the log has all of it."""
        path = self._at(generation)
        try:
            projection = self._opened(path)
            if projection.is_of(self._source, self.head):
                return _Kept(path, generation, projection, self._now)
            projection.close()
            reason = f"it is of another log, or of one that went on to {projection.cursor}; this one is at {self.head}"
        except BaseException as exc:  # A panic in Rust is no Exception.
            if isinstance(exc, OSError) and exc.errno in _NOT_DAMAGE:
                raise
            if not self._finds_room():
                raise OSError(errno.ENOSPC, f"no room for {path}: {exc}") from exc
            reason = f"{type(exc).__name__}: {exc}"
        log.warning("%s is built again: %s", path, reason)
        self._remove(path)
        return None

    def _remove(self, path: Path) -> None:
        """Renamed first, so that half of it is never taken for the whole."""
        gone = path.with_name(f"gone-{path.name}")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


class _Kept(Generic[P]):
    """A projection in its directory, and when it has to be committed."""

    def __init__(self, path: Path, generation: int, projection: P, now: Callable[[], float]) -> None:
        self.path = path
        self.generation = generation
        self.projection = projection
        self._now = now
        self._commit_at: float | None = None

    def taken_more(self) -> None:
        """What waits to be committed does not wait for long, and is not very much."""
        if self.projection.uncommitted >= COMMIT_UNITS:
            self._commit_at = self._now()
        elif self.projection.uncommitted and self._commit_at is None:
            self._commit_at = self._now() + COMMIT_SECONDS

    def postpone(self, seconds: float) -> None:
        self._commit_at = self._now() + seconds

    @property
    def is_due(self) -> bool:
        return self.until_commit() == 0.0

    def until_commit(self) -> float | None:
        """Seconds; None: there is nothing to commit."""
        return None if self._commit_at is None else max(0.0, self._commit_at - self._now())

    def commit(self) -> None:
        self.projection.commit()
        self._commit_at = None
