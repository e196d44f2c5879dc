"""Units: their ids, their times, and what their content types say."""

from datetime import UTC, datetime
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.units import (
    AppendAtomic,
    Context,
    Draft,
    Relationship,
    RelationshipType,
    Stamp,
    UnitType,
    UpdateContext,
    WorkUnit,
    is_json,
    is_own_kind,
    is_text,
    ts_text,
    ts_us,
)
from tests.values import append, unit

TIMES_US = st.integers(0, 253_402_300_799_999_999)
SEEDS = st.integers(0, 2**62 - 1)

STAMPS = st.builds(Stamp, ts_us=TIMES_US, seed=SEEDS)


@given(STAMPS, st.integers(0, 2_047))
def test_an_id_is_a_uuid_of_version_7_that_holds_its_time(stamp: Stamp, ordinal: int) -> None:
    text = stamp.unit_id(ordinal)
    read = UUID(text)
    assert (str(read), read.version, read.variant) == (text, 7, "specified in RFC 4122")
    assert read.int >> 80 == stamp.ts_us // 1_000
    assert stamp.ts_us % 1_000 - (read.int >> 64 & 0xFFF) * 1_000 // 4_096 in (0, 1), "rounded down"


@given(STAMPS)
def test_the_ids_of_a_commit_differ_and_rise(stamp: Stamp) -> None:
    ids = [stamp.unit_id(ordinal) for ordinal in range(100)]
    assert len(set(ids)) == 100
    assert ids == sorted(ids) or stamp.seed + 100 >= 2**62


@given(TIMES_US, TIMES_US, SEEDS, SEEDS)
def test_a_later_commit_has_a_later_id(one_us: int, other_us: int, seed: int, other_seed: int) -> None:
    if one_us < other_us:
        assert Stamp(one_us, seed).unit_id(0)[:18] < Stamp(other_us, other_seed).unit_id(0)[:18]


@given(TIMES_US)
def test_a_time_is_rfc_3339_with_microseconds(us: int) -> None:
    text = ts_text(us)
    assert ts_us(text) == us
    read = datetime.fromisoformat(text)
    assert (read.tzinfo, len(text), text[-1]) == (UTC, 27, "Z")


@given(TIMES_US, TIMES_US)
def test_the_order_of_texts_is_the_order_of_times(one_us: int, other_us: int) -> None:
    assert (ts_text(one_us) < ts_text(other_us)) == (one_us < other_us)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01T00:00:00Z"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"isoformat|month"):
        ts_us(text)


def test_own_kinds_are_by_their_first_word() -> None:
    assert all(is_own_kind(kind) for kind in ("context.x", "lock.x", "mail.x", "memory.x", "agent.x", "bus.x"))
    assert not any(is_own_kind(kind) for kind in (None, "", "contextual.x", "bus", "x.bus.y"))


@pytest.mark.parametrize(
    ("content_type", "text", "json"),
    [
        ("text/plain; charset=utf-8", True, False),
        ("text/plain", True, False),
        ("TEXT/HTML; Charset=UTF-8", True, False),
        ('text/plain; charset="utf-8"', True, False),
        ("text/plain; charset=us-ascii", True, False),
        ("text/plain; charset=latin-1", False, False),
        ("application/json", False, True),
        ("Application/JSON; charset=utf-8", False, True),
        ("application/problem+json", False, True),
        ("text/x+json", True, True),
        ("application/octet-stream", False, False),
        ("application/jsonl", False, False),
        ("", False, False),
    ],
)
def test_content_types_say_what_a_payload_is(content_type: str, text: bool, json: bool) -> None:
    assert (is_text(content_type), is_json(content_type)) == (text, json)


def test_types_have_the_numbers_of_their_order() -> None:
    """Numbers are read from the wire and stand in the proto: a new type goes to the end."""
    assert list(UnitType) == [
        "UNKNOWN", "MESSAGE", "REASONING", "TOOL_CALL", "TOOL_RESULT", "FILE_CHANGE", "TASK_STATUS", "ERROR", "SYSTEM"
    ]  # fmt: skip
    assert list(RelationshipType) == [
        "SEQUENTIAL", "CAUSES", "DEPENDS_ON", "REFERENCES", "RESPONDS_TO", "MODIFIES", "REPLACES"
    ]  # fmt: skip


def test_the_fields_of_a_unit_are_those_on_the_disk_and_the_payload_is_last() -> None:
    """Records are kept for ever: a field is added before the payload, with a default, and none is renamed."""
    assert WorkUnit.__struct_fields__ == (
        "seq", "id", "context_id", "version", "agent_id", "type", "ts", "content_type", "kind", "meta", "resources",
        "relationships", "traceparent", "payload",
    )  # fmt: skip


def test_values_are_frozen() -> None:
    values = [
        unit(),
        Relationship("t", RelationshipType.CAUSES),
        append(),
        append().draft,
        AppendAtomic(appends=(append(),)),
        UpdateContext(context_id="c", agent_id="a"),
        Context("c", 1, "", ""),
        Stamp(0, 0),
    ]
    for value in values:
        with pytest.raises(AttributeError, match="immutable"):
            setattr(value, value.__struct_fields__[0], None)


def test_the_key_of_an_atomic_batch_is_its_first_agents() -> None:
    assert AppendAtomic(appends=(append(agent_id="bob"), append())).agent_id == "bob"


def test_a_draft_that_says_nothing_more_is_digested_as_nothing_more() -> None:
    draft = Draft(context_id="c", agent_id="a", type=UnitType.MESSAGE)
    assert msgspec.to_builtins(draft) == {"context_id": "c", "agent_id": "a", "type": "MESSAGE"}
