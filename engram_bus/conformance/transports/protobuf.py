"""Requests and answers as the messages of proto/engram/v1, and back to what the vectors call them. Pure."""

from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from engram_bus.conformance.transports import payloads
from engram_bus.conformance.transports.contract import Asked, CannotSay, InStream, Refused, Way
from engram_bus.pb import append_pb2, context_pb2, error_pb2, lock_pb2, read_pb2, search_pb2, status_pb2, unit_pb2
from engram_bus.pb import subscription_pb2 as subscription

M = TypeVar("M", bound=Message)
_BY_NAME: Final = ("mode", "direction", "fusion", "include")
"""Fields whose values are lower-case words outside protobuf."""
_LISTS: Final = frozenset("context context_id type kind agent agent_id exclude_agent resource related_to".split())
"""Where a subscription, a listing or a search takes several, one may stand alone."""
_EMPTY: Final[tuple[Any, ...]] = (None, {}, [])


# --- Requests --------------------------------------------------------------------------------------------------------


def message(kind: type[M], fields: Mapping[str, Any]) -> M:
    """A message with these fields. Raises CannotSay for one it does not have, or a value of another type."""
    try:
        return json_format.ParseDict(dict(fields), kind())
    except (json_format.ParseError, TypeError, ValueError) as exc:
        raise CannotSay(f"{kind.__name__}: {exc}") from exc


def append_request(asked: Asked) -> append_pb2.AppendRequest:
    return message(append_pb2.AppendRequest, _append(asked))


def _append(asked: Asked) -> dict[str, Any]:
    fields = payloads.packed(asked)
    if "payload" in fields:
        payload = fields["payload"]
        fields["payload"] = b64encode(_encoded(payload) if isinstance(payload, str) else payload).decode()
    return fields


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise CannotSay(f"a text that is not Unicode: {exc}") from exc


def _bulk(asked: Asked) -> dict[str, Any]:
    rest = {name: value for name, value in asked.items() if name != "units"}
    return {**rest, "appends": [_append(unit) for unit in asked["units"]]}


def _as_names(asked: Asked) -> dict[str, Any]:
    """With words as the names of enums: `shared` is SHARED."""
    return {
        name: value.upper() if name in _BY_NAME and isinstance(value, str) else value for name, value in asked.items()
    }


def _several(asked: Asked, *single: str) -> dict[str, Any]:
    return {
        name: [value] if name in _LISTS and name not in single and not isinstance(value, list) else value
        for name, value in _as_names(asked).items()
        if value is not None
    }


def _listing(asked: Asked) -> dict[str, Any]:
    places = {name: str(asked[name]) for name in ("after", "before") if asked.get(name) is not None}
    return {**_several(asked, "context_id"), **places}


def _acquire(asked: Asked) -> dict[str, Any]:
    if "resource" in asked and "resources" in asked:
        raise CannotSay("a resource beside resources")
    fields = _as_names(asked)
    if "resource" in fields:
        fields["resources"] = [fields.pop("resource")]
    return fields


def _update(asked: Asked) -> dict[str, Any]:
    meta = asked.get("meta") or {}
    fields = {name: value for name, value in asked.items() if name not in ("meta", "fences")}
    if asked.get("fences") is not None:
        fields["fences"] = {"globs": asked["fences"]}
    fields["meta"] = {key: value for key, value in meta.items() if value is not None}
    fields["unset_meta"] = [key for key, value in meta.items() if value is None]
    return fields


# --- Answers ---------------------------------------------------------------------------------------------------------


def plain(said: Message) -> dict[str, Any]:
    """A message as a map: enums by name, times and structs as they stand in JSON, what is not there as None."""
    found: dict[str, Any] = {}
    for field in said.DESCRIPTOR.fields:
        value = getattr(said, field.name)
        if field.has_presence and not said.HasField(field.name):
            found[field.name] = None
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            found[field.name] = {key: _value(field, each) for key, each in value.items()}
        elif field.is_repeated:
            found[field.name] = [_value(field, each) for each in value]
        else:
            found[field.name] = _value(field, value)
    return found


def _value(field: Any, value: Any) -> Any:
    match value:
        case Timestamp():
            return f"{datetime.fromtimestamp(value.seconds, UTC):%Y-%m-%dT%H:%M:%S}.{value.nanos // 1_000:06}Z"
        case Struct():
            return _whole(json_format.MessageToDict(value))
        case Message():
            return plain(value)
        case _ if field.enum_type is not None and field.enum_type.name != "NullValue":
            named = field.enum_type.values_by_number.get(value)
            return value if named is None else named.name
        case _:
            return value


