"""Payloads as the bytes they are, and as JSON says them: text as itself, JSON as its value, else base64. Pure."""

import json
from base64 import b64decode, b64encode
from typing import Any, Final

from engram_bus.conformance.transports.contract import CannotSay

JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"


def said(unit: dict[str, Any]) -> dict[str, Any]:
    """A unit whose payload is bytes, as it stands in JSON."""
    content_type, payload = unit["content_type"], unit["payload"]
    rest = {key: value for key, value in unit.items() if key != "payload"}
    try:
        if _is_text(content_type):
            return {**rest, "payload": payload.decode()}
        if _is_json(content_type):
            return {**rest, "payload": json.loads(payload)}
    except ValueError:  # redacted: the bytes are not what their type says
        pass
    return {**rest, "payload_base64": b64encode(payload).decode()}


def packed(unit: dict[str, Any]) -> dict[str, Any]:
    """A unit as JSON says it, with a payload of bytes and their type, or (text, no type needed) of str, or none.

    Raises CannotSay for what JSON can say and bytes cannot.
    """
    rest = {key: value for key, value in unit.items() if key not in ("payload", "payload_base64")}
    content_type = unit.get("content_type")
    if "payload_base64" in unit:
        if "payload" in unit:
            raise CannotSay("payload and payload_base64 exclude each other")
        return {**rest, "content_type": content_type or BYTES, "payload": _decoded(unit["payload_base64"])}
    if "payload" not in unit:
        return rest
    payload = unit["payload"]
    if not isinstance(content_type, str | None):
        raise CannotSay(f"a content type that is no text: {content_type!r}")
    if isinstance(payload, str) and (content_type is None or not _is_json(content_type)):
        if content_type is not None and not _is_text(content_type):
            raise CannotSay(f"a payload of {content_type} that is a string")
        return rest | {"payload": payload}
    if content_type is None or _is_json(content_type):
        return {**rest, "content_type": content_type or JSON, "payload": json.dumps(payload).encode()}
    raise CannotSay(f"a payload of {content_type} that is a value of JSON")


def _decoded(text: Any) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (ValueError, TypeError) as exc:
        raise CannotSay(f"what is not base64: {exc}") from exc


def _is_text(content_type: str) -> bool:
    kind, _, parameters = content_type.lower().partition(";")
    charset = parameters.partition("charset=")[2].strip(' "')
    return kind.strip().startswith("text/") and charset in ("", "utf-8", "utf8", "us-ascii")


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == JSON or kind.endswith("+json")
