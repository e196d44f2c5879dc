"""What of a unit is searched."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.projections.search.analysis import normal
from engram_bus.projections.search.documents import (
    GLANCE_BYTES,
    PAIR_UNITS,
    PAIR_WORDS_MAX,
    glance_of,
    is_searched,
    line_of,
    meaning_of,
    parts_of,
    text_of,
    together,
)
from engram_bus.units import FORMAT_BYTES, FORMAT_JSON, FORMAT_TEXT, WorkUnit
from tests.values import JSON_VALUES, unit, units


def said(payload: bytes, content_type: str = FORMAT_TEXT, **fields: object) -> WorkUnit:
    plain = unit(payload=payload)
    known = {name: getattr(plain, name) for name in plain.__struct_fields__}
    return WorkUnit(**{**known, "content_type": content_type, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("payload", "content_type", "text"),
    [
        (b"hello", FORMAT_TEXT, "hello"),
        (b"# hi", "text/markdown", "# hi"),
        ("né".encode(), "Text/Plain; charset=UTF-8", "né"),
        (b"a\0b", FORMAT_TEXT, "a b"),
        (b"\0\0\0", FORMAT_TEXT, "   "),
        (b"caf\xe9", FORMAT_TEXT, "caf\ufffd"),
        (b"hello", FORMAT_BYTES, ""),
        (b"hello", "image/png", ""),
        (b"hello", "text/plain; charset=latin-1", ""),
        (b'"hello"', FORMAT_JSON, "hello"),
        (b'{"error": "not found", "code": 404}', FORMAT_JSON, "error\nnot found\ncode\n404"),
        (b'{"a": [1, 2.5, true, null, {"b": "c"}]}', "application/vnd.x+json; v=1", "a\n1\n2.5\ntrue\nb\nc"),
        (b'"\\u0000"', FORMAT_JSON, " "),
        (b"\0\0", FORMAT_JSON, ""),
        (b"{", FORMAT_JSON, ""),
        (b"\xff", FORMAT_JSON, ""),
        (b"", FORMAT_JSON, ""),
        (b"[" * 100_000, FORMAT_JSON, ""),
        (b"[" + b"1" * 5_000 + b"]", FORMAT_JSON, ""),
        (b"[" * 400 + b'"deep"' + b"]" * 400, FORMAT_JSON, "deep"),
    ],
)
def test_a_payload_is_searched_by_what_it_says(payload: bytes, content_type: str, text: str) -> None:
    assert text_of(said(payload, content_type)) == text


def leaves(value: object) -> list[str]:
    match value:
        case dict():
            return [one for key, inner in value.items() for one in (key, *leaves(inner))]
        case list():
            return [one for inner in value for one in leaves(inner)]
        case None:
            return []
        case bool():
            return [str(value).lower()]
        case _:
            return [str(value)]


@given(JSON_VALUES)
def test_json_is_searched_by_its_values(value: object) -> None:
    text = text_of(said(json.dumps(value).encode(), FORMAT_JSON))
    assert text == "\n".join(leaves(json.loads(json.dumps(value)))).replace("\0", " ")


@given(units())
def test_any_unit_has_a_text_without_nul_and_a_line_that_holds_it(unit: WorkUnit) -> None:
    text = text_of(unit)
    assert "\0" not in text
    assert line_of(unit, text).endswith(normal(text))
    assert parts_of(unit, text)[-1] == normal(text)
    for part in parts_of(unit, text):
        assert part.strip() in line_of(unit, text)


@pytest.mark.parametrize("content_type", [FORMAT_TEXT, FORMAT_JSON, FORMAT_BYTES])
def test_a_glance_is_the_beginning(content_type: str) -> None:
    short, long = b'["some thing"]', b'["' + b"some\0thing " * 10_000 + b'"]'
    assert glance_of(said(short, content_type)) == text_of(said(short, content_type))
    begun = long[:GLANCE_BYTES].decode().replace("\0", " ")
    assert glance_of(said(long, content_type)) == ("" if content_type == FORMAT_BYTES else begun)


def test_a_line_says_who_and_about_what() -> None:
    bare = said(b"hi")
    assert line_of(bare, "hi") == "ann: hi"
    about = said(b"hi", kind="build.failed", meta={"run": "7"}, resources=["src/a.py"])
    assert line_of(about, "hi") == "ann (build.failed 7 src/a.py): hi"
    assert parts_of(about, "hi") == ["ann", "build.failed", "7", "src/a.py", "hi"]


@pytest.mark.parametrize("text", ["", " \n", "?!", "---"])
def test_a_line_that_says_nothing_stands_alone(text: str) -> None:
    assert together(f"ann: {text}", ["bob: the parser"], text=text) == [f"ann: {text}"]


@pytest.mark.parametrize("text", ["ok", "the", "7", "\U0001f44d", "日"])
def test_little_that_is_said_answers_something(text: str) -> None:
    assert together(f"ann: {text}", ["bob: the parser?"], text=text) == ["bob: the parser?", f"ann: {text}"]


def test_an_agent_alone_means_nothing() -> None:
    assert meaning_of(said(b""), "", line="ann: ") == ""
    assert meaning_of(said(b"hi"), "hi", line="ann: hi") == "ann: hi"
    for about in (said(b"", kind="done"), said(b"", meta={"run": "7"}), said(b"", resources=["src/a.py"])):
        assert meaning_of(about, "", line=line_of(about, "")) == line_of(about, "") != ""


def test_what_the_bus_says_of_itself_is_not_searched() -> None:
    assert not is_searched(unit(kind="lock.granted"))
    assert not is_searched(unit(kind="context.created"))
    assert is_searched(unit(kind="locker.full"))
    assert is_searched(unit())


@given(st.lists(st.integers(1, PAIR_WORDS_MAX), max_size=5), st.integers(1, 2 * PAIR_WORDS_MAX))
def test_lines_stand_together_while_all_are_short(before: list[int], own: int) -> None:
    lines = [f"l{number} " + "w " * (count - 1) for number, count in enumerate(before)]
    line = "own " * own
    kept = together(line, lines, text=line)
    assert kept[-1] == line
    count = len(kept) - 1
    assert kept[:-1] == lines[len(lines) - count :]
    assert count <= PAIR_UNITS
    assert count == 0 or sum(before[len(before) - count :]) + own <= PAIR_WORDS_MAX
    if count < min(PAIR_UNITS, len(before)):
        assert sum(before[len(before) - count - 1 :]) + own > PAIR_WORDS_MAX


def test_a_long_text_without_spaces_is_long() -> None:
    assert together("short", ["日本語" * 200], text="short") == ["short"]
    assert together("日本語" * 200, ["short"], text="日本語") == ["日本語" * 200]
