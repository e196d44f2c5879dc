"""The Python client, over HTTP and WebSocket or over gRPC: what an application says, and what it is told."""

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, Final

import msgspec

from engram_bus.conformance.patterns import UNTOLD
from engram_bus.conformance.transports import payloads
from engram_bus.conformance.transports.contract import (
    AsException,
    Asked,
    Broken,
    CannotSay,
    Event,
    Refused,
    Stream,
    Units,
)
from engram_client import (
    Client,
    Draft,
    EngramConnectionError,
    EngramError,
    Gap,
    Lock,
    LockMode,
    Receipt,
    Subscription,
    WorkUnit,
)

VERBS: Final = frozenset(
    """append append_bulk append_many get list related get_context update_context contexts acquire_lock refresh_lock
    release_lock break_lock get_lock locks search rebuild_search status subscribe""".split()
)
RECONNECT_SECONDS: Final = 10.0
RECONNECT_PAUSE_SECONDS: Final = 0.1
_AGENT: Final = "conformance"
_EMPTY: Final[tuple[Any, ...]] = (None, {}, [])


class OfClient:
    """A program that uses the client. A request is made once: to try again would hide what is refused."""

    verbs = VERBS

    def __init__(self, url: str) -> None:
        self._client = Client(url, agent_id=_AGENT, max_retries=0)
        self._verbs: dict[str, Callable[[Asked], Awaitable[Any]]] = {
            "append": self._append,
            "append_bulk": self._append_bulk,
            "append_many": self._append_many,
            "get": self._get,
            "list": self._list,
            "related": self._related,
            "get_context": self._get_context,
            "update_context": self._update_context,
            "contexts": self._contexts,
            "acquire_lock": self._acquire_lock,
            "refresh_lock": self._refresh_lock,
            "release_lock": self._release_lock,
            "break_lock": self._break_lock,
            "get_lock": self._get_lock,
            "locks": self._locks,
            "search": self._search,
            "rebuild_search": self._rebuild_search,
            "status": self._status,
        }

    async def aclose(self) -> None:
        await self._client.aclose()

    async def end(self) -> None:
        """The client is shared."""

    async def ask(self, verb: str, asked: Asked) -> Any:
        try:
            return await self._asked(self._verbs[verb], asked)
        except EngramError as exc:
            raise refused(exc) from exc
        except (TypeError, ValueError, KeyError) as exc:
            raise CannotSay(f"the client takes no such thing: {exc!r}") from exc

    async def _asked(self, verb: Callable[[Asked], Awaitable[Any]], asked: Asked) -> Any:
        """Where no bus is there (for it is being started), again after a while, as the client itself would."""
        end = asyncio.get_running_loop().time() + RECONNECT_SECONDS
        while True:
            try:
                return await verb(asked)
            except EngramConnectionError:
                if asyncio.get_running_loop().time() > end:
                    raise
            await asyncio.sleep(RECONNECT_PAUSE_SECONDS)

    async def subscribe(self, asked: Asked) -> Stream:
        contexts = asked.get("context")
        if not contexts:
            raise CannotSay("without a context, the client subscribes to all")
        rest = {name: value for name, value in asked.items() if name != "context"}
        named = [contexts] if isinstance(contexts, str) else contexts
        subscription = _called(self._client.subscribe, *named, **rest)
        try:
            await subscription.wait_subscribed()
        except EngramError as exc:
            raise refused(exc) from exc
        return _Stream(subscription)

    # --- Append ------------------------------------------------------------------------------------------------------

    async def _append(self, asked: Asked) -> Any:
        fields = _draft(asked)
        context_id, payload = fields.pop("context_id"), fields.pop("payload", b"")
        return _receipt(await self._client.append(context_id, payload, **fields))

    async def _append_bulk(self, asked: Asked) -> Any:
        rest = {name: value for name, value in asked.items() if name != "units"}
        if "idempotency_key" in rest and not rest.get("atomic"):
            raise CannotSay("a key of a bulk that is not atomic: the client makes one for each unit of it")
        drafts = [Draft(**_draft(unit)) for unit in asked["units"]]
        outcomes = await _called(self._client.append_bulk, drafts, **rest)
        results = [
            {"error": refused(outcome)} if isinstance(outcome, EngramError) else {"work_unit": _unit(outcome)}
            for outcome in outcomes
        ]
        return {"results": results, "applied_seq": UNTOLD, "durability": UNTOLD, "replayed": UNTOLD}

    async def _append_many(self, asked: Asked) -> Any:
        drafts = [Draft(**_draft(unit)) for unit in asked["units"]]
        results: list[Any] = []
        async with self._client.pipeline(max_retries=0) as pipe:
            for receipt in [await pipe.send(draft) for draft in drafts]:
                try:
                    results.append(_receipt(await receipt))
                except EngramError as exc:
                    results.append({"error": refused(exc)})
        return {"results": results}

    # --- Read --------------------------------------------------------------------------------------------------------

    async def _get(self, asked: Asked) -> Any:
        return _unit(await _called(self._client.get, **_renamed(asked, id="unit_id")))

    async def _list(self, asked: Asked) -> Any:
        page = await _called(self._client.list, **asked)
        return {**_plain(page), "work_units": [_unit(unit) for unit in page]}

    async def _related(self, asked: Asked) -> Any:
        found = await _called(self._client.related, **_renamed(asked, id="unit_id"))
        related = [{**_plain(each), "work_unit": _unit(each.work_unit)} for each in found.related]
        return {**_plain(found), "related": related}

    async def _get_context(self, asked: Asked) -> Any:
        return _plain(await _called(self._client.get_context, **asked))

    async def _update_context(self, asked: Asked) -> Any:
        return {**_plain(await _called(self._client.update_context, **_by_an_agent(asked))), "replayed": UNTOLD}

    async def _contexts(self, asked: Asked) -> Any:
        return _plain(await _called(self._client.contexts, **asked))

    async def _search(self, asked: Asked) -> Any:
        page = await _called(self._client.search, **asked)
        results = [{**_plain(hit), "unit": None if hit.unit is None else _unit(hit.unit)} for hit in page]
        return {**_plain(page), "results": results}

    async def _rebuild_search(self, asked: Asked) -> Any:
        return _plain(await self._client.rebuild_search())

    async def _status(self, asked: Asked) -> Any:
        return _plain(await self._client.status())

    # --- Locks -------------------------------------------------------------------------------------------------------

    async def _acquire_lock(self, asked: Asked) -> Any:
        rest = _by_an_agent({name: value for name, value in asked.items() if name not in ("resource", "resources")})
        if ("resource" in asked) == ("resources" in asked) or not isinstance(asked.get("resources", []), list):
            raise CannotSay("neither a resource nor resources, or both")
        resources = [asked["resource"]] if "resource" in asked else asked["resources"]
        return _acquired(await _called(self._client.acquire_lock, *resources, **rest))

    async def _refresh_lock(self, asked: Asked) -> Any:
        lock = _known_lock(asked)
        return _acquired(await self._client.refresh_lock(lock, asked.get("ttl_seconds"), agent_id=asked["agent_id"]))

    async def _release_lock(self, asked: Asked) -> Any:
        released = await self._client.release_lock(_known_lock(asked), agent_id=asked["agent_id"])
        return {"released": released, "applied_seq": UNTOLD}

    async def _break_lock(self, asked: Asked) -> Any:
        lock_ids = await _called(self._client.break_lock, **_by_an_agent({"reason": "", **asked}))
        return {"lock_ids": lock_ids, "applied_seq": UNTOLD}

    async def _get_lock(self, asked: Asked) -> Any:
        state = await _called(self._client.get_lock, **asked)
        return {**_plain(state), "holders": [one for lock in state.holders for one in _on_each(lock)]}

    async def _locks(self, asked: Asked) -> Any:
        if "limit" in asked or "page" in asked:
            raise CannotSay("a page of locks: the client walks over all of them")
        locks = [one async for lock in _called(self._client.locks, **asked) for one in _on_each(lock)]
        return {"locks": locks, "next_page": UNTOLD, "applied_seq": UNTOLD}