def _whole(value: Any) -> Any:
    """Numbers of a Struct are doubles: those without a fraction are integers again."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case list():
            return [_whole(item) for item in value]
        case dict():
            return {key: _whole(item) for key, item in value.items()}
        case _:
            return value


def unit(said: unit_pb2.WorkUnit) -> dict[str, Any]:
    """A unit as it stands in JSON: what is empty is left out."""
    return _unit(plain(said))


def _unit(fields: dict[str, Any]) -> dict[str, Any]:
    fields["relationships"] = [_filled(each) for each in fields["relationships"]]
    return payloads.said(_filled(fields))


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in _EMPTY}


def error(said: error_pb2.Error, way: Way) -> Refused:
    """A refusal, however it travelled."""
    fields = {name: value for name, value in plain(said).items() if value is not None}
    return Refused({**fields.pop("details", {}), **fields}, way)


def receipt(said: append_pb2.Receipt) -> dict[str, Any]:
    fields = plain(said)
    return {**fields, "id": fields.pop("unit_id")}


def _appended(said: Any) -> dict[str, Any]:
    fields = plain(said.work_unit)
    place = {name: fields[name] for name in ("id", "context_id", "seq", "version")}
    return {**place, "durability": said.durability, "replayed": said.replayed}


def _bulk_out(said: Any) -> dict[str, Any]:
    results: list[dict[str, Any]] = [
        {"error": error(result.error, InStream())}
        if result.WhichOneof("outcome") == "error"
        else {"work_unit": unit(result.work_unit)}
        for result in said.results
    ]
    return {**plain(said), "results": results}


def _listed(said: Any) -> dict[str, Any]:
    return {**plain(said), "work_units": [unit(each) for each in said.work_units]}


def _related(said: Any) -> dict[str, Any]:
    fields = plain(said)
    for each in fields["related"]:
        each["work_unit"] = _unit(each["work_unit"])
        each["direction"] = each["direction"].lower()
    return fields


def _locked(said: Any) -> dict[str, Any]:
    fields = plain(said)
    locks = [_lock(each) for each in fields["locks"]]
    return {**fields, "locks": locks, "lock_id": locks[0]["lock_id"], "fencing_token": locks[0]["fencing_token"]}


def _lock(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "mode": fields["mode"].lower()}


def _locks(said: Any) -> dict[str, Any]:
    fields = plain(said)
    return {**fields, **{name: [_lock(each) for each in fields[name]] for name in _OF_LOCKS if name in fields}}


_OF_LOCKS: Final = ("locks", "holders", "queue")


def _search(said: Any) -> dict[str, Any]:
    fields = plain(said)
    fields["results"] = [_hit(hit) for hit in fields["results"]]
    fields["facets"] = {name: facet["counts"] for name, facet in fields["facets"].items()}
    return fields


def _hit(hit: dict[str, Any]) -> dict[str, Any]:
    for highlight in hit["highlights"]:
        highlight["spans"] = [[span["first"], span["end"]] for span in highlight["spans"]]
    if hit["explain"] is not None:
        hit["explain"]["fusion"] = hit["explain"]["fusion"].lower()
    if hit["unit"] is not None:
        hit["unit"] = _unit(hit["unit"])
    return hit


def subscribe_request(asked: Asked) -> subscription.SubscribeRequest:
    return message(subscription.SubscribeRequest, _listing_of_all(asked))


def _listing_of_all(asked: Asked) -> dict[str, Any]:
    after = {"after": str(asked["after"])} if asked.get("after") is not None else {}
    return {**_several(asked), **after}


# --- Verbs -----------------------------------------------------------------------------------------------------------

Out = Callable[[Any], Any]


class Method:
    """A verb as a method of the service: its name, what it takes, and what its answer is in the vectors' words."""

    def __init__(
        self, name: str, takes: type[Message], gives: type[Message], out: Out, into: Callable[[Asked], Any] = dict
    ) -> None:
        self.name = name
        self.takes = takes
        self.gives = gives
        self.out = out
        self._into = into

    def request(self, asked: Asked) -> Message:
        """Raises CannotSay."""
        return message(self.takes, self._into(asked))


METHODS: Final[dict[str, Method]] = {
    "append": Method("Append", append_pb2.AppendRequest, append_pb2.AppendResponse, _appended, _append),
    "append_bulk": Method("AppendBulk", append_pb2.AppendBulkRequest, append_pb2.AppendBulkResponse, _bulk_out, _bulk),
    "get": Method("Get", read_pb2.GetRequest, read_pb2.GetResponse, lambda said: unit(said.work_unit)),
    "list": Method("List", read_pb2.ListRequest, read_pb2.ListResponse, _listed, _listing),
    "related": Method("Related", read_pb2.RelatedRequest, read_pb2.RelatedResponse, _related, _several),
    "get_context": Method(
        "GetContext",
        context_pb2.GetContextRequest,
        context_pb2.GetContextResponse,
        lambda said: plain(said.context),
    ),
    "update_context": Method(
        "UpdateContext",
        context_pb2.UpdateContextRequest,
        context_pb2.UpdateContextResponse,
        lambda said: {**plain(said.context), "replayed": said.replayed},
        _update,
    ),
    "contexts": Method("ListContexts", context_pb2.ListContextsRequest, context_pb2.ListContextsResponse, plain),
    "acquire_lock": Method("AcquireLock", lock_pb2.AcquireLockRequest, lock_pb2.AcquireLockResponse, _locked, _acquire),
    "refresh_lock": Method("RefreshLock", lock_pb2.RefreshLockRequest, lock_pb2.RefreshLockResponse, _locked),
    "release_lock": Method("ReleaseLock", lock_pb2.ReleaseLockRequest, lock_pb2.ReleaseLockResponse, plain),
    "break_lock": Method("BreakLock", lock_pb2.BreakLockRequest, lock_pb2.BreakLockResponse, plain),
    "get_lock": Method("GetLock", lock_pb2.GetLockRequest, lock_pb2.GetLockResponse, _locks),
    "locks": Method("ListLocks", lock_pb2.ListLocksRequest, lock_pb2.ListLocksResponse, _locks),
    "search": Method("Search", search_pb2.SearchRequest, search_pb2.SearchResponse, _search, _several),
    "rebuild_search": Method(
        "RebuildSearch",
        search_pb2.RebuildSearchRequest,
        search_pb2.RebuildSearchResponse,
        lambda said: plain(said.search),
    ),
    "status": Method("GetStatus", status_pb2.GetStatusRequest, status_pb2.GetStatusResponse, plain),
}
