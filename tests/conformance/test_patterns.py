"""What is asked and what must come: names, repetitions and patterns as proto/vectors/README.md says them."""

from typing import Any

import pytest

from engram_bus.conformance.patterns import (
    UNTOLD,
    Mismatch,
    NotKnown,
    NotTold,
    Variable,
    expanded,
    match,
    shown,
    substitute,
)

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
KNOWN = {"new": "n1", "seq": 7, "unit": {"a": 1, "b": "two"}, "said": Variable({"context_id": "${new}", "b": 2})}

SUBSTITUTED: dict[str, tuple[Any, Any]] = {
    "a name is its value": ("$seq", 7),
    "in a text it is text": ("${new}/${seq}", "n1/7"),
    "alone in a text it is its value": ("${seq}", 7),
    "the number that follows": ("${seq+1}", 8),
    "the one before": ("${seq-1}", 6),
    "in a text that number": ("e.${seq+1}", "e.8"),
    "in lists and maps": ({"a": ["$seq", {"b": "${new}"}]}, {"a": [7, {"b": "n1"}]}),
    "in keys": ({"${new}": 1}, {"n1": 1}),
    "what is no name stays": ("$ 5, ${NEW}", "$ 5, ${NEW}"),
    "what is absent is left out": ({"a": "<absent>", "b": 1}, {"b": 1}),
    "a text is repeated": ({"repeat": "ab", "times": 3}, "ababab"),
    "names in it are replaced": ({"repeat": "${new}", "times": 2}, "n1n1"),
    "a text counts": ({"repeat": "${n},", "times": 3}, "0,1,2,"),
    "a list is repeated": ({"repeat": ["${n}", "x"], "times": 2}, [0, "x", 1, "x"]),
    "a map is repeated": ({"repeat": {"k${n+1}": "v"}, "times": 2}, {"k1": "v", "k2": "v"}),
    "as often as a name says": ({"repeat": "x", "times": "$seq"}, "x" * 7),
    "a map is put beside": ({"b": 1, "...": "$unit", "c": 3}, {"a": 1, "b": "two", "c": 3}),
    "a variable is read where it is used": ("$said", {"context_id": "n1", "b": 2}),
    "a variable is put beside": ({"...": "$said", "b": 3}, {"context_id": "n1", "b": 3}),
    "numbers, truth and nothing are themselves": ([1, 1.5, True, None], [1, 1.5, True, None]),
}


@pytest.mark.parametrize(("said", "sent"), SUBSTITUTED.values(), ids=SUBSTITUTED)
def test_a_request_is_sent_with_what_its_names_stand_for(said: Any, sent: Any) -> None:
    assert substitute(said, KNOWN) == sent


def test_a_variable_put_beside_takes_out_what_it_says_is_absent() -> None:
    known = {"less": Variable({"kind": "<absent>"})}
    assert substitute({"kind": "x", "payload": "y", "...": "$less"}, known) == {"payload": "y"}


def test_a_name_that_is_not_known_is_told() -> None:
    with pytest.raises(NotKnown, match="nobody is not known here; what is: new, said, seq, unit"):
        substitute("${nobody}", KNOWN)
    with pytest.raises(NotKnown):
        match("at ${nobody}", "at home", KNOWN)


def test_what_was_not_told_cannot_be_said() -> None:
    with pytest.raises(NotTold):
        substitute("$seq", {"seq": UNTOLD})


def test_what_cannot_be_repeated_is_a_mistake() -> None:
    with pytest.raises(TypeError, match="cannot be repeated"):
        expanded({"repeat": 7, "times": 2}, {})


MATCHES: dict[str, tuple[Any, Any]] = {
    "the same": ({"a": [1, "x", None, True]}, {"a": [1, "x", None, True]}),
    "more than is named": ({"a": 1}, {"a": 1, "b": 2}),
    "one is 1.0": (1, 1.0),
    "nothing is nothing": ({"a": None}, {}),
    "absent": ({"a": "<absent>"}, {}),
    "absent, and null": ({"a": "<absent>"}, {"a": None}),
    "anything": (["<any>", "<any>"], [{}, None]),
    "kinds": (["<text>", "<integer>", "<number>", "<number>", "<boolean>"], ["x", 1, 1, 1.5, False]),
    "forms": (["<id>", "<time>", "<cursor>"], [ID, "2026-01-31T12:00:00.000000Z", "e1.5"]),
    "one of": ({"one_of": ["a", "<integer>"]}, 5),
    "in a text": ({"contains": "${seq}"}, "at 7 of 9"),
    "in a list": ({"contains": {"a": 1}}, [{"a": 2}, {"a": 1, "b": 1}]),
    "all of these in a list": ({"contains": ["b", "a"]}, ["a", "b", "c"]),
    "at least": ({"at_least": "${seq+1}"}, 8),
    "a name that is known": ("$seq", 7),
    "a map that is known": ("$unit", {"b": "two", "a": 1}),
    "a list that is known": ("$list", ["a", 1]),
    "a variable, as a pattern": ("$pattern", {"id": ID, "more": 1}),
    "a variable put beside": ({"...": "$pattern", "more": 1}, {"id": ID, "more": 1}),
    "a repetition": ({"repeat": [{"n": "${n}"}], "times": 2}, [{"n": 0, "more": 1}, {"n": 1}]),
    "what was not told": ({"a": "$anything", "b": 5}, {"a": UNTOLD, "b": UNTOLD}),
}
MATCHED_WITH = {**KNOWN, "list": ["a", 1], "pattern": Variable({"id": "<id>"})}


