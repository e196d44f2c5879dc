"""How a client asks the bus for locks, once each way: what cannot be known stays unknown, nothing is tried again."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from tests.simulation.lock_model import (
    Acquire,
    Break,
    Granted,
    Held,
    Live,
    LockCall,
    LockResult,
    Look,
    Refresh,
    Refused,
    Release,
    Seen,
    Shown,
    Write,
)

LOST = (httpx.TransportError, WebSocketException, OSError)
"""Nobody can know whether the bus got it."""

_SECOND_NS = 1_000_000_000


class Wire(Protocol):
    """The connection of a client to one process of the bus."""

    async def ask(self, call: LockCall) -> LockResult:
        """Raises LOST."""


# `lock_ids` is shared by all wires: the lock_id of each fencing token that any of them saw.


@asynccontextmanager
async def http_wire(url: str, lock_ids: dict[int, str]) -> AsyncIterator[Wire]:
    async with httpx.AsyncClient(base_url=url, timeout=30, verify=False) as http:
        yield _HttpWire(http, lock_ids)


@asynccontextmanager
async def socket_wire(url: str, lock_ids: dict[int, str]) -> AsyncIterator[Wire]:
    """A WebSocket, and HTTP for what has no operation there."""
    to = url.replace("http://", "ws://") + "/stream"
    async with http_wire(url, lock_ids) as http, connect(to, compression=None) as socket:
        yield _SocketWire(socket, http, lock_ids)


class _HttpWire:
    def __init__(self, http: httpx.AsyncClient, lock_ids: dict[int, str]) -> None:
        self._http = http
        self._lock_ids = lock_ids

    async def ask(self, call: LockCall) -> LockResult:
        match call:
            case Acquire():
                return await self._ask(call, "POST", "/locks", acquire_body(call))
            case Refresh():
                return await self._ask(call, "PATCH", f"/locks/{call.resource}", refresh_body(call, self._lock_ids))
            case Release():
                query = {"agent_id": call.agent, "lock_id": self._lock_ids[call.token]}
                return await self._ask(call, "DELETE", f"/locks/{call.resource}", query=query)
            case Break():
                query = {"agent_id": "admin", "break": "true", "reason": "whoever it is"}
                return await self._ask(call, "DELETE", f"/locks/{call.resource}", query=query)
            case Write():
                return await self._ask(call, "POST", "/workunit", unit_body(call))
            case Look():
                return await self._ask(call, "GET", f"/locks/{call.resource}")

    async def _ask(
        self,
        call: LockCall,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> LockResult:
        answer = await self._http.request(method, path, json=body, params=query)
        return result_of(call, answer.json(), extended=answer.status_code == 200, lock_ids=self._lock_ids)


class _SocketWire:
    def __init__(self, socket: ClientConnection, http: Wire, lock_ids: dict[int, str]) -> None:
        self._socket = socket
        self._http = http
        self._lock_ids = lock_ids
        self._count = 0

    async def ask(self, call: LockCall) -> LockResult:
        match call:
            case Acquire():
                return await self._ask(call, "lock.acquire", acquire_body(call))
            case Refresh():
                return await self._ask(call, "lock.refresh", refresh_body(call, self._lock_ids))
            case Release():
                body = {"lock_id": self._lock_ids[call.token], "agent_id": call.agent}
                return await self._ask(call, "lock.release", body)
            case Write():
                return await self._ask(call, "append", {"unit": unit_body(call)})
            case Break() | Look():
                return await self._http.ask(call)

    async def _ask(self, call: LockCall, operation: str, body: Mapping[str, Any]) -> LockResult:
        self._count += 1
        await self._socket.send(json.dumps({"op": operation, "id": self._count, **body}))
        async for message in self._socket:
            answer = json.loads(message)
            if answer.get("id") == self._count:
                return result_of(call, answer, extended=answer.get("extended", False), lock_ids=self._lock_ids)
        raise ConnectionResetError("the bus closed the socket")


def acquire_body(call: Acquire) -> dict[str, Any]:
    return {
        "resource": call.resource,
        "agent_id": call.agent,
        "mode": "exclusive" if call.exclusive else "shared",
        "ttl_seconds": call.ttl_ns / _SECOND_NS,
        "wait_seconds": call.wait_ns / _SECOND_NS,
    }


def refresh_body(call: Refresh, lock_ids: Mapping[int, str]) -> dict[str, Any]:
    return {"lock_id": lock_ids[call.token], "agent_id": call.agent, "ttl_seconds": call.ttl_ns / _SECOND_NS}


def unit_body(call: Write) -> dict[str, Any]:
    fence = {"resource": call.resource, "token": call.token}
    return {"context_id": "writes", "agent_id": call.agent, "payload": "written", "fence": fence}


def result_of(call: LockCall, answer: Any, *, extended: bool, lock_ids: dict[int, str]) -> LockResult:
    match call, answer.get("code"):
        case Acquire(), None:
            lock_ids[answer["fencing_token"]] = answer["lock_id"]
            return Granted(answer["fencing_token"], extended)
        case Acquire(), "LOCK_HELD":
            return Held(answer["holder_agent"], answer["waits"])
        case Acquire(), "DEADLOCK":
            return Refused()
        case ((Refresh() | Write()), None):
            return Live(True)
        case ((Release() | Break()), None):
            return Live(answer["released"])
        case (Refresh(), "LOCK_LOST") | (Write(), "FENCE_STALE") | (Break(), "LOCK_NOT_FOUND"):
            return Live(False)
        case Look(), None:
            lock_ids.update((one["fencing_token"], one["lock_id"]) for one in answer["holders"])
            return Seen(
                tuple(
                    Shown(one["fencing_token"], one["holder_agent"], one["mode"] == "exclusive")
                    for one in answer["holders"]
                )
            )
        case _:
            raise AssertionError(f"{call} was answered {answer}")
