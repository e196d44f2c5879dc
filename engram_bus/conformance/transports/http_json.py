"""HTTP with JSON: every verb but a subscription; what other transports do not have goes over it too."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

from engram_bus.conformance.transports.contract import Asked, CannotSay, OverHttp, Refused, Stream
from engram_bus.conformance.transports.sse import SseStream
from engram_bus.conformance.transports.unfinished import ask_without_end
from engram_bus.conformance.transports.web import Answer, Web, fields_of, refused
from engram_bus.conformance.vectors import VERBS as ALL_VERBS

VERBS: Final = ALL_VERBS - {"subscribe", "append_many", "hang_up"}
"""(One request is answered before the next is sent: nothing is pipelined.)"""
_RECEIPT: Final = ("id", "context_id", "seq", "version")
_JSON: Final = {"content-type": "application/json"}


class HttpJson:
    """A client of plain requests."""

    verbs = VERBS

    def __init__(self, web: Web) -> None:
        self._web = web
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
            "http": self._http,
        }

    async def end(self) -> None:
        """Its connections are shared."""

    async def ask(self, verb: str, asked: Asked) -> Any:
        if verb not in self._verbs:
            raise CannotSay(verb)
        return await self._verbs[verb](asked)

    async def subscribe(self, asked: Asked) -> Stream:
        return await SseStream.open(self._web, asked)

    # --- Append ------------------------------------------------------------------------------------------------------

    async def _append(self, asked: Asked) -> Any:
        answer = await self._web.ask("POST", "/workunit", headers=_JSON, body=_body(asked))
        return receipt(answer.json(), answer)

    async def _append_bulk(self, asked: Asked) -> Any:
        key = asked.get("idempotency_key")
        headers = _JSON if key is None else {**_JSON, "idempotency-key": key}
        query = {"atomic": asked.get("atomic")}
        answer = await self._web.ask("POST", "/workunits", query, headers=headers, body=_body(asked["units"]))
        found = answer.json()
        return {
            **found,
            "results": [_result(result) for result in found["results"]],
            "durability": answer.headers.get("engram-durability"),
            "replayed": is_replayed(answer),
        }

    async def _append_many(self, asked: Asked) -> Any:
        results = []
        for unit in asked["units"]:
            try:
                results.append(await self._append(unit))
            except Refused as refused:
                results.append({"error": refused})
        return {"results": results}

    # --- Read --------------------------------------------------------------------------------------------------------

    async def _get(self, asked: Asked) -> Any:
        return await self._read(f"/workunit/{quote(asked['id'], safe='')}", asked, "id")

    async def _list(self, asked: Asked) -> Any:
        return await self._read_named("/workunits", "context_id", asked)

    async def _related(self, asked: Asked) -> Any:
        return await self._read(f"/workunit/{quote(asked['id'], safe='')}/related", asked, "id")

    async def _read(self, path: str, asked: Asked, *in_path: str) -> Any:
        query = {name: value for name, value in asked.items() if name not in in_path}
        return (await self._web.ask("GET", path, query)).json()

    async def _read_named(self, path: str, name: str, asked: Asked) -> Any:
        place, query = _placed(path, name, asked)
        return (await self._web.ask("GET", place, query)).json()

    # --- Contexts ----------------------------------------------------------------------------------------------------

    async def _get_context(self, asked: Asked) -> Any:
        return await self._read_named("/contexts", "context_id", asked)

    async def _update_context(self, asked: Asked) -> Any:
        place, body = _placed("/contexts", "context_id", asked)
        query = {"context_id": body.pop("context_id", None)}
        answer = await self._web.ask("PATCH", place, query, headers=_JSON, body=_body(body))
        return {**answer.json(), "replayed": is_replayed(answer)}

    async def _contexts(self, asked: Asked) -> Any:
        return await self._read("/contexts", asked)

    # --- Locks -------------------------------------------------------------------------------------------------------

    async def _acquire_lock(self, asked: Asked) -> Any:
        answer = await self._web.ask("POST", "/locks", headers=_JSON, body=_body(asked))
        return {**_lock(answer.json()), "extended": answer.status_code == 200}

    async def _refresh_lock(self, asked: Asked) -> Any:
        place, body = _placed("/locks", "resource", asked)
        query = {"resource": body.pop("resource", None)}
        return _lock((await self._web.ask("PATCH", place, query, headers=_JSON, body=_body(body))).json())

    async def _release_lock(self, asked: Asked) -> Any:
        place, query = _placed("/locks", "resource", asked)
        return (await self._web.ask("DELETE", place, query)).json()

    async def _break_lock(self, asked: Asked) -> Any:
        place, query = _placed("/locks", "resource", asked)
        return (await self._web.ask("DELETE", place, {**query, "break": True})).json()

    async def _get_lock(self, asked: Asked) -> Any:
        return await self._read_named("/locks", "resource", asked)

    async def _locks(self, asked: Asked) -> Any:
        return await self._read("/locks", asked)

    # --- The rest ----------------------------------------------------------------------------------------------------

    async def _search(self, asked: Asked) -> Any:
        return (await self._web.ask("POST", "/search", headers=_JSON, body=_body(asked))).json()

    async def _rebuild_search(self, asked: Asked) -> Any:
        return (await self._web.ask("POST", "/search/rebuild")).json()

    async def _status(self, asked: Asked) -> Any:
        return await self._read("/status", asked)

    async def _http(self, asked: Asked) -> Any:
        headers = {name: str(value) for name, value in asked.get("headers", {}).items()}
        method, path = asked.get("method", "GET"), asked["path"]
        if asked.get("unfinished"):
            answer = await ask_without_end(self._web.url, method, path, headers)
            if answer.status_code >= 400:
                raise refused(answer)
            return _plain(answer)
        if "json" in asked:
            headers, body = {**_JSON, **headers}, _body(asked["json"])
        else:
            body = str(asked.get("body", "")).encode()
        return _plain(await self._web.ask(method, path, headers=headers, body=body))


def receipt(unit: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
    """What every transport answers to an append, of a unit that one request made."""
    return {
        **{name: unit.get(name) for name in _RECEIPT},
        "durability": answer.headers.get("engram-durability"),
        "replayed": is_replayed(answer),
    }


def _plain(answer: Answer) -> dict[str, Any]:
    """An answer as it came; what is JSON, as its value too."""
    found = {"status": answer.status_code, "headers": dict(answer.headers), "text": answer.text}
    is_json = answer.headers.get("content-type", "").partition(";")[0].endswith("json")
    return {**found, "json": answer.json()} if is_json and answer.content else found


def is_replayed(answer: Answer) -> bool:
    return bool(answer.headers.get("idempotency-replayed") == "true")


def _result(result: dict[str, Any]) -> dict[str, Any]:
    """One of a bulk; what was refused is a refusal, to be checked as any."""
    if "error" not in result:
        return result
    problem = result["error"]
    return {"error": Refused(fields_of(problem), OverHttp(problem.get("status"), problem))}


def _lock(answer: dict[str, Any]) -> dict[str, Any]:
    """One lock, or one on several resources, as a list of them."""
    locks = answer.get("locks", [answer])
    return {"lock_id": answer["lock_id"], "fencing_token": locks[0]["fencing_token"], "locks": locks}


def _placed(path: str, name: str, asked: Asked) -> tuple[str, Asked]:
    """Where a name that may have slashes in it is asked for, and the rest: in the path, or if that would not keep it
    as it is, in the query."""
    named = asked.get(name)
    if not isinstance(named, str) or any(part in ("", ".", "..") for part in named.split("/")):
        return path, asked
    rest = {key: value for key, value in asked.items() if key != name}
    return f"{path}/{quote(named)}", rest


def _body(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
