"""Schemathesis asks what openapi.json allows, and much that it does not: no answer may be a mistake or a surprise."""

from copy import deepcopy
from typing import Any

import msgpack  # type: ignore[import-untyped]
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from engram_bus.api import openapi
from tests.live import LiveBus

Case = schemathesis.Case[Any]

SEED = 20_261_121
EXAMPLES = settings().max_examples // 2
"""Of each operation, beside the hundreds that Schemathesis makes of its schema's edges."""
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    unsupported_method,
    allow_header_conformance,
    negative_data_rejection,
]


CONFIG = SchemathesisConfig.from_dict(
    {
        "seed": SEED,
        "checks": {
            # In a bulk that is not atomic each unit is refused by itself: 207.
            "negative_data_rejection": {"expected-statuses": ["4xx", 207, 503]},
            # A min_seq that is not reached in time; no other 5xx can come of what is asked here.
            "not_a_server_error": {"expected-statuses": ["2xx", "4xx", 503]},
        },
    }
)


def _strict() -> dict[str, Any]:
    """The document without the stream that never ends, and stricter than it is: an answer may hold nothing more."""
    document = deepcopy(openapi.document("1.2.3"))
    del document["paths"]["/stream-sse"]
    for name in (
        *("UnitOut", "UnitList", "BulkOut", "BulkResult", "Context", "ContextList", "RelatedList", "RelatedOut"),
        *("LockOut", "LocksOut", "LockList", "LockWait", "ResourceOut", "Released"),
        *("SearchOut", "SearchHit", "Explained", "Highlight", "Leg"),
    ):
        document["components"]["schemas"][name]["additionalProperties"] = False
    return document


@schemathesis.serializer("application/msgpack")
def _packed(context: schemathesis.SerializationContext, value: Any) -> Any:
    try:
        return msgpack.packb(value)
    except OverflowError:
        return b"\xc1"  # What no encoder writes stands for what none can.


@schemathesis.serializer("application/x-protobuf")
def _any_bytes(context: schemathesis.SerializationContext, value: Any) -> Any:
    """The document says nothing of what is in a message, so anything may be."""
    return str(value).encode("utf-8", "surrogatepass")


@schemathesis.serializer("application/x-ndjson")
def _lines(context: schemathesis.SerializationContext, value: Any) -> Any:
    return str(value).encode("utf-8", "surrogatepass")


SCHEMA = schemathesis.openapi.from_dict(_strict(), config=CONFIG)


@SCHEMA.parametrize()
@settings(max_examples=EXAMPLES, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_answer_is_a_mistake_or_a_surprise(case: Case, shared_bus: LiveBus) -> None:
    _hurry(case)
    response = case.call_and_validate(base_url=shared_bus.url, checks=CHECKS)
    assert response.status_code != 503 or response.json()["code"] == "MIN_SEQ_TIMEOUT"


def _hurry(case: Case) -> None:
    """Let no read wait for a min_seq, and nobody for a lock, as long as it would be allowed to."""
    for asked in (case.query, case.body):
        if isinstance(asked, dict) and "min_seq" in asked and _is_patient(asked.get("timeout_ms")):
            asked["timeout_ms"] = 1
    if isinstance(case.body, dict) and _is_wait(case.body.get("wait_seconds")):
        case.body["wait_seconds"] = 0.001


def _is_patient(timeout_ms: object) -> bool:
    return timeout_ms is None or (isinstance(timeout_ms, int) and 1 < timeout_ms <= 60_000)


def _is_wait(seconds: object) -> bool:
    return isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds <= 3_600
