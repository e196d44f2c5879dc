"""Where a story is played: a bus on which named parties act, and a line of text for everything that comes of it.

    append AGENT CONTEXT TEXT [type=] [kind=] [meta.KEY=] [causes=SEQ] [expect=VERSION] [key=KEY]
    bulk AGENT CONTEXT TEXT... [key=KEY] [each]          all or none; `each`: each by itself
    update AGENT CONTEXT [name=] [join=A,B] [leave=A,B] [pin=SEQ] [unpin=SEQ] [meta.KEY=] [close] [reopen] [...]
    context CONTEXT | contexts [prefix=]
    list CONTEXT [limit=] [reverse] [after=] [before=] [FILTER]          every page of it
    related SEQ [depth=] [direction=]
    subscribe NAME CONTEXT... [after=CURSOR] [FILTER]     in this process; FILTER: agent= not= type= kind=
    connect NAME CONTEXT... [after=CURSOR] [room=FRAMES] [FILTER]        over a socket with room for some frames
    read NAME [COUNT] | leave NAME | resume NAME
    wait SECONDS                                          a second is a pulse
    restart

Units are named by their seq and cursors are `log.SEQ`, so nothing that is said is random.
"""

import asyncio
import re
import shlex
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from engram_bus import Bus, Context, Draft, EngramError, Gap, Relationship, RelationshipType, UnitType, WorkUnit
from engram_bus.log.memory import MemoryLog
from engram_bus.router.filters import Filter, make_filter
from engram_bus.router.local import LocalSubscription
from tests.router.sinks import Frame, PlainFraming, PlainSink

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Words:
    """One line of a step: what it says to do, to whom, and the words with a `=` by their names."""

    def __init__(self, line: str) -> None:
        self.verb, *words = shlex.split(line)
        self.named = dict(word.split("=", 1) for word in words if "=" in word)
        self.plain = [word for word in words if "=" not in word]

    def flag(self, name: str) -> bool:
        """Whether this was said; then it is no longer among the plain words."""
        said = name in self.plain
        self.plain = [word for word in self.plain if word != name]
        return said

    def number(self, name: str) -> int | None:
        return int(self.named[name]) if name in self.named else None

    def some(self, name: str) -> list[str]:
        return self.named[name].split(",") if name in self.named else []

    def meta(self) -> dict[str, str]:
        return {name[5:]: value for name, value in self.named.items() if name.startswith("meta.")}

    def filter(self, contexts: Sequence[str]) -> Filter:
        return make_filter(
            contexts=contexts,
            agents=self.some("agent"),
            exclude_agents=self.some("not"),
            types=self.some("type"),
            kinds=self.some("kind"),
        )


