"""A recording becomes units: the same each time, related to what came before, within every bound."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.bus.admission import admit
from engram_bus.cli.replay.recording import Recording, RecordingError, Step, parse
from engram_bus.codec import append_from_msgpack
from engram_client import codec


def recording(*rows: dict[str, Any], **how: Any) -> Recording:
    lines = [msgspec.json.encode({"agent": "ann", "text": "", **row}) for row in rows]
    return parse(b"\n".join(lines), **{"run": "r", **how})


def drafts(*rows: dict[str, Any], **how: Any) -> list[Any]:
    return [step.draft for step in recording(*rows, **how).steps]


def dues(*rows: dict[str, Any], **how: Any) -> list[float]:
    return [step.due_seconds for step in recording(*rows, **how).steps]


def test_a_step_becomes_a_unit() -> None:
    row = {
        "agent": "ann/1",
        "text": "{}",
        "type_hint": "file_change",
        "session": "s",
        "path": "a.py",
        "op": "edit",
        "step": 7,
        "to": None,
    }
    (draft,) = drafts(row)
    assert (draft.context_id, draft.agent_id, draft.type, draft.kind) == ("r/s", "ann/1", "FILE_CHANGE", "file.edit")
    assert (draft.payload, draft.resources) == ("{}", ["a.py"])
    assert draft.meta == {"session": "s", "path": "a.py", "op": "edit", "step": "7"}


def test_ids_and_keys_derive_from_file_run_and_line() -> None:
    rows = ({"text": "same"}, {"text": "same"})
    first, again = drafts(*rows), drafts(*rows)
    assert first == again
    others = [*drafts(*rows, run="q"), *drafts(*rows, {"text": "more"})]
    assert (
        len({draft.id for draft in [*first, *others]})
        == len({draft.idempotency_key for draft in [*first, *others]})
        == 7
    )


def test_a_result_responds_to_the_call_recorded_before_it_in_its_trace() -> None:
    call, result, failed, foreign, early, late = drafts(
        {"type_hint": "tool_call", "tool_use_id": "c", "trace": "t"},
        {"type_hint": "tool_result", "tool_use_id": "c", "trace": "t"},
        {"type_hint": "error", "tool_use_id": "c", "trace": "t"},
        {"type_hint": "tool_result", "tool_use_id": "c", "trace": "u"},
        {"type_hint": "tool_result", "tool_use_id": "d", "trace": "t"},
        {"type_hint": "tool_call", "tool_use_id": "d", "trace": "t"},
        order="file",
    )
    for answer in (result, failed):
        assert [(to.target_id, to.type) for to in answer.relationships] == [(call.id, "RESPONDS_TO")]
    assert foreign.relationships is early.relationships is late.relationships is None


def test_a_call_id_that_is_used_again_means_the_latest_call() -> None:
    rows = [
        {"type_hint": hint, "tool_use_id": "c"} for hint in ("tool_call", "tool_result", "tool_call", "tool_result")
    ]
    first, answer, second, other = drafts(*rows)
    assert (answer.relationships[0].target_id, other.relationships[0].target_id) == (first.id, second.id)


def test_events_of_a_task_modify_it_and_a_task_depends_on_others() -> None:
    first, second, closed = drafts(
        {"item": "a", "event": "created", "depends_on": [{"on": "b", "type": "blocks"}]},
        {"item": "b", "event": "created", "depends_on": [{"on": "a", "type": "blocks"}]},
        {"item": "a", "event": "closed"},
    )
    assert first.relationships is None
    assert [(to.target_id, to.type, to.meta) for to in second.relationships] == [
        (first.id, "DEPENDS_ON", {"type": "blocks"})
    ]
    assert [(to.target_id, to.type) for to in closed.relationships] == [(first.id, "MODIFIES")]
    assert (closed.kind, closed.resources) == ("task.closed", ["a"])


def test_contexts_are_sessions_or_else_traces_or_what_is_asked_for() -> None:
    rows = ({"session": "s", "trace": "t", "branch": "main"}, {"trace": "t"})
    assert [draft.context_id for draft in drafts(*rows)] == ["r/s", "r/t"]
    assert [draft.context_id for draft in drafts(*rows, context_from="branch")] == ["r/main", "r/t"]
    assert [draft.context_id for draft in drafts({}, {})] == ["r/steps"] * 2
    with pytest.raises(RecordingError, match="'team'"):
        recording(*rows, context_from="team")


def test_steps_are_due_as_they_were_recorded_and_time_does_not_go_back() -> None:
    times = ("2026-01-01T00:00:00Z", None, "2026-01-01T00:00:05Z", "2026-01-01T00:00:04Z", "2026-01-01T00:01:05Z")
    rows = [{"ts": time} for time in times]
    assert dues(*rows) == [0, 0, 5, 5, 65]
    assert dues(*rows, pause_seconds_max=10) == [0, 0, 5, 5, 15]


def test_without_times_every_context_takes_a_step_a_second_or_the_whole_file_does() -> None:
    rows = [{"trace": trace, "text": text} for trace, text in ("a1", "a2", "b3", "b4", "a5")]
    for order, texts in (("context", "13245"), ("file", "12345")):
        assert "".join(step.draft.payload for step in recording(*rows, order=order).steps) == texts
    assert dues(*rows) == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b'{"agent": "a", "text": ""}\n\nnonsense', "line 3 is not a JSON object"),
        (b"[]", "line 1 is not a JSON object"),
        (b'{"agent": "a"}', "line 1 has no text in 'text'"),
        (b'{"text": ""}', "line 1 has no text in 'agent'"),
        (b'{"agent": "a", "text": "", "ts": "soon"}', "line 1: ts 'soon' is not a time"),
    ],
)
def test_what_is_no_step_is_named_by_its_line(raw: bytes, told: str) -> None:
    with pytest.raises(RecordingError, match=told):
        parse(raw, run="r")


LONG = st.text(max_size=400) | st.integers(min_value=1, max_value=3_000_000).map(lambda size: "ü" * size)
ROWS = st.fixed_dictionaries(
    {
        "agent": LONG,
        "text": LONG,
        "session": LONG,
        "type_hint": st.sampled_from(["tool_result", "poem", "file_change"]),
    },
    optional={
        "path": LONG,
        "op": LONG,
        "event": LONG,
        "item": LONG,
        "tool_use_id": LONG,
        "depends_on": st.lists(st.just({"on": "x", "type": "blocks"}), max_size=100),
        "extra": st.dictionaries(st.text(max_size=300), LONG, max_size=3),
    },
)


@given(st.lists(ROWS, min_size=1, max_size=3))
def test_whatever_is_recorded_fits_what_the_bus_takes(rows: list[dict[str, Any]]) -> None:
    for step in parse(b"\n".join(map(msgspec.json.encode, rows)), run="r").steps:
        assert isinstance(step, Step)
        body = codec.append_body(step.draft, agent_id=step.agent_id, idempotency_key="")
        admit(append_from_msgpack(body))


def test_what_is_cut_says_so_and_names_stay_different() -> None:
    (draft,) = drafts({"text": "ü" * 2**20})
    assert len(draft.payload.encode()) == 2**20
    assert draft.meta["cut_from_bytes"] == str(2**21)
    one, other = drafts({"agent": "a" * 300}, {"agent": "a" * 301})
    assert one.agent_id != other.agent_id
