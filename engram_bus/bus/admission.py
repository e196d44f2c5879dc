"""What is let in: every bound and form of a command, checked once for all transports before it may wait."""

import re
from collections.abc import Collection, Sequence

from engram_bus.codec import check_payload
from engram_bus.errors import InvalidRequest, TooLarge
from engram_bus.limits import (
    BULK_BYTES_MAX,
    BULK_UNITS_MAX,
    CONTENT_TYPE_BYTES_MAX,
    CONTEXT_CHANGES_MAX,
    CONTEXT_FENCES_BYTES_MAX,
    CONTEXT_FENCES_MAX,
    DISPLAY_NAME_BYTES_MAX,
    IDEMPOTENCY_KEY_BYTES_MAX,
    LOCK_DEPTH_MAX,
    LOCK_REASON_BYTES_MAX,
    LOCK_RESOURCES_MAX,
    LOCK_TTL_MS_MAX,
    LOCK_TTL_MS_MIN,
    LOCK_WAIT_MS_MAX,
    META_BYTES_MAX,
    META_ENTRIES_MAX,
    META_KEY_BYTES_MAX,
    META_VALUE_BYTES_MAX,
    NAME_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    RELATIONSHIPS_MAX,
    RESOURCE_BYTES_MAX,
    RESOURCES_MAX,
    TRACEPARENT_BYTES_MAX,
)
from engram_bus.resources import canonical
from engram_bus.units import (
    FORMAT_TEXT,
    AcquireLock,
    Append,
    AppendAtomic,
    BreakLock,
    Command,
    Draft,
    RefreshLock,
    ReleaseLock,
    UpdateContext,
    is_own_kind,
)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_KIND = re.compile(r"[a-z0-9_]+(?:-[a-z0-9_]+)*(?:\.[a-z0-9_]+(?:-[a-z0-9_]+)*)*\Z")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?\Z")
_CONTENT_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+[ -~]*\Z")
_VERSION_MAX = 2**63 - 1
_NAMES_BYTES = 2_048
"""What the names of one command take at most, with what surrounds them: it is simply taken for granted."""
_RELATIONSHIP_BYTES = 512
"""Likewise, for what a relationship names."""

assert 5 * NAME_BYTES_MAX + IDEMPOTENCY_KEY_BYTES_MAX + TRACEPARENT_BYTES_MAX < _NAMES_BYTES


def admit(command: Command) -> int:
    """Check a command; gives the bytes it holds while it waits. Raises InvalidRequest, TooLarge."""
    match command:
        case Append():
            return _append(command)
        case AppendAtomic():
            held_bytes = bulk(command.appends)
            _idempotency_key(command.idempotency_key)
            for index, append in enumerate(command.appends):
                if append.idempotency_key is not None:
                    raise InvalidRequest(
                        "an atomic batch has one idempotency key for all of it", field="idempotency_key", index=index
                    )
            return held_bytes
        case UpdateContext():
            return _update(command)
        case AcquireLock():
            return _acquire(command)
        case RefreshLock():
            return _claimed(command) + _ttl(command.ttl_ms)
        case ReleaseLock():
            return _claimed(command)
        case BreakLock():
            return _break(command)


def bulk(appends: Sequence[Append]) -> int:
    """Check the appends of one batch together, naming the first that fails by its index."""
    if not appends:
        raise InvalidRequest("the batch is empty: name at least one unit")
    if len(appends) > BULK_UNITS_MAX:
        raise TooLarge(f"{len(appends)} units in one batch, at most {BULK_UNITS_MAX}", limit=BULK_UNITS_MAX)
    held_bytes = 0
    for index, append in enumerate(appends):
        try:
            held_bytes += _append(append)
        except (InvalidRequest, TooLarge) as exc:
            raise exc.at(index) from None
    if held_bytes > BULK_BYTES_MAX:
        raise TooLarge(f"{held_bytes} bytes in one batch, at most {BULK_BYTES_MAX}", limit=BULK_BYTES_MAX)
    return held_bytes


