"""Errors on the wire of HTTP: RFC 9457 problem details with the code, the field and the limit."""

from typing import Any

from engram_bus.codec import encode_json
from engram_bus.errors import EngramError, Unavailable
from engram_bus.limits import RETRY_AFTER_SECONDS

CONTENT_TYPE = "application/problem+json"


def problem(error: EngramError, *, instance: str | None = None) -> dict[str, Any]:
    """The members of a problem; `details` are extension members beside the fixed ones."""
    members: dict[str, Any] = {
        **error.details,
        "type": f"urn:engram:error:{error.code.lower().replace('_', '-')}",
        "title": error.title,
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        "retryable": error.retryable,
    }
    for name in ("field", "limit", "index"):
        if (value := getattr(error, name)) is not None:
            members[name] = value
    if instance is not None:
        members["instance"] = instance
    return members


def problem_body(error: EngramError) -> bytes:
    """The problem as bytes."""
    return encode_json(problem(error))


def problem_headers(error: EngramError) -> list[tuple[bytes, bytes]]:
    """Headers that go with it: when to come back, where that makes sense."""
    headers = [(b"content-type", CONTENT_TYPE.encode())]
    if isinstance(error, Unavailable) and error.retryable:
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_SECONDS))
    allowed = error.details.get("allow")
    if isinstance(allowed, str):
        headers.append((b"allow", allowed.encode()))
    return headers
