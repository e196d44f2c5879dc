"""The documents describe what is routed and sent, all of it and nothing else."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from engram_bus.api import asyncapi, openapi
from engram_bus.api.documents import pages
from engram_bus.api.operations import EVERYWHERE, OPERATIONS, Operation
from engram_bus.api.schemas import codes
from engram_bus.codec import LockIn, UnitIn
from engram_bus.errors import SlowConsumer
from engram_bus.limits import (
    FILTER_VALUES_MAX,
    LOCK_RESOURCES_MAX,
    MIN_SEQ_TIMEOUT_MS_MAX,
    NAME_BYTES_MAX,
    RELATIONSHIPS_MAX,
    SEARCH_LIMIT_MAX,
    SEARCH_QUERY_BYTES_MAX,
)
from engram_bus.projections.search.requests import FUSIONS, MODES, SearchIn

OPENAPI = openapi.document("1.2.3")
ASYNCAPI = asyncapi.document("1.2.3")


def test_the_openapi_document_is_valid() -> None:
    OpenAPIV31SpecValidator(OPENAPI).validate()


def test_every_operation_is_documented_and_nothing_else_is() -> None:
    documented = {
        (method.upper(), path, operation["operationId"])
        for path, methods in OPENAPI["paths"].items()
        for method, operation in methods.items()
    }
    assert documented == {(one.method, one.path.replace(":path", ""), one.name) for one in OPERATIONS}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_an_operation_names_every_status_and_code_it_may_answer(operation: Operation) -> None:
    responses = _described(operation)["responses"]
    for error in (*operation.errors, *EVERYWHERE):
        problem = responses[str(error.status)]["content"]["application/problem+json"]["schema"]
        assert error.code in problem["properties"]["code"]["enum"]
    assert {int(status) for status in responses} == {
        *operation.answers,
        *(error.status for error in (*operation.errors, *EVERYWHERE)),
    }


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_an_operation_takes_the_parameters_and_bodies_it_parses(operation: Operation) -> None:
    described = _described(operation)
    assert {(one["in"], one["name"]) for one in described["parameters"]} == {
        (one.where, one.name) for one in operation.parameters
    }
    in_path = {one.name for one in operation.parameters if one.where == "path"}
    assert in_path == set(re.findall(r"{(\w+)", operation.path))
    assert set(described.get("requestBody", {}).get("content", {})) == set(operation.requests)


def test_every_code_is_documented_but_the_one_that_only_closes_sockets() -> None:
    said = {
        code
        for methods in OPENAPI["paths"].values()
        for operation in methods.values()
        for answer in operation["responses"].values()
        for code in _codes_of(answer)
    }
    assert said == codes() - {SlowConsumer.code}


def test_the_bounds_of_a_unit_stand_in_its_schema() -> None:
    unit = OPENAPI["components"]["schemas"]["UnitIn"]
    assert set(unit["properties"]) == set(UnitIn.__struct_fields__)
    assert unit["properties"]["context_id"]["maxLength"] == NAME_BYTES_MAX
    assert unit["properties"]["relationships"]["anyOf"][0]["maxItems"] == RELATIONSHIPS_MAX
    assert unit["additionalProperties"] is False


def test_the_bounds_of_a_lock_stand_in_its_schema_on_both_transports() -> None:
    over_http, on_a_socket = (
        document["components"]["schemas"][name]["properties"]
        for document, name in ((OPENAPI, "LockIn"), (ASYNCAPI, "AcquireLock"))
    )
    assert set(over_http) == set(LockIn.__struct_fields__)
    assert set(on_a_socket) == {*over_http, "op", "id", "session"}
    assert {name: on_a_socket[name] for name in over_http} == over_http
    assert over_http["resources"]["anyOf"][0]["maxItems"] == LOCK_RESOURCES_MAX
    assert over_http["mode"]["enum"] == ["exclusive", "shared"]


def test_the_bounds_of_a_search_stand_in_its_schema() -> None:
    asked = OPENAPI["components"]["schemas"]["SearchIn"]["properties"]
    assert set(asked) == set(SearchIn.__struct_fields__)
    assert (asked["mode"]["enum"], asked["fusion"]["enum"]) == (list(MODES), list(FUSIONS))
    assert asked["include"]["enum"] == ["ids", "units"]
    assert (asked["query"]["maxLength"], asked["limit"]["maximum"]) == (SEARCH_QUERY_BYTES_MAX, SEARCH_LIMIT_MAX)
    assert asked["timeout_ms"]["anyOf"][0]["maximum"] == MIN_SEQ_TIMEOUT_MS_MAX
    for name in ("context_id", "agent_id", "kind", "resource", "related_to"):
        one, several, none = asked[name]["anyOf"]
        assert (one["type"], several["maxItems"], none["type"]) == ("string", FILTER_VALUES_MAX, "null")


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.requests], ids=lambda operation: operation.name)
def test_an_example_is_what_its_schema_says(operation: Operation) -> None:
    for media_type, content in _described(operation)["requestBody"]["content"].items():
        if "example" in content and media_type == "application/json":
            schema = {**content["schema"], "components": OPENAPI["components"]}
            Draft202012Validator(schema).validate(content["example"])


def test_every_event_and_every_operation_of_a_socket_is_documented() -> None:
    events = "subscribed units heartbeat gap goaway unsubscribed appended error locked released cancelled pong".split()
    operations = "append subscribe unsubscribe lock.acquire lock.refresh lock.release lock.cancel ping".split()
    assert set(ASYNCAPI["channels"]["stream"]["messages"]) == {*events, *operations}
    assert {name for name in ASYNCAPI["operations"] if name.startswith("receive-")} == {
        f"receive-{operation}" for operation in operations
    }


@pytest.mark.parametrize("document", [OPENAPI, ASYNCAPI], ids=["openapi", "asyncapi"])
def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in _references(document):
        found: Any = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
        assert found


def test_the_pages_name_nothing_that_is_not_served() -> None:
    served = pages("1.2.3")
    named = re.findall(rb'(?:src|href)="([^"]+)"', served["/docs"][1])
    own = {f"/{name.decode()}" for name in named}
    assert own - set(served) == {"/status", "/metrics"}
    for kind, body in served.values():
        without_namespace = body.replace(b"http://www.w3.org/2000/svg", b"")
        assert kind.startswith("application/json") or b"://" not in without_namespace


def test_the_documents_are_served_as_json() -> None:
    served = pages("1.2.3")
    for path in ("/openapi.json", "/asyncapi.json"):
        kind, body = served[path]
        assert kind == "application/json"
        assert json.loads(body)["info"]["version"] == "1.2.3"


def _described(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = OPENAPI["paths"][openapi.public_path(operation)][operation.method.lower()]
    return described


def _codes_of(answer: dict[str, Any]) -> list[str]:
    problem = answer["content"].get("application/problem+json", {}).get("schema", {})
    found: list[str] = problem.get("properties", {}).get("code", {}).get("enum", [])
    return found


def _references(value: Any) -> Iterator[str]:
    match value:
        case {"$ref": str(reference)}:
            yield reference
        case dict():
            for inner in value.values():
                yield from _references(inner)
        case list():
            for inner in value:
                yield from _references(inner)
        case _:
            return
