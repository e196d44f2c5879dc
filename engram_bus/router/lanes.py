"""Who is live: feeds that stand at the head, grouped so that one frame serves all of one filter and framing."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from engram_bus.codec import Entry
from engram_bus.limits import FRAME_BYTES_MAX
from engram_bus.router.contract import Framing, Sink
from engram_bus.router.filters import Filter, predicate


class Member(Protocol):
    """What a lane needs of a feed."""

    wanted: Filter
    framing: Framing[Any]
    sink: Sink[Any]

    def fall_behind(self, seq: int) -> None:
        """The socket is full: everything wanted up to `seq` was handed to it, nothing after."""

    def fail(self, seq: int, mistake: Exception) -> None:
        """Our mistake: end, having handed over everything wanted up to `seq`."""


class Part(NamedTuple):
    """A frame of `units` units; who was handed it stands at `upto`."""

    frame: Any
    units: int
    upto: int


class Batch:
    """One committed batch on its way out. A frame of all of it is made once, however many lanes want all of it."""

    def __init__(self, entries: Sequence[Entry], epoch: str) -> None:
        self.entries = entries
        self.before = entries[0].seq - 1
        self.head = entries[-1].seq
        self._epoch = epoch
        self._whole: dict[Framing[Any], list[Part]] = {}

    def parts(self, wanted: Sequence[Entry], framing: Framing[Any]) -> list[Part]:
        """What is wanted of this batch, as frames; the last leads to the batch's end."""
        if len(wanted) < len(self.entries):
            return self._framed(wanted, framing)
        parts = self._whole.get(framing)
        if parts is None:
            parts = self._whole[framing] = self._framed(wanted, framing)
        return parts

    def _framed(self, wanted: Sequence[Entry], framing: Framing[Any]) -> list[Part]:
        groups = list(frame_groups(wanted))
        ends = [group[-1].seq for group in groups[:-1]] + [self.head]
        return [
            Part(framing.units(group, self._epoch, end), len(group), end)
            for group, end in zip(groups, ends, strict=True)
        ]


def frame_groups(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Entries joined up to the size of a frame; one that is larger goes alone."""
    group: list[Entry] = []
    group_bytes = 0
    for entry in entries:
        if group and group_bytes + len(entry.body) > FRAME_BYTES_MAX:
            yield group
            group, group_bytes = [], 0
        group.append(entry)
        group_bytes += len(entry.body)
    yield group


class Lane:
    """The live feeds of one filter and framing: all of them stand at the head."""

    def __init__(self, wanted: Filter, framing: Framing[Any]) -> None:
        self.wanted = wanted
        self.framing = framing
        self.upto = 0
        """All who are here were handed everything wanted up to this seq; what the router offered later is not."""
        self._members: dict[Member, Callable[[Any], object]] = {}
        self._pushes: Sequence[tuple[Member, Callable[[Any], object]]] | None = None
        """The members with what their frames are handed to, until one comes or goes."""
        # A lane is only offered units of its contexts.
        self._wants = predicate(msgspec.structs.replace(wanted, contexts=None))
        self._quiet_pulses = 0

    def offer(self, entries: Sequence[Entry], batch: Batch) -> int:
        """Hand over what is wanted of these, in one write per feed and frame; gives the units delivered."""
        wanted = [entry for entry in entries if self._wants(entry.unit)]
        if not wanted:
            return 0
        self._quiet_pulses = 0
        delivered, position = 0, batch.before
        for frame, units, upto in batch.parts(wanted, self.framing):
            self.upto = upto  # Who is full of this frame says so from within its push.
            pushes = self._pushes
            if pushes is None:
                pushes = self._pushes = tuple(self._members.items())
            for member, push in pushes:
                try:
                    push(frame)
                except Exception as exc:
                    member.fail(position, exc)
            delivered += units * len(pushes)
            position = upto
        return delivered

    def join(self, member: Member) -> None:
        """Its sink has room, and it stands where the others do."""
        self._members[member] = member.sink.push
        self._pushes = None

    def leave(self, member: Member) -> bool:
        """Whether nobody is left."""
        if self._members.pop(member, None) is not None:
            self._pushes = None
        return not self._members

    def pulse(self, heartbeat_pulses: float, cursor: str, head: int) -> None:
        """One second went by: a heartbeat to all if it was quiet for long."""
        self._quiet_pulses += 1
        if self._quiet_pulses < heartbeat_pulses:
            return
        self._quiet_pulses = 0
        frame = self.framing.heartbeat(cursor, head)
        for member in list(self._members):
            if member.sink.writable:
                member.sink.write(frame)

    def fail(self, seq: int, mistake: Exception) -> None:
        """Our mistake, before any of them was written to: end them all."""
        for member in list(self._members):
            member.fail(seq, mistake)


class Lanes:
    """All lanes, found by the contexts they want."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[Filter, Framing[Any]], Lane] = {}
        self._by_context: dict[str, dict[Lane, None]] = {}
        self._everywhere: dict[Lane, None] = {}

    def __iter__(self) -> Iterator[Lane]:
        return iter(list(self._by_key.values()))

    def offer(self, batch: Batch) -> int:
        """Hand a batch to every lane that wants some of it; gives the units delivered."""
        delivered = 0
        for lane, entries in self._wanting(batch.entries).items():
            try:
                delivered += lane.offer(entries, batch)
            except Exception as exc:
                lane.fail(batch.before, exc)
        return delivered

    def _wanting(self, entries: Sequence[Entry]) -> dict[Lane, Sequence[Entry]]:
        """Each lane with the units of its contexts: work is done for lanes that a unit is for, not for all lanes."""
        wanting: dict[Lane, Sequence[Entry]] = dict.fromkeys(self._everywhere, entries)
        if not self._by_context:
            return wanting
        some: dict[Lane, list[Entry]] = {}
        for entry in entries:
            for lane in self._by_context.get(entry.unit.context_id, ()):
                some.setdefault(lane, []).append(entry)
        wanting.update(some)
        return wanting

    def upto(self, member: Member) -> int:
        """How far the lane of this feed has come."""
        lane = self._by_key.get((member.wanted, member.framing))
        return 0 if lane is None else lane.upto

    def join(self, member: Member) -> None:
        """This feed stands at the head."""
        key = (member.wanted, member.framing)
        lane = self._by_key.get(key)
        if lane is None:
            lane = self._by_key[key] = Lane(*key)
            if lane.wanted.contexts is None:
                self._everywhere[lane] = None
            for context_id in lane.wanted.contexts or ():
                self._by_context.setdefault(context_id, {})[lane] = None
        lane.join(member)

    def leave(self, member: Member) -> None:
        """This feed is served by itself, or not at all."""
        key = (member.wanted, member.framing)
        lane = self._by_key.get(key)
        if lane is None or not lane.leave(member):
            return
        del self._by_key[key]
        self._everywhere.pop(lane, None)
        for context_id in lane.wanted.contexts or ():
            lanes = self._by_context[context_id]
            del lanes[lane]
            if not lanes:
                del self._by_context[context_id]
