"""The OpenAPI 3.1 document, made from the operations: what is routed is what is documented."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from engram_bus.api.operations import EVERYWHERE, NDJSON, OPERATIONS, Opaque, Operation, Out, Problem
from engram_bus.api.parameters import Parameter
from engram_bus.api.problems import CONTENT_TYPE as PROBLEM
from engram_bus.api.schemas import Schema, components, schema_of
from engram_bus.errors import EngramError, Unavailable
from engram_bus.limits import BULK_UNITS_MAX, FILTER_VALUES_MAX

_DESCRIPTION: Final = """\
A durable, ordered bus for what agents do: one log, every subscriber gets every unit once and in order.

`seq` is a unit's place in the log, `version` its place in its context; both are 1, 2, 3, ... without a gap. A cursor
(`epoch.seq`) is a place to resume after. An answer leaves when what it tells is durable; `Engram-Applied-Seq` names the
seq it reflects, and every read waits for `min_seq`. The bus counts lengths in bytes of UTF-8, this document in
characters. A parameter or field that is not known is refused. What is on the streams stands in `/asyncapi.json`.
"""

_TAGS: Final = {
    "units": "Append and read work units.",
    "contexts": "The shared contexts that units stand in.",
    "locks": "Hold resources, wait in line for them, and prove that they are still held.",
    "search": "Find what was said.",
    "streams": "Units as they come.",
    "bus": "The bus itself.",
}

_HEADERS: Final[dict[str, Schema]] = {
    "Engram-Durability": {
        "description": "What the units survive: fsync (a power cut) or memory (nothing).",
        "schema": {"enum": ["fsync", "memory"]},
    },
    "Engram-Applied-Seq": {
        "description": "The seq this answer reflects; give it as min_seq to read your own writes elsewhere.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "ETag": {
        "description": "The context's version, for If-Match.",
        "schema": {"type": "string", "pattern": '^"[0-9]+"$'},
    },
    "Idempotency-Replayed": {
        "description": "There when this is the first answer to the key, given again.",
        "schema": {"const": "true"},
    },
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}},
    "Allow": {"description": "The methods the path takes.", "schema": {"type": "string"}},
}

_EVERYWHERE: Final = ("Engram-Durability", "Engram-Applied-Seq")
"""Of every answer that the bus gives; a connection that breaks HTTP or a bound of it is answered without."""

_UNIT_EXAMPLE: Final = {"context_id": "plan", "agent_id": "ann", "payload": "The tests pass."}
_EXAMPLES: Final[dict[tuple[str, str], Any]] = {
    ("append", "application/json"): _UNIT_EXAMPLE,
    ("append_bulk", "application/json"): [
        _UNIT_EXAMPLE,
        {
            "context_id": "plan",
            "agent_id": "bob",
            "type": "TOOL_CALL",
            "kind": "test.run",
            "payload": {"command": "make test"},
            "meta": {"repo": "engram"},
            "resources": ["tests/test_log.py"],
        },
    ],
    ("append_bulk", NDJSON): '{"context_id":"plan","agent_id":"ann","payload":"one"}\n'
    '{"context_id":"plan","agent_id":"ann","payload":"two"}\n',
    ("update_context", "application/json"): {
        "agent_id": "ann",
        "display_name": "The plan",
        "add_agents": ["ann", "bob"],
    },
    ("acquire_lock", "application/json"): {"resource": "repo/src", "agent_id": "ann", "wait_seconds": 10},
    ("search", "application/json"): {"query": "who takes the parser?", "context_id": "plan", "include": "units"},
    ("update_context_by_query", "application/json"): {"agent_id": "ann", "meta": {"phase": "review"}},
}


def document(version: str) -> Schema:
    """The whole document."""
    types = [type_ for operation in OPERATIONS for type_ in _types(operation)]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "engram-bus",
            "version": version,
            "summary": "What agents do, in one order, for everyone.",
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "servers": [
            {"url": "/", "description": "As it stands"},
            {"url": "/api/v1", "description": "The same, by version"},
        ],
        "tags": [{"name": name, "description": description} for name, description in _TAGS.items()],
        "paths": _paths(),
        "components": {"schemas": components([*types, Problem])},
    }


def _types(operation: Operation) -> Iterable[Any]:
    yield from (body for body in operation.requests.values() if not isinstance(body, Opaque))
    for out in operation.answers.values():
        yield from out.bodies


# --- Paths -----------------------------------------------------------------------------------------------------------


def _paths() -> Schema:
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        paths.setdefault(public_path(operation), {})[operation.method.lower()] = _operation(operation)
    return paths


def public_path(operation: Operation) -> str:
    """The path as OpenAPI writes it: `{name:path}` (all that is left) is `{name}` there."""
    return re.sub(r":path}", "}", operation.path)


def _operation(operation: Operation) -> Schema:
    described: Schema = {
        "operationId": operation.name,
        "tags": [_tag(operation)],
        "summary": operation.summary,
        "parameters": [_parameter(parameter) for parameter in operation.parameters],
        "responses": _responses(operation),
    }
    if operation.requests:
        described["requestBody"] = {
            "required": True,
            "content": {media: _body(operation, media, type_) for media, type_ in operation.requests.items()},
        }
    return described


def _tag(operation: Operation) -> str:
    tags = {
        "workunit": "units",
        "workunits": "units",
        "contexts": "contexts",
        "locks": "locks",
        "search": "search",
        "stream-sse": "streams",
    }
    return tags.get(operation.path.split("/")[1], "bus")


def _parameter(parameter: Parameter) -> Schema:
    described: Schema = {
        "name": parameter.name,
        "in": parameter.where,
        "description": parameter.description,
        "schema": parameter_schema(parameter),
    }
    if parameter.required:
        described["required"] = True
    return described


def parameter_schema(parameter: Parameter) -> Schema:
    schema: Schema = dict(parameter.schema)
    match parameter.kind:
        case "integer":
            schema |= {"type": "integer", "minimum": parameter.minimum}
            if parameter.maximum is not None:
                schema["maximum"] = parameter.maximum
        case "boolean":
            schema |= {"type": "boolean"}
        case "text":
            schema |= {} if "anyOf" in schema else {"type": "string"}
            if parameter.choices:
                schema["enum"] = list(parameter.choices)
            if parameter.where == "path" or parameter.required:
                schema.setdefault("minLength", 1)
    if parameter.default is not None:
        schema["default"] = parameter.default
    return {"type": "array", "items": schema, "maxItems": FILTER_VALUES_MAX} if parameter.many else schema


def _body(operation: Operation, media_type: str, type_: Any) -> Schema:
    if isinstance(type_, Opaque):
        return _opaque(type_)
    schema = _lines(type_) if media_type == NDJSON else schema_of(type_)
    if schema.get("type") == "array":
        schema |= {"minItems": 1, "maxItems": BULK_UNITS_MAX}
    described: Schema = {"schema": schema}
    if (example := _EXAMPLES.get((operation.name, media_type))) is not None:
        described["example"] = example
    return described


def _responses(operation: Operation) -> Schema:
    responses: dict[str, Schema] = {str(status): _answer(out) for status, out in operation.answers.items()}
    by_status: dict[int, list[type[EngramError]]] = {}
    for error in dict.fromkeys((*operation.errors, *EVERYWHERE)):
        by_status.setdefault(error.status, []).append(error)
    for status, errors in sorted(by_status.items()):
        refused = _refusal(status, errors)
        there = responses.get(str(status))
        responses[str(status)] = refused if there is None else _either(there, refused)
    return responses


def _answer(out: Out) -> Schema:
    if out.bodies:
        schemas = [schema_of(body) for body in out.bodies]
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    else:
        schema = {"type": "string"}
    content = {out.media_type: {"schema": schema}, **{media: _opaque(body) for media, body in out.also.items()}}
    return {"description": out.description, "content": content, "headers": _headers(*out.headers)}


def _opaque(body: Opaque) -> Schema:
    """Bytes, and what they are."""
    return {"schema": {"description": body.description}}


def _refusal(status: int, errors: Sequence[type[EngramError]]) -> Schema:
    """A problem with one of these codes."""
    schema: Schema = {
        "allOf": [schema_of(Problem)],
        "properties": {"status": {"const": status}, "code": {"enum": [error.code for error in errors]}},
    }
    refusal: Schema = {
        "description": "; ".join(f"`{error.code}`: {error.title}" for error in errors),
        "content": {PROBLEM: {"schema": schema}},
    }
    own = ("Retry-After",) if any(_is_retryable(error) for error in errors) else ("Allow",) if status == 405 else ()
    return {**refusal, "headers": _headers(*own)}


def _headers(*own: str) -> Schema:
    return {name: _HEADERS[name] for name in (*_EVERYWHERE, *own)}


def _is_retryable(error: type[EngramError]) -> bool:
    return issubclass(error, Unavailable) and error.retryable


def _either(answer: Schema, refusal: Schema) -> Schema:
    """One status that is both an answer and a refusal."""
    return {
        "description": f"{answer['description']} Or {refusal['description']}",
        "content": {**answer["content"], **refusal["content"]},
        "headers": {**answer["headers"], **refusal["headers"]},
    }


def _lines(type_: Any) -> Schema:
    """A line is an object; the whole is text, which is all that OpenAPI 3.1 can say of it."""
    return {"type": "string", "minLength": 2, "description": f"One {type_.__name__} a line."}
