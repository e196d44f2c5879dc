"""What of a unit is searched: its text for words, for names, and for its meaning."""

from collections.abc import Iterator
from typing import Any

import msgspec

from engram_bus.projections.search.analysis import normal, says_anything, words
from engram_bus.units import WorkUnit, is_json, is_own_kind, is_text

PAIR_WORDS_MAX = 200
"""A unit is indexed together with the units before it while all together stay below this: turns of a dialogue are found
by what they answer, long documents would only blur."""
PAIR_UNITS = 2

GLANCE_BYTES = 32 * 1024
"""Of a payload: what is shown of a hit, or compared with others, is at its beginning. A page may hold 200 of a MiB."""

_decode_json = msgspec.json.Decoder().decode


def is_searched(unit: WorkUnit) -> bool:
    """What the bus says of itself (locks, joins) is looked up, not searched."""
    return not is_own_kind(unit.kind)


def text_of(unit: WorkUnit) -> str:
    """The payload as text: of JSON its values, of other bytes nothing."""
    return _said(unit).replace("\0", " ")


def _said(unit: WorkUnit) -> str:
    if is_text(unit.content_type):
        return unit.payload.decode("utf-8", "replace")
    if is_json(unit.content_type):
        try:
            return "\n".join(_values(_decode_json(unit.payload)))
        except (msgspec.DecodeError, ValueError, RecursionError):
            return ""
    return ""


def glance_of(unit: WorkUnit) -> str:
    """The beginning of the text; of large JSON as it is written."""
    if len(unit.payload) <= GLANCE_BYTES:
        return text_of(unit)
    is_said = is_text(unit.content_type) or is_json(unit.content_type)
    return unit.payload[:GLANCE_BYTES].decode("utf-8", "replace").replace("\0", " ") if is_said else ""


def line_of(unit: WorkUnit, text: str) -> str:
    """The text with who said it, what it is and what it touches: what keywords are looked for in."""
    agent, *about, said = parts_of(unit, text)
    what = " ".join(about).strip()
    return f"{agent} ({what}): {said}" if what else f"{agent}: {said}"


def meaning_of(unit: WorkUnit, text: str, *, line: str) -> str:
    """What is embedded: the line, but nothing where only the agent's name stands in it."""
    return line if any(map(says_anything, (text, unit.kind or "", *unit.meta.values(), *unit.resources))) else ""


def parts_of(unit: WorkUnit, text: str) -> list[str]:
    """The same in parts: a phrase stands in one of them."""
    return [normal(part) for part in (unit.agent_id, unit.kind or "", *unit.meta.values(), *unit.resources, text)]


def together(line: str, before: list[str], *, text: str) -> list[str]:
    """A line after those that come before it in its context (oldest first), as far as all stay short. One whose text
    says nothing answers nothing, and stands alone."""
    if not says_anything(text):
        return [line]
    count, kept = _word_count(line), [line]
    for earlier in reversed(before[-PAIR_UNITS:]):
        count += _word_count(earlier)
        if count > PAIR_WORDS_MAX:
            break
        kept.append(earlier)
    return kept[::-1]


def _word_count(line: str) -> int:
    """As far as it matters."""
    return len(words(line).split(None, PAIR_WORDS_MAX + 1))


def _values(value: Any) -> Iterator[str]:
    """Every value in a JSON value, in order; of an object the keys too, for they name what the values are."""
    match value:
        case dict():
            for key, inner in value.items():
                yield str(key)
                yield from _values(inner)
        case list():
            for inner in value:
                yield from _values(inner)
        case str():
            yield value
        case None:
            return
        case bool():
            yield "true" if value else "false"
        case _:
            yield str(value)
