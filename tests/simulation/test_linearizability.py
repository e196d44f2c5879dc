"""The checker gives the verdicts that are known: of recorded histories, and of made ones."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulation.all_orders import has_order
from tests.simulation.linearizability import Operation, beginning, find_order, is_linearizable, shortest_failure
from tests.simulation.registers import (
    Cas,
    Done,
    Extend,
    Get,
    KeyOperation,
    Keys,
    Put,
    Read,
    Register,
    RegisterOperation,
    Text,
    Value,
    Write,
)

RECORDED = Path(__file__).parents[3] / "shared" / "data" / "linearizability_histories.jsonl"

# --- Recorded ---------------------------------------------------------------------------------------------------------


def recorded() -> list[Any]:
    if not RECORDED.exists():
        reason = pytest.mark.skip(reason="data set is not shipped")
        return [pytest.param({}, id="recorded", marks=reason)]
    histories = [json.loads(line) for line in RECORDED.read_bytes().splitlines()]
    return [pytest.param(history, id=history["history"]) for history in histories]


@pytest.mark.parametrize("history", recorded())
def test_a_recorded_history_gets_its_known_verdict(history: dict[str, Any]) -> None:
    assert verdict(history) is history["linearizable"]


def verdict(history: dict[str, Any]) -> bool:
    if history["model"].startswith("cas"):
        return is_linearizable(register_operations(history["events"]), Register())
    return is_linearizable(key_operations(history["events"]), Keys())


def ends(events: Sequence[Any]) -> Iterator[tuple[int, Any, int | None, Any]]:
    """Each call: when it was made and what it was, when it ended and how (None for what nobody knows)."""
    calls: dict[int, tuple[int, Any]] = {}
    for time, event in enumerate(events):
        if event[1] == "invoke":
            calls[event[0]] = time, event
        elif event[1] == "info":
            yield *calls.pop(event[0]), None, None
        else:
            yield *calls.pop(event[0]), time, event
    for time, event in calls.values():
        yield time, event, None, None


def register_operations(events: Sequence[Any]) -> Iterator[RegisterOperation]:
    for invoked_at, (process, _, name, value), returned_at, end in ends(events):
        call = Read() if name == "read" else Write(value) if name == "write" else Cas(*value)
        result: Value | Done | None = None
        if end is not None:
            if name == "read" and end[1] == "fail":
                continue  # nothing is known of it, and it changes nothing
            result = Value(end[3]) if name == "read" else Done(end[1] == "ok")
        yield Operation(process=str(process), call=call, invoked_at=invoked_at, returned_at=returned_at, result=result)


def key_operations(events: Sequence[Any]) -> Iterator[KeyOperation]:
    for invoked_at, (process, _, name, pair), returned_at, end in ends(events):
        key, value = pair["key"], pair["value"]
        call = Get(key) if name == "get" else Put(key, value) if name == "put" else Extend(key, value)
        result = None if end is None else Text(end[3]["value"]) if name == "get" else Text()
        yield Operation(process=str(process), call=call, invoked_at=invoked_at, returned_at=returned_at, result=result)


# The examples of porcupine_test.go (porcupine, Anish Athalye, MIT licence; commit 55508eb), where the register is 0 at
# first: each operation with when it was made, what it found, and when it returned.
EXAMPLES = [
    (True, [(Write(100), 0, Done(), 100), (Read(), 25, Value(100), 75), (Read(), 30, Value(0), 60)]),
    (False, [(Write(200), 0, Done(), 100), (Read(), 10, Value(200), 30), (Read(), 40, Value(0), 90)]),
    (
        True,
        [
            (Write(100), 0, Done(), 100),
            (Read(), 25, Value(100), 75),
            (Read(), 30, Value(0), 30),
            (Read(), 30, Value(0), 30),
        ],
    ),
    (
        False,
        [
            (Write(200), 0, Done(), 100),
            (Read(), 10, Value(200), 10),
            (Read(), 10, Value(200), 10),
            (Read(), 40, Value(0), 90),
        ],
    ),
]


@pytest.mark.parametrize(("verdict", "example"), EXAMPLES)
def test_an_example_gets_its_known_verdict(verdict: bool, example: Sequence[Any]) -> None:
    history = [register_operation(call, *rest) for call, *rest in [(Write(0), -2, Done(), -1), *example]]
    assert is_linearizable(history, Register()) is verdict


def register_operation(
    call: Read | Write | Cas, invoked_at: int, result: Value | Done | None, returned_at: int | None
) -> RegisterOperation:
    return Operation(process="any", call=call, invoked_at=invoked_at, returned_at=returned_at, result=result)


# --- Made -------------------------------------------------------------------------------------------------------------

MOMENTS = st.integers(0, 12)
SPANS = st.integers(0, 5)


@st.composite
def register_histories(draw: st.DrawFn) -> list[RegisterOperation]:
    """Anything at all, true or not."""
    history = []
    for _ in range(draw(st.integers(1, 5))):
        first, last = sorted((draw(MOMENTS), draw(MOMENTS)))
        values = st.integers(1, 2)
        call = draw(st.builds(Read) | st.builds(Write, values) | st.builds(Cas, values, values))
        results: st.SearchStrategy[Value | Done] = st.builds(Done, st.booleans())
        if isinstance(call, Read):
            results = st.builds(Value, st.none() | values)
        result = draw(st.none() | results)
        history.append(
            register_operation(call, first, result, None if result is None and draw(st.booleans()) else last)
        )
    return history


@given(register_histories())
def test_the_search_finds_an_order_exactly_where_trying_all_of_them_does(history: list[RegisterOperation]) -> None:
    assert is_linearizable(history, Register()) is has_order(history, Register())


@st.composite
def key_histories(draw: st.DrawFn) -> list[KeyOperation]:
    """What clients of one true object may have seen: it answers in this order, each somewhere in its interval."""
    texts: dict[str, str] = {}
    history: list[KeyOperation] = []
    for moment in range(draw(st.integers(5, 40))):
        key, process = draw(st.sampled_from("ab")), str(moment)
        calls: list[Get | Put | Extend] = [Get(key), Put(key, f"{moment}."), Extend(key, f"{moment}.")]
        call = draw(st.sampled_from(calls))
        match call:
            case Get():
                pass
            case Put(_, value):
                texts[key] = value
            case Extend(_, value):
                texts[key] = texts.get(key, "") + value
        result = Text(texts.get(key, "")) if isinstance(call, Get) else Text()
        first, last = moment - draw(SPANS), moment + draw(SPANS)
        is_known = draw(st.integers(0, 9)) > 0
        history.append(
            Operation(
                process=process,
                call=call,
                invoked_at=first,
                returned_at=last if is_known or draw(st.booleans()) else None,
                result=result if is_known else None,
            )
        )
    return history


@given(key_histories())
def test_what_a_true_object_answered_is_accepted(history: list[KeyOperation]) -> None:
    assert is_linearizable(history, Keys())


@given(key_histories(), st.data())
def test_a_write_that_shows_twice_is_rejected(history: list[KeyOperation], data: st.DataObject) -> None:
    texts = [
        index for index, one in enumerate(history) if isinstance(one.call, Get) and one.result not in (None, Text())
    ]
    if not texts:
        return
    index = data.draw(st.sampled_from(texts))
    seen = history[index]
    assert seen.result is not None
    values = seen.result.text.split(".")[:-1]
    last = values.pop()
    doubled = "".join(f"{value}." for value in [*values, last, last])
    history[index] = msgspec.structs.replace(seen, result=Text(doubled))
    assert not is_linearizable(history, Keys())


@given(key_histories(), st.data())
def test_a_failure_is_cut_to_where_it_shows(history: list[KeyOperation], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from("ab"))
    moment = data.draw(st.integers(0, len(history)))
    wrong: KeyOperation = Operation(
        process="wrong", call=Get(key), invoked_at=moment, returned_at=moment, result=Text("never written")
    )
    failure = shortest_failure([*history, wrong], Keys())
    assert wrong in failure
    assert find_order(failure, Keys()) is None
    assert all(one.invoked_at <= moment and one.call.key == key for one in failure)
    assert find_order(list(beginning(failure, moment - 1)), Keys()) is not None