class Stage:
    """One story's bus and parties."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._memory = MemoryLog()
        self._bus = self._start()
        self._readers: dict[str, Reader] = {}

    def _start(self) -> Bus:
        bus = Bus(self._memory) if self._path is None else Bus.start(self._path)
        bus._next_pulse.cancel()  # Time passes when the story says so.
        return bus

    async def close(self) -> None:
        await self._bus.stop("the story is over")

    async def play(self, lines: Sequence[str]) -> list[str]:
        """What came of these lines, all said in one turn."""
        came = await asyncio.gather(*(self._say(Words(line)) for line in lines))
        while self._bus.fanout._catching_up:
            await asyncio.sleep(0)
        lines = [self._named(line) for lines in came for line in lines]
        counted = [(line, len(list(same))) for line, same in groupby(lines)]
        return [said for line, count in counted for said in _repeated(line, count)]

    async def _say(self, words: Words) -> list[str]:
        verb: Callable[[Words], Awaitable[list[str]]] = getattr(self, f"_{words.verb}")
        try:
            return await verb(words)
        except EngramError as error:
            return [refusal(error)]

    # --- Append ------------------------------------------------------------------------------------------------------

    async def _append(self, words: Words) -> list[str]:
        agent_id, context_id, text = words.plain
        unit = await self._bus.append(
            context_id,
            text,
            agent_id=agent_id,
            type=words.named.get("type", UnitType.MESSAGE),
            kind=words.named.get("kind"),
            meta=words.meta(),
            relationships=[Relationship(self._id(seq), RelationshipType.CAUSES) for seq in words.some("causes")],
            expected_version=words.number("expect"),
            idempotency_key=words.named.get("key"),
        )
        return [told(unit)]

    async def _bulk(self, words: Words) -> list[str]:
        each = words.flag("each")
        agent_id, context_id, *texts = words.plain
        drafts = [
            Draft(context_id=context_id, agent_id=agent_id, type=UnitType.MESSAGE, payload=text.encode())
            for text in texts
        ]
        outcomes = await self._bus.append_bulk(drafts, atomic=not each, idempotency_key=words.named.get("key"))
        return [told(outcome) if isinstance(outcome, WorkUnit) else refusal(outcome) for outcome in outcomes]

    async def _update(self, words: Words) -> list[str]:
        closed = True if words.flag("close") else False if words.flag("reopen") else None
        agent_id, context_id = words.plain
        context = await self._bus.update_context(
            context_id,
            agent_id=agent_id,
            display_name=words.named.get("name"),
            add_agents=words.some("join"),
            remove_agents=words.some("leave"),
            pin_units=[self._id(seq) for seq in words.some("pin")],
            unpin_units=[self._id(seq) for seq in words.some("unpin")],
            meta={key: value or None for key, value in words.meta().items()},
            closed=closed,
            expected_version=words.number("expect"),
            idempotency_key=words.named.get("key"),
        )
        return [self._described(context)]

    # --- Look --------------------------------------------------------------------------------------------------------

    async def _context(self, words: Words) -> list[str]:
        return [self._described(self._bus.context(words.plain[0]))]

    async def _contexts(self, words: Words) -> list[str]:
        found = self._bus.contexts(prefix=words.named.get("prefix", "")).contexts
        return [self._described(context) for context in found] or ["none"]

    async def _list(self, words: Words) -> list[str]:
        asked: dict[str, Any] = {
            "limit": words.number("limit") or 100,
            "reverse": words.flag("reverse"),
            "after": words.number("after") or 0,
            "before": words.number("before"),
            "wanted": words.filter(["*"]),
        }
        page = self._bus.list(words.plain[0], **asked)
        lines = [told(unit) for unit in page.work_units]
        while page.next_page is not None:
            page = self._bus.list(words.plain[0], page=page.next_page, **asked)
            lines += ["next page", *(told(unit) for unit in page.work_units)]
        return lines or ["none"]

    async def _related(self, words: Words) -> list[str]:
        page = self._bus.related(
            self._id(words.plain[0]),
            depth=words.number("depth") or 1,
            direction=words.named.get("direction", "both"),
        )
        return [f"{one.direction} {one.relationship} {told(one.entry.unit)}" for one in page.related] or ["none"]

    # --- Subscribe ---------------------------------------------------------------------------------------------------

    async def _subscribe(self, words: Words) -> list[str]:
        name, *contexts = words.plain
        return self._join(name, Local(words.filter(contexts)), words.named.get("after"))

    async def _connect(self, words: Words) -> list[str]:
        name, *contexts = words.plain
        return self._join(name, Remote(words.filter(contexts), words.number("room") or 100), words.named.get("after"))

    def _join(self, name: str, reader: "Reader", after: str | None) -> list[str]:
        if after is not None:
            after = after.replace("log.", f"{self._bus.epoch}.")
        self._readers[name] = reader
        return reader.begin(self._bus, after)

    async def _read(self, words: Words) -> list[str]:
        name, *count = words.plain
        while self._bus.fanout._catching_up:
            await asyncio.sleep(0)
        return await self._readers[name].read(int(count[0]) if count else 1_000)

    async def _leave(self, words: Words) -> list[str]:
        reader = self._readers[words.plain[0]]
        reader.end()
        return [f"left at {reader.cursor}"]

    async def _resume(self, words: Words) -> list[str]:
        reader = self._readers[words.plain[0]]
        return reader.begin(self._bus, reader.cursor)

    # --- Time --------------------------------------------------------------------------------------------------------

    async def _wait(self, words: Words) -> list[str]:
        for _ in range(int(words.plain[0])):
            self._bus.fanout.pulse()
        return ["ok"]

    async def _restart(self, words: Words) -> list[str]:
        await self._bus.stop("restart")
        self._bus = self._start()
        return [f"head {self._bus.head}"]

    # --- In words ----------------------------------------------------------------------------------------------------

    def _named(self, line: str) -> str:
        """The line without what is random in it."""
        line = line.replace(self._bus.epoch, "log").rstrip()
        return _ID.sub(lambda found: f"unit {self._bus.get(found.group()).seq}", line)

    def _id(self, seq: str) -> str:
        return self._bus.log.record(int(seq)).unit.id

    def _described(self, context: Context) -> str:
        pins = ",".join(str(self._bus.get(unit_id).seq) for unit_id in context.pinned_units)
        parts = {
            "name": repr(context.display_name) if context.display_name else "",
            "agents": ",".join(context.agent_ids),
            "pins": pins,
            "meta": " ".join(f"{key}={value}" for key, value in sorted(context.meta.items())),
        }
        said = [
            f"{context.id} version {context.version}",
            *(f"{key}: {value}" for key, value in parts.items() if value),
        ]
        return "; ".join([*said, "closed"] if context.closed else said)


def _repeated(line: str, count: int) -> list[str]:
    return [line] * count if count < 3 else [f"{line} ({count} times)"]


def told(unit: WorkUnit) -> str:
    """A unit in one line."""
    return (
        f"{unit.seq} {unit.context_id}/{unit.version} {unit.agent_id} {unit.kind or unit.type} {unit.payload.decode()}"
    )


def refusal(error: EngramError) -> str:
    """A refusal in one line."""
    at = "" if error.index is None else f" (item {error.index})"
    return f"refused {error.code}{at}: {error.message}"


class Local:
    """A subscriber in this process."""

    def __init__(self, wanted: Filter) -> None:
        self._wanted = wanted
        self._subscription: LocalSubscription
        self.cursor = ""

    def begin(self, bus: Bus, after: str | None) -> list[str]:
        self._subscription = LocalSubscription(bus.fanout, self._wanted, bus.seq_of_cursor(after))
        self.cursor = self._subscription.cursor
        return [f"subscribed {self.cursor}"]

    def end(self) -> None:
        self._subscription.close()

    async def read(self, count: int) -> list[str]:
        lines: list[str] = []
        inbox = self._subscription._inbox
        while len(lines) < count and (inbox.first_seq is not None or inbox._error is not None):
            try:
                lines.append(told(await anext(self._subscription)))
            except Gap as gap:
                lines.append(f"gap {gap.first} to {gap.last}: {gap.reason}")
            except EngramError as error:
                lines.append(refusal(error))
                break
        self.cursor = self._subscription.cursor
        return [*lines, f"at {self.cursor}"]


class Remote:
    """A subscriber whose socket has room for a few frames. It hears frames, and remembers the last cursor it heard."""

    def __init__(self, wanted: Filter, room: int) -> None:
        self._wanted = wanted
        self._room = room
        self._heard = 0
        self.cursor = ""

    def begin(self, bus: Bus, after: str | None) -> list[str]:
        self._heard = 0
        self._sink = PlainSink(self._room)
        self._feed = bus.feed(self._wanted, PlainFraming(), self._sink, bus.seq_of_cursor(after))
        self.cursor = self._sink.cursor
        return []

    def end(self) -> None:
        self._feed.close()

    async def read(self, count: int) -> list[str]:
        frames = self._sink.heard[self._heard :][:count]
        self._heard += len(frames)
        self._sink.waiting = len(self._sink.heard) - self._heard
        if self._sink.writable:
            self._feed.drained()
        if frames:
            self.cursor = frames[-1].cursor
        lines = [_heard(frame) for frame in frames]
        if self._sink.ended is not None and self._heard == len(self._sink.heard):
            error, self.cursor = self._sink.ended
            lines.append(f"ended {error.code}: resume after {self.cursor}")
        return lines or ["nothing"]


Reader = Local | Remote


def _heard(frame: Frame) -> str:
    match frame.event:
        case "units":
            return f"units {' '.join(map(str, frame.seqs))} -> {frame.cursor}"
        case "goaway":
            return f"goaway {frame.more[0]} -> {frame.cursor}"
        case event:
            return f"{event} {frame.more} -> {frame.cursor}"