def check_resource(resource: str, field: str) -> int:
    """Check what is locked, or asked about; gives its bytes. Raises InvalidRequest, TooLarge."""
    size_bytes = _text(resource, field, RESOURCE_BYTES_MAX, empty=False)
    if canonical(resource) == ".":
        raise InvalidRequest(f"{field} {resource!r} names nothing that can be locked", field=field)
    if (depth := resource.count("/") + 1) > LOCK_DEPTH_MAX:
        raise TooLarge(f"{field} has {depth} segments, at most {LOCK_DEPTH_MAX}", field=field, limit=LOCK_DEPTH_MAX)
    return size_bytes


def check_name(value: str, field: str) -> None:
    """Check the name of a context or an agent, wherever it is asked for. Raises InvalidRequest, TooLarge."""
    # Nearly every name is printable ASCII; the others are looked at closely.
    if not (0 < len(value) <= NAME_BYTES_MAX and value.isascii() and value.isprintable()):
        _text(value, field, NAME_BYTES_MAX, empty=False)


def _append(append: Append) -> int:
    if append.idempotency_key is not None:
        _idempotency_key(append.idempotency_key)
    if append.expected_version is not None:
        _version(append.expected_version)
    if append.fence is not None:
        check_resource(append.fence.resource, "fence.resource")
        check_token(append.fence.token, "fence.token")
    return _draft(append.draft)


def check_token(token: int, field: str) -> None:
    """Check a fencing token: the seq of a grant. Raises InvalidRequest."""
    if not 1 <= token <= _VERSION_MAX:
        raise InvalidRequest(f"{field} {token} is not a fencing token", field=field)


def _draft(draft: Draft) -> int:
    check_name(draft.context_id, "context_id")
    check_name(draft.agent_id, "agent_id")
    if draft.kind is not None:
        _kind(draft.kind)
    if draft.id is not None and not _UUID.match(draft.id):
        raise InvalidRequest(f"id {draft.id[:64]!r} is not a lower-case UUID", field="id")
    if draft.traceparent is not None:
        _traceparent(draft.traceparent)
    if len(draft.payload) > PAYLOAD_BYTES_MAX:
        raise TooLarge(
            f"payload has {len(draft.payload)} bytes, at most {PAYLOAD_BYTES_MAX}",
            field="payload",
            limit=PAYLOAD_BYTES_MAX,
        )
    if draft.content_type != FORMAT_TEXT:
        _content_type(draft.content_type)
    check_payload(draft.content_type, draft.payload)
    held_bytes = len(draft.payload) + _NAMES_BYTES
    if draft.meta:
        held_bytes += _meta(draft.meta, "meta")
    if draft.resources:
        held_bytes += _resources(draft.resources)
    if draft.relationships:
        held_bytes += _relationships(draft)
    return held_bytes


def _update(command: UpdateContext) -> int:
    check_name(command.context_id, "context_id")
    check_name(command.agent_id, "agent_id")
    _idempotency_key(command.idempotency_key)
    _version(command.expected_version)
    held_bytes = _NAMES_BYTES
    if command.display_name is not None:
        held_bytes += _text(command.display_name, "display_name", DISPLAY_NAME_BYTES_MAX)
    for field in ("add_agents", "remove_agents", "pin_units", "unpin_units"):
        held_bytes += _names(getattr(command, field), field)
    _exclusive(command.add_agents, command.remove_agents, "remove_agents")
    _exclusive(command.pin_units, command.unpin_units, "unpin_units")
    held_bytes += _meta({key: value or "" for key, value in command.meta.items()}, "meta")
    if command.fences is not None:
        held_bytes += _fences(command.fences)
    return held_bytes


