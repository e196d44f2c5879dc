"""Units, records and commands as tests want them: by default plain, by Hypothesis as odd as they may be."""

import json
from collections.abc import Sequence

from hypothesis import strategies as st

from engram_bus.log.contract import Log
from engram_bus.log.record import NOTHING_PRIVATE, Private, Record, seal
from engram_bus.units import (
    FORMAT_BYTES,
    FORMAT_JSON,
    FORMAT_TEXT,
    Append,
    Draft,
    Relationship,
    RelationshipType,
    UnitType,
    WorkUnit,
    ts_text,
)

SALT = bytes(range(16))

NAMES = st.one_of(
    st.sampled_from(["a", "a:b", "a/b", "a ", "ab", "b", "é", "日本", "\U0010ffff", "x" * 256, "é" * 128]),
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12),
)
META = st.dictionaries(NAMES.filter(lambda name: len(name.encode()) <= 128), st.text(max_size=20), max_size=3)
RELATIONSHIPS = st.lists(
    st.builds(Relationship, target_id=NAMES, type=st.sampled_from(RelationshipType), meta=META), max_size=3
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, width=32) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: "Infinity" not in json.dumps(value))
PAYLOADS = st.one_of(
    st.tuples(st.just(FORMAT_TEXT), st.text(max_size=50).map(str.encode)),
    st.tuples(st.just(FORMAT_JSON), JSON_VALUES.map(json.dumps).map(str.encode)),
    st.tuples(st.just(FORMAT_BYTES), st.binary(max_size=200)),
    st.tuples(st.sampled_from([FORMAT_TEXT, FORMAT_JSON, FORMAT_BYTES]), st.integers(0, 9).map(bytes)),
)
"""Of a content type what it says, or redacted."""


@st.composite
def units(draw: st.DrawFn, *, seq: int = 1) -> WorkUnit:
    """Any unit there can be, at a seq."""
    content_type, payload = draw(PAYLOADS)
    return WorkUnit(
        seq=seq,
        id=draw(st.uuids()).__str__(),
        context_id=draw(NAMES),
        version=draw(st.integers(1, 2**63 - 1)),
        agent_id=draw(NAMES),
        type=draw(st.sampled_from(UnitType)),
        ts=ts_text(draw(st.integers(0, 4_000_000_000_000_000))),
        content_type=content_type,
        kind=draw(st.none() | st.sampled_from(["build.failed", "note"])),
        meta=draw(META),
        resources=draw(st.lists(NAMES, max_size=3)),
        relationships=draw(RELATIONSHIPS),
        traceparent=draw(st.none() | st.just("00-" + "a" * 32 + "-" + "b" * 16 + "-01")),
        payload=payload,
    )


def unit(
    seq: int = 1,
    *,
    context_id: str = "plan",
    version: int | None = None,
    agent_id: str = "ann",
    payload: bytes = b"hi",
    kind: str | None = None,
    relates_to: Sequence[str] = (),
    id: str | None = None,
    ts_us: int | None = None,
) -> WorkUnit:
    """A plain unit. Its version is its seq, as in a log of one context."""
    return WorkUnit(
        seq=seq,
        id=id or unit_id(seq),
        context_id=context_id,
        version=seq if version is None else version,
        agent_id=agent_id,
        type=UnitType.MESSAGE if kind is None else UnitType.SYSTEM,
        ts=ts_text(seq if ts_us is None else ts_us),
        content_type=FORMAT_TEXT,
        kind=kind,
        relationships=[Relationship(target, RelationshipType.REFERENCES) for target in relates_to],
        payload=payload,
    )


def unit_id(number: int) -> str:
    return f"00000000-0000-7000-8000-{number:012x}"


def sealed(
    log: Log, units: Sequence[WorkUnit], *, private: Private = NOTHING_PRIVATE, atomic: bool = False
) -> list[Record]:
    """The records of units that come next in a log; together one command, or each by itself."""
    records: list[Record] = []
    for index, one in enumerate(units):
        records.append(
            seal(
                one,
                previous=records[-1].chain if records else log.chain,
                salt=SALT,
                private=private if index == 0 else NOTHING_PRIVATE,
                group_units=len(units) if atomic else 1,
                group_index=index if atomic else 0,
            )
        )
    return records


def draft(context_id: str = "plan", payload: bytes = b"hi", *, agent_id: str = "ann", id: str | None = None) -> Draft:
    return Draft(context_id=context_id, agent_id=agent_id, type=UnitType.MESSAGE, payload=payload, id=id)


def append(
    context_id: str = "plan",
    payload: bytes = b"hi",
    *,
    agent_id: str = "ann",
    id: str | None = None,
    key: str | None = None,
    expected_version: int | None = None,
) -> Append:
    return Append(
        draft=draft(context_id, payload, agent_id=agent_id, id=id),
        idempotency_key=key,
        expected_version=expected_version,
    )
