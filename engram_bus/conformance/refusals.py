"""Whether a refusal travelled as errors.yaml says its code does. Pure."""

from collections.abc import Mapping
from typing import assert_never

from engram_bus.conformance.patterns import Untold
from engram_bus.conformance.transports.contract import (
    AsClose,
    AsException,
    InFrame,
    InStream,
    OverGrpc,
    OverHttp,
    Refused,
)
from engram_bus.conformance.vectors import Refusal


def complaint(refused: Refused, table: Mapping[str, Refusal]) -> str | None:
    """What is wrong with how it travelled; None where all is well."""
    code = refused.fields.get("code")
    if not isinstance(code, str) or code not in table:
        return f"a refusal with the code {code!r}, which is none: {refused.way}"
    wanted = table[code]
    retryable, message = refused.fields.get("retryable"), refused.fields.get("message")
    if not isinstance(retryable, Untold) and retryable is not wanted.retryable:
        return f"{code} is {'' if wanted.retryable else 'not '}retryable, and this says {retryable!r}"
    if not isinstance(message, Untold | str):
        return f"{code} without a message"
    match refused.way:
        case OverHttp(status, problem):
            return _of_http(code, wanted, status, problem)
        case OverGrpc(status, has_error):
            if not has_error:
                return f"{code} without an engram.v1.Error in grpc-status-details-bin"
            return _differs(code, "the gRPC status", wanted.grpc, status)
        case InFrame(None) | InStream():
            return None
        case InFrame(close_code) | AsClose(close_code):
            return _differs(code, "the close code", wanted.close, close_code)
        case AsException(status):
            return _differs(code, "the status", wanted.http, status)
        case _:
            assert_never(refused.way)


def _of_http(code: str, wanted: Refusal, status: int, problem: dict[str, object] | None) -> str | None:
    if problem is None:
        return f"{code} is no application/problem+json"
    for member in ("type", "title", "status", "detail"):
        if member not in problem:
            return f"the problem of {code} has no {member}"
    if problem["status"] != status:
        return f"the problem of {code} says status {problem['status']}, the answer {status}"
    return _differs(code, "the status", wanted.http, status)


def _differs(code: str, what: str, wanted: object, came: object) -> str | None:
    return None if wanted == came else f"{what} of {code} is {wanted}, and {came} came"
