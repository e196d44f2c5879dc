"""Where a story is played: a bus on which named parties act, and a line of text for everything that comes of it.

    append AGENT CONTEXT TEXT [type=] [kind=] [meta.KEY=] [causes=SEQ] [expect=VERSION] [key=KEY] [touches=A,B]
        [fence=RESOURCE:SEQ]
    bulk AGENT CONTEXT TEXT... [key=KEY] [each]          all or none; `each`: each by itself
    update AGENT CONTEXT [name=] [join=A,B] [leave=A,B] [pin=SEQ] [unpin=SEQ] [meta.KEY=] [fences=A,B] [close] [...]
    context CONTEXT | contexts [prefix=]
    list CONTEXT [limit=] [reverse] [after=] [before=] [FILTER]          every page of it
    related SEQ [depth=] [direction=]
    subscribe NAME CONTEXT... [after=CURSOR] [FILTER]     in this process; FILTER: agent= not= type= kind=
    connect NAME CONTEXT... [after=CURSOR] [room=FRAMES] [FILTER]        over a socket with room for some frames
    read NAME [COUNT] | leave NAME | resume NAME
    acquire AGENT RESOURCE... [ttl=30] [wait=] [shared] [for=REASON] [in=CONTEXT] [session=NAME]
    refresh AGENT SEQ [ttl=] | release AGENT SEQ | break AGENT RESOURCE REASON | cancel AGENT
    lock RESOURCE | locks [holder=] [prefix=]
    hangup NAME                                           the connection of a session ends
    wait SECONDS                                          a second is a pulse; no other time passes
    restart

Units are named by their seq, locks by that of their grant (their fencing token), cursors are `log.SEQ`, and times are
seconds since the story began, so nothing that is said is random. Who waits for a lock is told in a later step.
"""

import asyncio
import re
import shlex
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from engram_bus import Bus, Context, Draft, EngramError, Gap, Relationship, RelationshipType, UnitType, WorkUnit
from engram_bus.bus.writer import Answer
from engram_bus.clock import Clock
from engram_bus.decisions.locks import GRANTED, change_of
from engram_bus.limits import LOCK_SESSION_GRACE_SECONDS
from engram_bus.log.memory import MemoryLog
from engram_bus.router.filters import Filter, make_filter
from engram_bus.router.local import LocalSubscription
from engram_bus.units import LOCKS_CONTEXT, AcquireLock, Fence, Lock, LockMode, ts_us
from tests.router.sinks import Frame, PlainFraming, PlainSink

