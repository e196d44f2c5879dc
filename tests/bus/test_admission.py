"""Admission: each bound at, below and above it; every refusal names the field, and the limit that was reached."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.bus.admission import admit, bulk, check_name
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
    JSON_DEPTH_MAX,
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
from engram_bus.log.memory import MemoryLog
from engram_bus.log.record import Private
from engram_bus.units import (
    FORMAT_BYTES,
    FORMAT_JSON,
    AcquireLock,
    Append,
    AppendAtomic,
    Draft,
    Relationship,
    RelationshipType,
    UnitType,
    UpdateContext,
    WorkUnit,
)
from tests.values import META, NAMES, RELATIONSHIPS, append, sealed, unit_id

REFERENCES = RelationshipType.REFERENCES


def drafted(**fields: Any) -> Append:
    usual: dict[str, Any] = {"context_id": "plan", "agent_id": "ann", "type": UnitType.MESSAGE}
    return Append(draft=Draft(**usual | fields))


def updated(**fields: Any) -> UpdateContext:
    return UpdateContext(**{"context_id": "plan", "agent_id": "ann"} | fields)


def meta_of(total_bytes: int) -> dict[str, str]:
    """Meta of this many bytes, in values of at most what one may have."""
    count = -(-total_bytes // META_VALUE_BYTES_MAX)
    sizes = [total_bytes // count + (index < total_bytes % count) for index in range(count)]
    return {f"k{index}": "v" * (size - 2) for index, size in enumerate(sizes)}


def related_with(meta_bytes: int) -> Relationship:
    return Relationship("t", REFERENCES, meta_of(meta_bytes))


def names(count: int) -> tuple[str, ...]:
    return tuple(f"n{index}" for index in range(count))


SIZES: list[tuple[str, int, Any]] = [
    ("context_id", NAME_BYTES_MAX, lambda size: drafted(context_id="x" * size)),
    ("context_id", NAME_BYTES_MAX, lambda size: drafted(context_id="é" * (size // 2) + "x" * (size % 2))),
    ("agent_id", NAME_BYTES_MAX, lambda size: drafted(agent_id="x" * size)),
    ("kind", NAME_BYTES_MAX, lambda size: drafted(kind="x" * size)),
    ("content_type", CONTENT_TYPE_BYTES_MAX, lambda size: drafted(content_type="a/" + "b" * (size - 2))),
    ("payload", PAYLOAD_BYTES_MAX, lambda size: drafted(content_type=FORMAT_BYTES, payload=bytes(size))),
    ("traceparent", TRACEPARENT_BYTES_MAX, lambda size: drafted(traceparent=traceparent(size))),
    ("meta", META_ENTRIES_MAX, lambda count: drafted(meta=dict.fromkeys(names(count), ""))),
    ("meta", META_BYTES_MAX, lambda size: drafted(meta=meta_of(size))),
    ("meta key", META_KEY_BYTES_MAX, lambda size: drafted(meta={"k" * size: ""})),
    ("meta.k", META_VALUE_BYTES_MAX, lambda size: drafted(meta={"k": "é" * (size // 2) + "v" * (size % 2)})),
    ("resources", RESOURCES_MAX, lambda count: drafted(resources=list(names(count)))),
    ("resources[1]", RESOURCE_BYTES_MAX, lambda size: drafted(resources=["r", "r" * size])),
    ("relationships", RELATIONSHIPS_MAX, lambda count: drafted(relationships=[Relationship("t", REFERENCES)] * count)),
    (
        "relationships[0].target_id",
        NAME_BYTES_MAX,
        lambda size: drafted(relationships=[Relationship("t" * size, REFERENCES)]),
    ),
    (
        "relationships[1].meta",
        META_ENTRIES_MAX,
        lambda count: drafted(
            relationships=[
                Relationship("t", REFERENCES),
                Relationship("t", REFERENCES, dict.fromkeys(names(count), "")),
            ]
        ),
    ),
    (
        "relationships",
        META_BYTES_MAX,
        lambda size: drafted(relationships=[related_with(size - 9_000), related_with(9_000)]),
    ),
    (
        "idempotency_key",
        IDEMPOTENCY_KEY_BYTES_MAX,
        lambda size: msgspec.structs.replace(append(), idempotency_key="k" * size),
    ),
    (
        "idempotency_key",
        IDEMPOTENCY_KEY_BYTES_MAX,
        lambda size: AppendAtomic(appends=(append(),), idempotency_key="k" * size),
    ),
    ("context_id", NAME_BYTES_MAX, lambda size: updated(context_id="x" * size)),
    ("agent_id", NAME_BYTES_MAX, lambda size: updated(agent_id="x" * size)),
    ("idempotency_key", IDEMPOTENCY_KEY_BYTES_MAX, lambda size: updated(idempotency_key="k" * size)),
    ("display_name", DISPLAY_NAME_BYTES_MAX, lambda size: updated(display_name="x" * size)),
    ("add_agents", CONTEXT_CHANGES_MAX, lambda count: updated(add_agents=names(count))),
    ("remove_agents", CONTEXT_CHANGES_MAX, lambda count: updated(remove_agents=names(count))),
    ("pin_units", CONTEXT_CHANGES_MAX, lambda count: updated(pin_units=names(count))),
    ("unpin_units", CONTEXT_CHANGES_MAX, lambda count: updated(unpin_units=names(count))),
    ("add_agents[1]", NAME_BYTES_MAX, lambda size: updated(add_agents=("a", "x" * size))),
    ("meta", META_ENTRIES_MAX, lambda count: updated(meta=dict.fromkeys(names(count), None))),
    ("meta.k", META_VALUE_BYTES_MAX, lambda size: updated(meta={"k": "v" * size})),
    ("fences", CONTEXT_FENCES_MAX, lambda count: updated(fences=names(count))),
    ("fences[0]", RESOURCE_BYTES_MAX, lambda size: updated(fences=("f" * size,))),
    ("fences", CONTEXT_FENCES_BYTES_MAX, lambda size: updated(fences=("f" * 1_000, "g" * 1_000, "h" * (size - 2_000)))),
]


def traceparent(size: int) -> str:
    head = "00-" + "a" * 32 + "-" + "b" * 16 + "-01-"
    return head + "c" * (size - len(head))


@pytest.mark.parametrize(("field", "limit", "command"), SIZES, ids=[f"{field}-{limit}" for field, limit, _ in SIZES])
def test_a_bound_is_kept_below_and_at_it_and_told_above_it(field: str, limit: int, command: Any) -> None:
    assert admit(command(limit - 1)) > 0
    assert admit(command(limit)) > 0
    with pytest.raises(TooLarge) as caught:
        admit(command(limit + 1))
    assert (caught.value.field, caught.value.limit) == (field, limit)
    assert str(limit) in caught.value.message
    assert str(limit + 1) in caught.value.message


INVALID: list[tuple[str, Any]] = [
    ("context_id", drafted(context_id="")),
    ("context_id", drafted(context_id="a\nb")),
    ("context_id", drafted(context_id="a\x7fb")),
    ("context_id", drafted(context_id="a\x85b")),
    ("context_id", drafted(context_id="a\0")),
    ("context_id", drafted(context_id="a\ud800")),
    ("agent_id", drafted(agent_id="")),
    ("agent_id", drafted(agent_id="a\tb")),
    ("kind", drafted(kind="")),
    ("kind", drafted(kind="Build")),
    ("kind", drafted(kind="a..b")),
    ("kind", drafted(kind=".a")),
    ("kind", drafted(kind="a-")),
    ("kind", drafted(kind="é")),
    *[("kind", drafted(kind=f"{own}x")) for own in ("context.", "lock.", "mail.", "memory.", "agent.", "bus.")],
    ("id", drafted(id="")),
    ("id", drafted(id="x" * 36)),
    ("id", drafted(id=unit_id(1).upper().replace("0", "A"))),
    ("id", drafted(id=unit_id(1) + "\n")),
    ("traceparent", drafted(traceparent="")),
    ("traceparent", drafted(traceparent="00-" + "A" * 32 + "-" + "b" * 16 + "-01")),
    ("traceparent", drafted(traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01\n")),
    ("content_type", drafted(content_type="")),
    ("content_type", drafted(content_type="text")),
    ("content_type", drafted(content_type="text/plain\r\nx: y")),
    ("content_type", drafted(content_type="text/plain; é")),
    ("payload", drafted(payload=b"\xff")),
    ("payload", drafted(content_type="text/html", payload=b"\xff")),
    ("payload", drafted(content_type=FORMAT_JSON, payload=b"")),
    ("payload", drafted(content_type=FORMAT_JSON, payload=b"{")),
    ("payload", drafted(content_type="application/ld+json", payload=b"NaN")),
    ("payload", drafted(content_type=FORMAT_JSON, payload=b'"\xff"')),
    ("payload", drafted(content_type=FORMAT_JSON, payload=b"[" * (JSON_DEPTH_MAX + 1) + b"]" * (JSON_DEPTH_MAX + 1))),
    ("payload", drafted(content_type=FORMAT_JSON, payload=b"[" * 100_000 + b"]" * 100_000)),
    ("meta key", drafted(meta={"": "v"})),
    ("meta key", drafted(meta={"a\0": "v"})),
    ("meta key", drafted(meta={"\udc80": "v"})),
    ("meta.k", drafted(meta={"k": "\ud800"})),
    ("resources[0]", drafted(resources=[""])),
    ("resources[1]", drafted(resources=["a", "b\n"])),
    ("relationships[0].target_id", drafted(relationships=[Relationship("", REFERENCES)])),
    ("relationships[0].meta key", drafted(relationships=[Relationship("t", REFERENCES, {"": ""})])),
    ("relationships[0].meta.k", drafted(relationships=[Relationship("t", REFERENCES, {"k": "\ud800"})])),
    ("idempotency_key", append(key="")),
    ("idempotency_key", append(key="a\nb")),
    ("expected_version", append(expected_version=-1)),
    ("expected_version", append(expected_version=2**63)),
    ("context_id", updated(context_id="")),
    ("agent_id", updated(agent_id="")),
    ("idempotency_key", updated(idempotency_key="")),
    ("expected_version", updated(expected_version=-1)),
    ("display_name", updated(display_name="a\nb")),
    ("add_agents[1]", updated(add_agents=("a", ""))),
    ("remove_agents[0]", updated(remove_agents=("a\n",))),
    ("pin_units[0]", updated(pin_units=("",))),
    ("unpin_units[0]", updated(unpin_units=("",))),
    ("remove_agents", updated(add_agents=("a", "b"), remove_agents=("b",))),
    ("unpin_units", updated(pin_units=("a", "b"), unpin_units=("b",))),
    ("meta key", updated(meta={"": None})),
    ("meta.k", updated(meta={"k": "\ud800"})),
    ("fences[0]", updated(fences=("",))),
]


@pytest.mark.parametrize(("field", "command"), INVALID)
def test_what_cannot_be_is_refused_by_its_field(field: str, command: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        admit(command)
    assert caught.value.field == field


FINE: list[Any] = [
    drafted(),
    drafted(context_id="repo/src/a b:c.py", agent_id="日本"),
    drafted(kind="build.failed-twice.in_ci"),
    drafted(kind="contextual"),
    drafted(kind="bus"),
    drafted(id=unit_id(1)),
    drafted(traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01"),
    drafted(content_type="text/html; charset=latin-1", payload=b"\xff"),
    drafted(content_type=FORMAT_BYTES, payload=b"\xff"),
    drafted(content_type=FORMAT_JSON, payload=b"[" * JSON_DEPTH_MAX + b"]" * JSON_DEPTH_MAX),
    drafted(content_type=FORMAT_JSON, payload=b"[" + b"[[{}]]," * 300 + b"0]"),
    drafted(meta={"k": "several\nlines, \0 too"}),
    append(expected_version=0),
    append(expected_version=2**63 - 1),
    updated(),
    updated(display_name="", meta={"gone": None, "k": ""}, fences=(), closed=False),
    updated(add_agents=("a", "a"), unpin_units=("u",)),
]


@pytest.mark.parametrize("command", FINE)
def test_what_is_fine_is_let_in(command: Any) -> None:
    assert admit(command) > 0


# --- Batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_has_from_one_to_its_bound() -> None:
    assert bulk([append()] * BULK_UNITS_MAX) > 0
    with pytest.raises(InvalidRequest, match="the batch is empty"):
        bulk([])
    with pytest.raises(TooLarge) as caught:
        admit(AppendAtomic(appends=(append(),) * (BULK_UNITS_MAX + 1)))
    assert caught.value.limit == BULK_UNITS_MAX


def test_a_batch_is_bounded_in_bytes() -> None:
    unit_bytes = admit(append(payload=bytes(1_000_000)))
    fit = BULK_BYTES_MAX // unit_bytes
    assert bulk([append(payload=bytes(1_000_000))] * fit) == fit * unit_bytes
    with pytest.raises(TooLarge) as caught:
        bulk([append(payload=bytes(1_000_000))] * (fit + 1))
    assert caught.value.limit == BULK_BYTES_MAX


def test_the_first_bad_unit_of_a_batch_is_named() -> None:
    for bad, refusal in ((append(""), InvalidRequest), (append("x" * 300), TooLarge)):
        with pytest.raises(refusal) as caught:
            admit(AppendAtomic(appends=(append(), append(), bad, append(""))))
        assert (caught.value.index, caught.value.field) == (2, "context_id")


def test_an_atomic_batch_has_one_key() -> None:
    with pytest.raises(InvalidRequest) as caught:
        admit(AppendAtomic(appends=(append(), append(key="k"))))
    assert (caught.value.index, caught.value.field) == (1, "idempotency_key")


def test_a_name_is_checked_wherever_it_is_asked_for() -> None:
    check_name("repo/a", "context")
    with pytest.raises(InvalidRequest) as caught:
        check_name("", "context")
    assert caught.value.field == "context"


# --- What is let in can be recorded ----------------------------------------------------------------------------------


@given(
    st.builds(
        Draft,
        context_id=NAMES,
        agent_id=NAMES,
        type=st.sampled_from(UnitType),
        content_type=st.sampled_from([FORMAT_BYTES, "text/plain; charset=" + "x" * 230]),
        kind=st.none() | st.just("k" * 256),
        payload=st.binary(max_size=100),
        meta=META,
        resources=st.lists(NAMES, max_size=3),
        relationships=RELATIONSHIPS,
    ),
    st.text(max_size=256).filter(lambda key: len(key.encode(errors="replace")) <= 256),
)
def test_what_is_let_in_is_never_larger_on_the_disk_than_it_was_counted(draft: Draft, key: str) -> None:
    try:
        held_bytes = admit(Append(draft=draft, idempotency_key=key))
    except InvalidRequest:
        return
    fields = {name: value for name, value in msgspec.structs.asdict(draft).items() if name != "id"}
    unit = WorkUnit(**fields, seq=1, id=unit_id(1), version=1, ts="2026-01-01T00:00:00.000000Z")
    record = sealed(MemoryLog(), [unit], private=Private(key=key, body_digest=bytes(16)))[0]
    assert len(record.raw) <= held_bytes


@pytest.mark.parametrize("resource", [".", "./", "a/..", "./."])
def test_what_is_locked_has_a_name(resource: str) -> None:
    with pytest.raises(InvalidRequest, match="names nothing") as refused:
        admit(AcquireLock(resources=(resource,), agent_id="ann", ttl_ms=1_000))
    assert refused.value.field == "resource"