@pytest.mark.parametrize(("pattern", "came"), MATCHES.values(), ids=MATCHES)
def test_what_is_expected_matches(pattern: Any, came: Any) -> None:
    match(pattern, came, MATCHED_WITH)


MISMATCHES: dict[str, tuple[Any, Any, str]] = {
    "another value": ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, "a.b[1]"),
    "nothing at all": ({"a": 1}, {}, "a"),
    "truth is no number": (1, True, ""),
    "a number is no truth": (True, 1, ""),
    "more items": (["x"], ["x", "y"], ""),
    "no list": (["x"], "x", ""),
    "no map": ({"a": 1}, [1], ""),
    "not absent": ({"a": "<absent>"}, {"a": 0}, "a"),
    "truth is no integer": ("<integer>", True, ""),
    "no UUIDv7": ("<id>", ID.replace("-774b", "-474b"), ""),
    "no microseconds": ("<time>", "2026-01-31T12:00:00Z", ""),
    "none of these": ({"one_of": ["a", "b"]}, "c", ""),
    "not in the text": ({"contains": "x"}, "abc", ""),
    "not in the list": ({"contains": ["a", "x"]}, ["a", "b"], ""),
    "in neither text nor list": ({"contains": "a"}, 5, ""),
    "less": ({"at_least": 5}, 4, ""),
    "no number": ({"at_least": 5}, "6", ""),
    "another than the name": ({"a": "$seq"}, {"a": 8}, "a"),
    "another map than the name": ("$unit", {"a": 1}, ""),
    "nothing to bind": ({"a": "$fresh"}, {}, "a"),
    "null is not zero": (None, 0, ""),
}


@pytest.mark.parametrize(("pattern", "came", "where"), MISMATCHES.values(), ids=MISMATCHES)
def test_what_is_not_expected_is_told_with_its_place(pattern: Any, came: Any, where: str) -> None:
    with pytest.raises(Mismatch) as told:
        match(pattern, came, MATCHED_WITH)
    assert told.value.where == where


def test_a_name_is_bound_by_what_it_meets_and_then_the_same() -> None:
    known = match({"seq": "$first", "more": [{"id": "$id"}]}, {"seq": 1, "more": [{"id": "x"}]}, {"new": "n1"})
    assert known == {"new": "n1", "first": 1, "id": "x"}
    assert match("$first", 1, known) == known
    with pytest.raises(Mismatch):
        match("$first", 2, known)


def test_what_does_not_match_in_the_end_binds_nothing() -> None:
    choices = {"one_of": [{"a": "$x", "b": 2}, {"a": "$y"}]}
    assert match(choices, {"a": 1, "b": 1}, {}) == {"y": 1}
    assert match({"contains": {"a": "$x", "b": 2}}, [{"a": 1, "b": 1}, {"a": 3, "b": 2}], {}) == {"x": 3}


def test_a_name_in_a_repetition_is_bound_by_the_first_and_met_by_the_rest() -> None:
    pattern = {"repeat": [{"lock_id": "$lock"}], "times": 2}
    assert match(pattern, [{"lock_id": "x"}, {"lock_id": "x"}], {}) == {"lock": "x"}
    with pytest.raises(Mismatch):
        match(pattern, [{"lock_id": "x"}, {"lock_id": "y"}], {})


def test_a_name_that_met_what_was_not_told_is_bound_by_what_it_meets_next() -> None:
    known = match({"seq": "$seq"}, {"seq": UNTOLD}, {})
    assert match("$seq", 5, known) == {"seq": 5}


def test_what_came_is_never_read_as_a_pattern() -> None:
    known = match({"payload": "$payload"}, {"payload": "<any>"}, {})
    with pytest.raises(Mismatch):
        match("$payload", "something else", known)


def test_what_is_no_repetition_is_expanded_to_itself() -> None:
    assert expanded([{"repeat": "x", "times": 2}], {}) == [{"repeat": "x", "times": 2}]


def test_values_are_shown_in_short() -> None:
    assert len(shown("x" * 10_000)) < 700
    assert shown({"a": UNTOLD, "b": Variable("${new}")}) == "{'a': (not told), 'b': '${new}'}"