BEGINS = "2030-01-01T00:00:00.000000Z"
_TIME = re.compile(r"20\d\d-\d\d-\d\dT[\d:.]+Z")
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
        self._now_us = ts_us(BEGINS)
        self._hung_up: dict[str, int] = {}
        self._bus = self._start()
        self._readers: dict[str, Reader] = {}
        self._in_line: list[InLine] = []

    def _start(self) -> Bus:
        bus = Bus(self._memory) if self._path is None else Bus.start(self._path)
        # Time passes when the story says so.
        bus._next_pulse.cancel()
        bus.writer._clock = Clock(boot_us=lambda: self._now_us, wall_us=lambda: self._now_us)
        for session in bus.writer.state.locks.sessions:
            self._begin_grace(bus, session)
        return bus

    def _begin_grace(self, bus: Bus, session: str) -> None:
        bus._session_ends[session].cancel()
        self._hung_up[session] = self._now_us + int(LOCK_SESSION_GRACE_SECONDS * 1_000_000)

    async def close(self) -> None:
        await self._bus.stop("the story is over")

    async def play(self, lines: Sequence[str]) -> list[str]:
        """What came of these lines, all said in one turn."""
        came = await asyncio.gather(*(self._say(Words(line)) for line in lines))
        while self._bus.fanout._catching_up:
            await asyncio.sleep(0)
        await self._committed()
        lines = [self._named(line) for lines in (*came, self._told_in_line()) for line in lines]
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
            resources=words.some("touches"),
            fence=_fence(words.named.get("fence")),
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
            fences=words.some("fences") if "fences" in words.named else None,
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

    # --- Locks -------------------------------------------------------------------------------------------------------

    async def _acquire(self, words: Words) -> list[str]:
        mode = LockMode.SHARED if words.flag("shared") else LockMode.EXCLUSIVE
        agent_id, *resources = words.plain
        command = AcquireLock(
            resources=tuple(resources),
            agent_id=agent_id,
            ttl_ms=1_000 * (words.number("ttl") or 30),
            mode=mode,
            wait_ms=1_000 * (words.number("wait") or 0),
            reason=words.named.get("for", ""),
            context_id=words.named.get("in", LOCKS_CONTEXT),
            session=words.named.get("session"),
        )
        asked = InLine(command)
        asked.abandon = self._bus.submit_lock(command, asked.settle)
        await self._committed()
        if asked.outcome is not None:
            return asked.told()
        self._in_line.append(asked)
        return [f"{agent_id} waits for {' '.join(resources)}"]

    async def _refresh(self, words: Words) -> list[str]:
        agent_id, seq = words.plain
        lock = await self._bus.refresh_lock(self._id(seq), agent_id=agent_id, ttl_seconds=words.number("ttl"))
        return [f"extended {described(lock)}"]

    async def _release(self, words: Words) -> list[str]:
        agent_id, seq = words.plain
        return ["released" if await self._bus.release_lock(self._id(seq), agent_id=agent_id) else "was not held"]

    async def _break(self, words: Words) -> list[str]:
        agent_id, resource, reason = words.plain
        return [f"broken: {lock}" for lock in await self._bus.break_lock(resource, agent_id=agent_id, reason=reason)]

    async def _cancel(self, words: Words) -> list[str]:
        self._leave_line(lambda command: command.agent_id == words.plain[0])
        return []

    async def _lock(self, words: Words) -> list[str]:
        state = self._bus.lock(words.plain[0])
        line = ", ".join(wait.agent_id for wait in state.queue)
        held = [f"{state.resource}: {described(lock)}" for lock in state.holders] or [f"{state.resource}: free"]
        return [*held, f"in line: {line}"] if line else held

    async def _locks(self, words: Words) -> list[str]:
        page = self._bus.locks(holder=words.named.get("holder"), prefix=words.named.get("prefix", ""))
        return [f"{resource}: {described(lock)}" for resource, lock in page.locks] or ["none"]

    async def _hangup(self, words: Words) -> list[str]:
        session = words.plain[0]
        self._leave_line(lambda command: command.session == session)
        self._bus.end_session(session)
        self._begin_grace(self._bus, session)
        return []

    def _leave_line(self, leaves: Callable[[AcquireLock], bool]) -> None:
        for asked in self._in_line:
            if leaves(asked.command):
                asked.abandon()

    def _told_in_line(self) -> list[str]:
        settled = [asked for asked in self._in_line if asked.outcome is not None]
        self._in_line = [asked for asked in self._in_line if asked.outcome is None]
        return [f"{asked.command.agent_id} is {line}" for asked in settled for line in asked.told()]

    async def _committed(self) -> None:
        """When the writer has nothing left to do."""
        while self._bus.writer._turn_due or self._bus.writer._queue:
            await asyncio.sleep(0)

    # --- Time --------------------------------------------------------------------------------------------------------

    async def _wait(self, words: Words) -> list[str]:
        for _ in range(int(words.plain[0])):
            self._now_us += 1_000_000
            self._bus.fanout.pulse()
            for session in [name for name, due_us in self._hung_up.items() if due_us <= self._now_us]:
                del self._hung_up[session]
                self._bus._release_session(session)
            if self._bus.writer._is_due(self._now_us):
                self._bus.writer._tend_later()
                await self._committed()
        return ["ok"]

    async def _restart(self, words: Words) -> list[str]:
        await self._bus.stop("restart")
        self._hung_up.clear()
        self._bus = self._start()
        return [f"head {self._bus.head}"]

    # --- In words ----------------------------------------------------------------------------------------------------

    def _named(self, line: str) -> str:
        """The line without what is random in it."""
        line = line.replace(self._bus.epoch, "log").rstrip()
        line = _TIME.sub(lambda found: f"{(ts_us(found.group()) - ts_us(BEGINS)) / 1_000_000:g}s", line)
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


class InLine:
    """An acquire and what came of it, at once or later."""

    def __init__(self, command: AcquireLock) -> None:
        self.command = command
        self.abandon: Callable[[], None] = lambda: None
        self.outcome: Answer | EngramError | None = None

    def settle(self, outcome: Answer | EngramError) -> None:
        self.outcome = outcome

    def told(self) -> list[str]:
        assert self.outcome is not None
        if isinstance(self.outcome, EngramError):
            return [refusal(self.outcome)]
        assert self.outcome.lock is not None
        is_new = self.outcome.entries[0].unit.kind == GRANTED
        return [f"{'granted' if is_new else 'extended'} {described(self.outcome.lock)}"]


def described(lock: Lock) -> str:
    """A lock in one line."""
    mode = " (shared)" if lock.mode is LockMode.SHARED else ""
    return f"{' '.join(lock.resources)} to {lock.holder_agent}{mode} under {lock.fencing_token} until {lock.expires_at}"


def _fence(text: str | None) -> Fence | None:
    if text is None:
        return None
    resource, _, token = text.rpartition(":")
    return Fence(resource, int(token))


def told(unit: WorkUnit) -> str:
    """A unit in one line."""
    is_lock = unit.kind is not None and unit.kind.startswith("lock.")
    text = _told_lock(unit) if is_lock else unit.payload.decode()
    return f"{unit.seq} {unit.context_id}/{unit.version} {unit.agent_id} {unit.kind or unit.type} {text}"


def _told_lock(unit: WorkUnit) -> str:
    change = change_of(unit)
    parts = {
        "of": change.agent_id if change.agent_id != unit.agent_id else None,
        "until": change.until,
        "why": change.why,
        "in the way:": change.obstacle and change.obstacle.holder_agent,
        "for": change.reason,
    }
    return " ".join([*change.resources, *(f"{name} {value}" for name, value in parts.items() if value)])


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
        self._sink.feeds.append(self._feed)
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