def _acquire(command: AcquireLock) -> int:
    if not command.resources:
        raise InvalidRequest("name a resource to lock", field="resource")
    if (count := len(command.resources)) > LOCK_RESOURCES_MAX:
        raise TooLarge(
            f"{count} resources in one lock, at most {LOCK_RESOURCES_MAX}", field="resources", limit=LOCK_RESOURCES_MAX
        )
    check_name(command.agent_id, "agent_id")
    check_name(command.context_id, "context_id")
    fields = ("resource",) if count == 1 else tuple(f"resources[{index}]" for index in range(count))
    held_bytes = sum(map(check_resource, command.resources, fields))
    if not 0 <= command.wait_ms <= LOCK_WAIT_MS_MAX:
        raise InvalidRequest(
            f"wait_seconds {command.wait_ms / 1_000} is not 0 to {LOCK_WAIT_MS_MAX // 1_000}",
            field="wait_seconds",
            limit=LOCK_WAIT_MS_MAX // 1_000,
        )
    return held_bytes + _ttl(command.ttl_ms) + _reason(command.reason) + _NAMES_BYTES


def _claimed(command: RefreshLock | ReleaseLock) -> int:
    check_name(command.agent_id, "agent_id")
    _lock_id(command.lock_id)
    held_bytes = 0 if command.resource is None else check_resource(command.resource, "resource")
    return held_bytes + _NAMES_BYTES


def _break(command: BreakLock) -> int:
    check_name(command.agent_id, "agent_id")
    if command.lock_id is not None:
        _lock_id(command.lock_id)
    if not command.reason:
        raise InvalidRequest("a lock is broken for a reason: name it", field="reason")
    return check_resource(command.resource, "resource") + _reason(command.reason) + _NAMES_BYTES


def _lock_id(lock_id: str) -> None:
    if not _UUID.match(lock_id):
        raise InvalidRequest(f"lock_id {lock_id[:64]!r} is not the id of a lock", field="lock_id")


def _ttl(ttl_ms: int | None) -> int:
    if ttl_ms is not None and not LOCK_TTL_MS_MIN <= ttl_ms <= LOCK_TTL_MS_MAX:
        raise InvalidRequest(
            f"ttl_seconds {ttl_ms / 1_000} is not {LOCK_TTL_MS_MIN / 1_000} to {LOCK_TTL_MS_MAX // 1_000}",
            field="ttl_seconds",
            limit=LOCK_TTL_MS_MAX // 1_000,
        )
    return 0


def _reason(reason: str) -> int:
    return _text(reason, "reason", LOCK_REASON_BYTES_MAX)


def _exclusive(added: Collection[str], removed: Collection[str], field: str) -> None:
    if both := set(added) & set(removed):
        raise InvalidRequest(f"{min(both)!r} is both added and removed", field=field)


def _names(names: Sequence[str], field: str) -> int:
    if len(names) > CONTEXT_CHANGES_MAX:
        raise TooLarge(
            f"{field} names {len(names)}, at most {CONTEXT_CHANGES_MAX}", field=field, limit=CONTEXT_CHANGES_MAX
        )
    return sum(_text(name, f"{field}[{index}]", NAME_BYTES_MAX, empty=False) for index, name in enumerate(names))


def _fences(fences: Sequence[str]) -> int:
    if len(fences) > CONTEXT_FENCES_MAX:
        raise TooLarge(f"{len(fences)} fences, at most {CONTEXT_FENCES_MAX}", field="fences", limit=CONTEXT_FENCES_MAX)
    held_bytes = sum(
        _text(fence, f"fences[{index}]", RESOURCE_BYTES_MAX, empty=False) for index, fence in enumerate(fences)
    )
    if held_bytes > CONTEXT_FENCES_BYTES_MAX:
        raise TooLarge(
            f"fences have {held_bytes} bytes together, at most {CONTEXT_FENCES_BYTES_MAX}",
            field="fences",
            limit=CONTEXT_FENCES_BYTES_MAX,
        )
    return held_bytes


def _text(value: str, field: str, bytes_max: int, *, empty: bool = True) -> int:
    """The bytes of one line of text. Short ASCII, the usual case, is measured without being encoded: two calls."""
    size_bytes = len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if size_bytes > bytes_max:
        raise TooLarge(f"{field} has {size_bytes} bytes, at most {bytes_max}", field=field, limit=bytes_max)
    if not value.isprintable() and (bad := _CONTROL.search(value)):
        raise InvalidRequest(f"{field} holds the control character U+{ord(bad.group()):04X}", field=field)
    if not value and not empty:
        raise InvalidRequest(f"{field} is empty", field=field)
    return size_bytes


