"""A bus is killed with a thousand locks held and two hundred in line: who held still holds, and nobody holds twice.

What the log says of locks is folded here a second time, by few lines of their own, and compared with what the bus says.
"""

import asyncio
import contextlib
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.process import BusProcess

pytestmark = pytest.mark.anyio

LOCKS = 1_000
SHORT = 60
"""Of them those whose lease runs out about when the bus is killed."""
REFRESHED = 300
WAITERS = 200
HOLDERS = 20
SHORT_SECONDS = (0.3, 2.5)
LONG_SECONDS = (100.0, 1_000.0)

Unit = dict[str, Any]
Told = dict[str, dict[str, Any]]
"""By lock_id: what its holder was told of it last."""


async def test_who_held_still_holds_after_kill_minus_9(tmp_path: Path) -> None:
    seed = random.getrandbits(32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    with BusProcess(tmp_path) as bus:
        follower = Follower()
        following = asyncio.ensure_future(follower.follow(bus.url))
        told = await hold(bus.url, dice)
        async with in_line(bus.url, dice) as line:
            await follower.until(lambda units: len(heard_of(units)) == WAITERS)
            bus.kill()
            await following
            assert await line.broken() == WAITERS
        bus.start()
        async with httpx.AsyncClient(base_url=bus.url, timeout=30, verify=False) as http:
            held_at = (await append(http, "restarted"))["seq"]
            check_held(await listed(http), told, await recorded(http), held_at)
            await ask_again(http, told)
            end = (await append(http, "the end"))["seq"]
            following = asyncio.ensure_future(follower.follow(bus.url))
            await follower.until(lambda units: len(units) >= end)
            following.cancel()
            heard = follower.units[:end]
            assert heard == (await recorded(http))[:end]
    assert [unit["seq"] for unit in heard] == list(range(1, end + 1))
    check_waits(heard)
    print(f"{count(heard, 'lock.expired')} of {LOCKS} expired, {end} units")


# --- Before the kill -------------------------------------------------------------------------------------------------


def resource(number: int) -> str:
    return f"repo/{number % 7}/{number}"


def agent(number: int) -> str:
    return f"holds-{number % HOLDERS}"


async def hold(url: str, dice: random.Random) -> Told:
    """A thousand locks; some are refreshed, some about to run out."""
    told: Told = {}
    async with socket_of(url) as socket:
        for number in range(LOCKS):
            await say(
                socket,
                "lock.acquire",
                id=number,
                resource=resource(number),
                agent_id=agent(number),
                ttl_seconds=dice.uniform(*(SHORT_SECONDS if number < SHORT else LONG_SECONDS)),
                mode="shared" if number % 10 == 0 else "exclusive",
            )
        locks = {answer["id"]: answer for answer in await locked(socket, LOCKS)}
        refreshed = dice.sample(range(SHORT, LOCKS), REFRESHED)
        for number in refreshed:
            more = {"ttl_seconds": LONG_SECONDS[1] + dice.uniform(*LONG_SECONDS)} if dice.random() < 0.5 else {}
            await say(
                socket, "lock.refresh", id=number, lock_id=locks[number]["lock_id"], agent_id=agent(number), **more
            )
        for answer in await locked(socket, REFRESHED):
            before = locks[answer["id"]]
            assert (answer["lock_id"], answer["fencing_token"]) == (before["lock_id"], before["fencing_token"])
            assert answer["expires_at"] > before["expires_at"]
            locks[answer["id"]] = answer
        told = {answer["lock_id"]: answer for answer in locks.values()}
    assert len(told) == LOCKS
    return told


class Line(NamedTuple):
    """Connections that wait, half of them plain HTTP."""

    wires: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
    sockets: list[ClientConnection]

    async def broken(self) -> int:
        """How many of them were cut off without a word of why."""
        return sum(await asyncio.gather(*map(_wire_broke, self.wires), *map(_socket_broke, self.sockets)))


@contextlib.asynccontextmanager
async def in_line(url: str, dice: random.Random) -> AsyncIterator[Line]:
    """Two hundred that wait for locks of others, some for one that is about to run out."""
    line = Line([], [])
    async with contextlib.AsyncExitStack() as stack:
        for number in range(WAITERS):
            asked = {
                "resource": resource(dice.randrange(LOCKS if number % 10 else SHORT)),
                "agent_id": f"waits-{number}",
                "wait_seconds": 3_600,
                "ttl_seconds": 3_600,
            }
            if number % 2:
                reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
                stack.callback(writer.close)
                body = json.dumps(asked).encode()
                writer.write(
                    b"POST /locks HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                )
                line.wires.append((reader, writer))
            else:
                socket = await stack.enter_async_context(socket_of(url))
                await say(socket, "lock.acquire", id=number, **asked)
                line.sockets.append(socket)
        yield line


async def _wire_broke(wire: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bool:
    reader, _ = wire
    try:
        return b" 503 " not in await reader.read()
    except ConnectionResetError:
        return True


async def _socket_broke(socket: ClientConnection) -> bool:
    try:
        while True:
            await socket.recv()
    except ConnectionClosed as closed:
        return closed.rcvd is None


# --- After it --------------------------------------------------------------------------------------------------------


def check_held(listed: Sequence[Unit], told: Told, units: Sequence[Unit], held_at: int) -> None:
    """Held are just those whose lease had not run out, as their holders knew them, and so says the log."""
    folded = fold(unit for unit in units if unit["seq"] <= held_at)
    now = units[held_at - 1]["ts"]
    shown = {lock["lock_id"]: lock for lock in listed}
    granted = {lock_id: lock for lock_id, lock in shown.items() if lock_id not in told}
    expected = {lock_id for lock_id, lock in told.items() if lock["expires_at"] > now}
    # (One that ran out while the list was made may not be in it any more.)
    assert expected - _run_out(units, after=held_at) <= set(shown) - set(granted) <= expected
    assert {*expected, *granted} == set(folded.locks)
    for lock_id, lock in shown.items():
        known = folded.locks[lock_id]
        assert lock["holder_agent"] == known.agent_id
        assert (lock["fencing_token"], lock["expires_at"], lock["resource"]) == (known.token, known.until, known.name)
        if lock_id in told:
            before = told[lock_id]
            assert (lock["fencing_token"], lock["expires_at"]) == (before["fencing_token"], before["expires_at"])
            assert lock["resource"] == before["locks"][0]["resource"]


def _run_out(units: Sequence[Unit], *, after: int) -> set[str]:
    return {unit["payload"]["lock_id"] for unit in units[after:] if unit.get("kind") == "lock.expired"}


def check_waits(units: Sequence[Unit]) -> None:
    """Every wait came to one end: a grant before the kill, or (asked for again, one after it) RESTARTED."""
    waits = {unit["id"]: unit for unit in units if unit.get("kind") == "lock.queued"}
    ends: defaultdict[str, list[Unit]] = defaultdict(list)
    for unit in units:
        if str(unit.get("kind")).startswith("lock.") and (name := unit["payload"].get("wait_id")):
            ends[name].append(unit)
    assert set(ends) == set(waits)
    assert all(len(ended) == 1 for ended in ends.values())
    restarted_at = next(unit["seq"] for unit in units if unit.get("payload") == "restarted")
    for name, (ended,) in ends.items():
        if ended["kind"] == "lock.wait_ended":
            assert ended["payload"]["why"] == "RESTARTED"
            assert waits[name]["seq"] < ended["seq"] < restarted_at
    assert sum(ended["kind"] == "lock.wait_ended" for (ended,) in ends.values()) > WAITERS // 2


async def ask_again(http: httpx.AsyncClient, told: Told) -> None:
    """Holders keep what they hold; who was in line is in line again, and granted in turn, with a token beyond all."""
    held = [lock for lock in told.values() if lock["id"] >= SHORT and lock["id"] % 10][:20]
    newest = max(lock["fencing_token"] for lock in await listed(http))
    for lock in held:
        named = {"resource": resource(lock["id"]), "agent_id": agent(lock["id"])}
        again = await http.post("/locks", json=named)
        assert (again.status_code, again.json()["lock_id"]) == (200, lock["lock_id"])
        assert again.json()["fencing_token"] == lock["fencing_token"]
    asked = [
        asyncio.ensure_future(
            http.post("/locks", json={"resource": resource(lock["id"]), "agent_id": "again", "wait_seconds": 60})
        )
        for lock in held
    ]
    for lock in held:
        named = {"agent_id": agent(lock["id"]), "lock_id": lock["lock_id"]}
        assert (await http.delete(f"/locks/{resource(lock['id'])}", params=named)).json()["released"] is True
    granted = [(await answer).json() for answer in asked]
    assert {lock["holder_agent"] for lock in granted} == {"again"}
    assert min(lock["fencing_token"] for lock in granted) > newest


# --- The log, folded once more ---------------------------------------------------------------------------------------


class Held(NamedTuple):
    name: str
    agent_id: str
    is_shared: bool
    token: int
    until: str


class Folded:
    """Who holds what. Two that conflict are an error."""

    def __init__(self) -> None:
        self.locks: dict[str, Held] = {}
        self._on: defaultdict[str, set[str]] = defaultdict(set)
        self._under: defaultdict[str, set[str]] = defaultdict(set)

    def take(self, unit: Unit) -> None:
        said = unit["payload"]
        match unit["kind"]:
            case "lock.granted":
                (name,) = said["resources"]
                self._grant(
                    unit["id"], Held(name, said["agent_id"], said["mode"] == "shared", unit["seq"], said["until"])
                )
            case "lock.refreshed":
                self.locks[said["lock_id"]] = self.locks[said["lock_id"]]._replace(until=said["until"])
            case "lock.released" | "lock.broken" | "lock.expired":
                lock = self.locks.pop(said["lock_id"])
                assert unit["kind"] != "lock.expired" or lock.until <= unit["ts"], "it expired early"
                self._on[lock.name].remove(said["lock_id"])
                for above in _above(lock.name):
                    self._under[above].remove(said["lock_id"])
            case _:
                assert unit["kind"] in ("lock.queued", "lock.wait_ended")

    def _grant(self, lock_id: str, lock: Held) -> None:
        others = self._on[lock.name] | self._under[lock.name]
        for above in _above(lock.name):
            others |= self._on[above]
            self._under[above].add(lock_id)
        for other in (self.locks[name] for name in others):
            assert (lock.is_shared and other.is_shared) or lock.agent_id == other.agent_id, f"{lock} beside {other}"
        self._on[lock.name].add(lock_id)
        self.locks[lock_id] = lock


def fold(units: Iterator[Unit]) -> Folded:
    folded = Folded()
    for unit in units:
        if str(unit.get("kind")).startswith("lock."):
            folded.take(unit)
    return folded


def _above(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


# --- Over the wire ---------------------------------------------------------------------------------------------------


class Follower:
    """Everything, from the beginning, over as many connections as it takes."""

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self._cursor = "0"
        self._more = asyncio.Event()

    async def follow(self, url: str) -> None:
        with contextlib.suppress(ConnectionClosed):
            async with connect(
                f"{url.replace('http', 'ws')}/stream?context=*&after={self._cursor}", max_size=None
            ) as socket:
                async for message in socket:
                    said = json.loads(message)
                    self._cursor = said["cursor"]
                    self.units += said.get("units", [])
                    self._more.set()

    async def until(self, is_so: Callable[[Sequence[Unit]], bool]) -> None:
        async with asyncio.timeout(30):
            while not is_so(self.units):
                self._more.clear()
                await self._more.wait()


@contextlib.asynccontextmanager
async def socket_of(url: str) -> AsyncIterator[ClientConnection]:
    async with connect(url.replace("http", "ws") + "/stream") as socket:
        assert json.loads(await socket.recv())["event"] == "subscribed"
        yield socket


async def say(socket: ClientConnection, op: str, **fields: Any) -> None:
    await socket.send(json.dumps({"op": op, **fields}))


async def locked(socket: ClientConnection, answers: int) -> list[dict[str, Any]]:
    said = [json.loads(await socket.recv()) for _ in range(answers)]
    assert {one["event"] for one in said} == {"locked"}
    return said


async def append(http: httpx.AsyncClient, payload: str) -> Unit:
    unit: Unit = (
        await http.post("/workunit", json={"context_id": "plan", "agent_id": "ann", "payload": payload})
    ).json()
    return unit


async def listed(http: httpx.AsyncClient) -> list[Unit]:
    return await _all(http, "/locks", "locks")


async def recorded(http: httpx.AsyncClient) -> list[Unit]:
    """The whole log: there are two contexts."""
    found = [*await _all(http, "/workunits/locks", "work_units"), *await _all(http, "/workunits/plan", "work_units")]
    return sorted(found, key=lambda unit: int(unit["seq"]))


async def _all(http: httpx.AsyncClient, path: str, name: str) -> list[Unit]:
    found: list[Unit] = []
    page: str | None = ""
    while page is not None:
        answer = (await http.get(path, params={"limit": 1_000, **({"page": page} if page else {})})).json()
        found += answer[name]
        page = answer["next_page"]
    return found


def heard_of(units: Sequence[Unit]) -> set[str]:
    """Those of the line of which the log knows: most wait, some came when it was free again."""
    return {unit["agent_id"] for unit in units if unit["agent_id"].startswith("waits-")}


def count(units: Sequence[Unit], kind: str) -> int:
    return sum(unit.get("kind") == kind for unit in units)