class _Stream:
    """A subscription, which comes back by itself: it tells units one by one, and what is missing."""

    hears = frozenset({"gap"})

    def __init__(self, subscription: Subscription) -> None:
        self.answer: dict[str, Any] = {"cursor": subscription.cursor, "head": subscription.head}
        self._subscription = subscription

    async def next(self) -> Units | Event:
        try:
            unit = await anext(self._subscription)
        except Gap as gap:
            place = {"from": gap.from_seq, "to": gap.to_seq, "reason": gap.reason}
            return Event("gap", {**place, "cursor": self._subscription.cursor})
        except EngramError as exc:
            raise refused(exc) from exc
        return Units([(_unit(unit), str(self._subscription.cursor))])

    async def leave(self) -> None:
        await self._subscription.aclose()


def refused(error: EngramError) -> Refused:
    """What an exception says. Raises Broken for what the bus did not say."""
    if isinstance(error, EngramConnectionError):
        raise Broken(str(error)) from error
    fields = {
        **error.details,
        "code": error.code,
        "message": error.message,
        "retryable": error.retryable,
        "field": error.field,
        "limit": error.limit,
        "index": error.index,
    }
    return Refused({name: value for name, value in fields.items() if value is not None}, AsException(error.status))


def _called(method: Callable[..., Any], *args: Any, **fields: Any) -> Any:
    """A call of the client. Raises CannotSay where the method takes no such arguments, or no numbers for names."""
    types = fields.get("type") or []
    if not all(isinstance(name, str) for name in (types if isinstance(types, list) else [types])):
        raise CannotSay(f"{method.__name__}: the types {types} by number")
    try:
        inspect.signature(method).bind(*args, **fields)
    except TypeError as exc:
        raise CannotSay(f"{method.__name__}: {exc}") from exc
    return method(*args, **fields)