def _kind(kind: str) -> None:
    _text(kind, "kind", NAME_BYTES_MAX)
    if not _KIND.match(kind):
        raise InvalidRequest(f"kind {kind!r} is not dotted lower case (like build.failed)", field="kind")
    if is_own_kind(kind):
        raise InvalidRequest(f"kind {kind!r} is the bus's own: only it writes {kind.partition('.')[0]}.*", field="kind")


def _traceparent(traceparent: str) -> None:
    _text(traceparent, "traceparent", TRACEPARENT_BYTES_MAX)
    if not _TRACEPARENT.match(traceparent):
        raise InvalidRequest("traceparent is not of W3C Trace Context", field="traceparent")


def _content_type(content_type: str) -> None:
    _text(content_type, "content_type", CONTENT_TYPE_BYTES_MAX)
    if not _CONTENT_TYPE.match(content_type):
        raise InvalidRequest(f"content_type {content_type!r} is not a media type", field="content_type")


def _idempotency_key(key: str | None) -> None:
    if key is not None:
        _text(key, "idempotency_key", IDEMPOTENCY_KEY_BYTES_MAX, empty=False)


def _version(version: int | None) -> None:
    if version is not None and not 0 <= version <= _VERSION_MAX:
        raise InvalidRequest(f"expected_version {version} is not a version", field="expected_version")


def _meta(meta: dict[str, str], field: str) -> int:
    if len(meta) > META_ENTRIES_MAX:
        raise TooLarge(
            f"{field} has {len(meta)} entries, at most {META_ENTRIES_MAX}", field=field, limit=META_ENTRIES_MAX
        )
    held_bytes = 0
    for key, value in meta.items():
        held_bytes += _text(key, f"{field} key", META_KEY_BYTES_MAX, empty=False)
        try:
            value_bytes = len(value.encode())
        except UnicodeEncodeError as exc:
            raise InvalidRequest(f"{field}.{key} is not text: {exc.reason}", field=f"{field}.{key}") from exc
        if value_bytes > META_VALUE_BYTES_MAX:
            raise TooLarge(
                f"{field}.{key} has {value_bytes} bytes, at most {META_VALUE_BYTES_MAX}",
                field=f"{field}.{key}",
                limit=META_VALUE_BYTES_MAX,
            )
        held_bytes += value_bytes
    if held_bytes > META_BYTES_MAX:
        raise TooLarge(f"{field} has {held_bytes} bytes, at most {META_BYTES_MAX}", field=field, limit=META_BYTES_MAX)
    return held_bytes


def _resources(resources: Sequence[str]) -> int:
    if len(resources) > RESOURCES_MAX:
        raise TooLarge(f"{len(resources)} resources, at most {RESOURCES_MAX}", field="resources", limit=RESOURCES_MAX)
    return sum(
        _text(resource, f"resources[{index}]", RESOURCE_BYTES_MAX, empty=False)
        for index, resource in enumerate(resources)
    )


def _relationships(draft: Draft) -> int:
    count = len(draft.relationships)
    if count > RELATIONSHIPS_MAX:
        raise TooLarge(
            f"{count} relationships, at most {RELATIONSHIPS_MAX}", field="relationships", limit=RELATIONSHIPS_MAX
        )
    meta_bytes = 0
    for index, relationship in enumerate(draft.relationships):
        check_name(relationship.target_id, f"relationships[{index}].target_id")
        meta_bytes += _meta(relationship.meta, f"relationships[{index}].meta")
    if meta_bytes > META_BYTES_MAX:
        raise TooLarge(
            f"relationships hold {meta_bytes} bytes of meta, at most {META_BYTES_MAX}",
            field="relationships",
            limit=META_BYTES_MAX,
        )
    return meta_bytes + count * _RELATIONSHIP_BYTES