def _renamed(asked: Asked, **names: str) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in asked.items()}


def _by_an_agent(asked: Asked) -> Asked:
    """A client acts for an agent: what names none cannot be said."""
    if not isinstance(asked.get("agent_id"), str) or not asked["agent_id"]:
        raise CannotSay("no agent: the client names its own")
    return asked


def _draft(asked: Asked) -> dict[str, Any]:
    """A unit as the fields of a Draft, its payload as an application has it: text, a value, or bytes."""
    if "content_type" in asked and "payload" not in asked and "payload_base64" not in asked:
        raise CannotSay("a content type of nothing: the client sends no bytes as no bytes")
    is_value = "payload" in asked and not isinstance(asked["payload"], str) and asked.get("content_type") is None
    fields = dict(asked) if is_value else payloads.packed(_by_an_agent(asked))
    if isinstance(fields.get("payload"), bytes) and fields.get("content_type") == payloads.JSON:
        fields["payload"] = json.dumps(asked["payload"]).encode() if "payload" in asked else fields["payload"]
    if unknown := fields.keys() - set(Draft.__struct_fields__):
        raise CannotSay(f"a Draft has no {', '.join(sorted(unknown))}")
    try:
        draft = msgspec.convert(fields, Draft)
    except msgspec.ValidationError as exc:
        raise CannotSay(f"a Draft is not so: {exc}") from exc
    return {name: getattr(draft, name) for name in fields}


def _unit(unit: WorkUnit) -> dict[str, Any]:
    """A unit as it stands in JSON: what is empty is left out."""
    fields = _plain(unit)
    fields["relationships"] = [_filled(each) for each in fields["relationships"]]
    return payloads.said(_filled(fields))


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in _EMPTY}


def _receipt(answer: WorkUnit | Receipt) -> dict[str, Any]:
    if isinstance(answer, Receipt):
        return {**_plain(answer), "id": answer.unit_id}
    place = {"id": answer.id, "context_id": answer.context_id, "seq": answer.seq, "version": answer.version}
    return {**place, "durability": UNTOLD, "replayed": UNTOLD}


def _known_lock(asked: Asked) -> Lock:
    """A lock as one who was told of it has it; only whose it is, which it is and on what is said again."""
    _by_an_agent(asked)
    return Lock(
        lock_id=asked["lock_id"],
        resources=[asked["resource"]],
        holder_agent=asked["agent_id"],
        mode=LockMode.EXCLUSIVE,
        fencing_token=0,
        granted_at="",
        expires_at="",
        remaining_seconds=0.0,
    )


def _acquired(lock: Lock) -> dict[str, Any]:
    place = {"lock_id": lock.lock_id, "fencing_token": lock.fencing_token, "extended": lock.extended}
    return {**place, "locks": _on_each(lock), "applied_seq": UNTOLD}


def _on_each(lock: Lock) -> list[dict[str, Any]]:
    """A lock as one on each of its resources."""
    fields = _plain(lock)
    del fields["resources"], fields["extended"]
    return [{**fields, "resource": resource, "acquired_seq": UNTOLD} for resource in lock.resources]


def _plain(value: Any) -> Any:
    """A value of the client as a map, its words as texts."""
    match value:
        case msgspec.Struct():
            return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
        case Enum():
            return value.value
        case list() | tuple():
            return [_plain(item) for item in value]
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case _:
            return value
