"""What is said and what must come, with names for what only the bus knows: substitute, match, bind. Pure.

The language is described in proto/vectors/README.md.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

Known = Mapping[str, Any]
"""What names stand for."""


class Untold:
    """In an answer: what this way of asking does not tell (a client's method that answers less than the wire says). It
    matches whatever is expected; a name that it is bound to is bound again by what it meets next."""

    def __repr__(self) -> str:
        return "(not told)"


UNTOLD: Final = Untold()


class Mismatch(Exception):
    """What came is not what must come; `where` is the place in the answer."""

    def __init__(self, where: str, expected: object, came: object) -> None:
        super().__init__(f"at {where or 'the answer'}: expected {shown(expected)}, came {shown(came)}")
        self.where = where
        self.expected = expected
        self.came = came


class NotKnown(Exception):
    """A request or a pattern uses a name that nothing was bound to."""


class NotTold(NotKnown):
    """A request uses a name that is bound to what was not told."""


class Variable:
    """A value as an exchange says it (`each`): in a request it is substituted, in a pattern it is one itself."""

    def __init__(self, said: Any) -> None:
        self.said = said

    def __repr__(self) -> str:
        return shown(self.said)


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT: Final = _Absent()
_NOTHING = "<absent>"
_NAME = re.compile(r"\$([a-z][a-z0-9_]*)")
_ALONE = re.compile(r"\$\{([a-z][a-z0-9_]*)([+-][0-9]+)?\}")
_COUNT = re.compile(r"\$\{n([+-][0-9]+)?\}")
_SPREAD = "..."
_SHOWN_MAX = 600
_KINDS: Final[dict[str, tuple[type, ...]]] = {
    "<text>": (str,),
    "<integer>": (int,),
    "<number>": (int, float),
    "<boolean>": (bool,),
}
_FORMS: Final = {
    "<id>": re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"),
    "<time>": re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z"),
    "<cursor>": re.compile(r"[^.\s]+\.[0-9]+"),
}


def shown(value: object) -> str:
    """A value on one line, however large it is."""
    text = repr(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX // 2]} ... {text[-_SHOWN_MAX // 2 :]}"


# --- Substitute ------------------------------------------------------------------------------------------------------


def substitute(said: Any, known: Known) -> Any:
    """A request as it is sent: names replaced, repetitions made, what is `<absent>` left out. Raises NotKnown."""
    match said:
        case str():
            return _of_text(said, known)
        case list():
            return [substitute(item, known) for item in said]
        case {"repeat": _, "times": _, **rest} if not rest:
            return substitute(expanded(said, known), known)
        case dict():
            return _of_map(said, known)
        case _:
            return said


def _of_text(text: str, known: Known) -> Any:
    if (name := _NAME.fullmatch(text)) is not None:
        return _look_up(name[1], known)
    if (alone := _ALONE.fullmatch(text)) is not None:
        return _value(alone, known)
    return _ALONE.sub(lambda found: str(_value(found, known)), text)


def _of_map(said: dict[str, Any], known: Known) -> dict[str, Any]:
    return {key: value for key, value in _fields(said, known).items() if value != _NOTHING}


def _fields(said: dict[str, Any], known: Known) -> dict[str, Any]:
    """The same with what is `<absent>`, which takes the place of what was said of it before."""
    fields: dict[str, Any] = {}
    for key, value in said.items():
        if key == _SPREAD:
            fields |= _fields(_held(value, known), known)
        else:
            fields[str(_of_text(key, known))] = substitute(value, known)
    return fields


def _held(value: Any, known: Known) -> Any:
    """What a name holds, as an exchange says it."""
    held = known.get(name[1]) if isinstance(value, str) and (name := _NAME.fullmatch(value)) is not None else value
    return held.said if isinstance(held, Variable) else substitute(value, known)


def expanded(said: Any, known: Known) -> Any:
    """What a repetition stands for: a text, a list or a map joined to itself, in which `${n}` counts; else itself."""
    match said:
        case {"repeat": str(text), "times": times, **rest} if not rest and not _COUNT.search(text):
            return text * int(substitute(times, known))  # of a million letters, say
        case {"repeat": repeated, "times": times, **rest} if not rest:
            return _joined([_counted(repeated, n) for n in range(int(substitute(times, known)))], repeated)
        case _:
            return said


def _joined(parts: list[Any], repeated: Any) -> Any:
    match repeated:
        case str():
            return "".join(map(str, parts))
        case list():
            return [item for part in parts for item in part]
        case dict():
            return {key: value for part in parts for key, value in part.items()}
        case _:
            raise TypeError(f"{shown(repeated)} is neither text, list nor map: it cannot be repeated")


def _counted(said: Any, n: int) -> Any:
    match said:
        case str() if (alone := _COUNT.fullmatch(said)) is not None:
            return n + int(alone[1] or 0)
        case str():
            return _COUNT.sub(lambda found: str(n + int(found[1] or 0)), said)
        case list():
            return [_counted(item, n) for item in said]
        case dict():
            return {_counted(key, n): _counted(value, n) for key, value in said.items()}
        case _:
            return said


def _value(found: re.Match[str], known: Known) -> Any:
    value = _look_up(found[1], known)
    return value if found[2] is None else int(value) + int(found[2])


def _look_up(name: str, known: Known) -> Any:
    if name not in known:
        raise NotKnown(f"${name} is not known here; what is: {', '.join(sorted(known))}")
    match known[name]:
        case Untold():
            raise NotTold(f"${name} is what was not told")
        case Variable(said=said):
            return substitute(said, known)
        case value:
            return value


# --- Match -----------------------------------------------------------------------------------------------------------


def match(pattern: Any, came: Any, known: Known) -> dict[str, Any]:
    """What is known afterwards: what was, and the names that met their value. Raises Mismatch, NotKnown."""
    bound = dict(known)
    _match(pattern, came, bound, "")
    return bound


def _match(pattern: Any, came: Any, bound: dict[str, Any], where: str) -> None:
    if isinstance(came, Untold):
        _bind_untold(pattern, bound)
        return
    match pattern:
        case "<any>":
            pass
        case None:
            _demand(came is None or came is _ABSENT, where, pattern, came)
        case str():
            _match_text(pattern, came, bound, where)
        case list():
            _match_list(pattern, came, bound, where)
        case {"repeat": _, "times": _, **rest} if not rest:
            _match(expanded(pattern, bound), came, bound, where)
        case {"one_of": list(choices), **rest} if not rest:
            _match_one_of(choices, came, bound, where)
        case {"contains": wanted, **rest} if not rest:
            _match_contains(wanted, came, bound, where)
        case {"at_least": least, **rest} if not rest:
            least = substitute(least, bound)
            _demand(_is_number(came) and came >= least, where, f"at least {least}", came)
        case dict():
            _match_map(pattern, came, bound, where)
        case _:
            _demand(_same(pattern, came), where, pattern, came)


def _bind_untold(pattern: Any, bound: dict[str, Any]) -> None:
    if isinstance(pattern, str) and (name := _NAME.fullmatch(pattern)) is not None:
        bound.setdefault(name[1], UNTOLD)


def _match_text(pattern: str, came: Any, bound: dict[str, Any], where: str) -> None:
    name = _NAME.fullmatch(pattern)
    if name is not None and isinstance(bound.get(name[1], UNTOLD), Untold):
        _demand(came is not _ABSENT, where, pattern, came)
        bound[name[1]] = came
    elif name is not None and isinstance(variable := bound[name[1]], Variable):
        _match(variable.said, came, bound, where)
    elif pattern == _NOTHING:
        _demand(came is None or came is _ABSENT, where, pattern, came)
    elif pattern in _KINDS:
        is_kind = isinstance(came, _KINDS[pattern]) and (pattern == "<boolean>" or not isinstance(came, bool))
        _demand(is_kind, where, pattern, came)
    elif pattern in _FORMS:
        _demand(isinstance(came, str) and _FORMS[pattern].fullmatch(came) is not None, where, pattern, came)
    else:
        expected = _of_text(pattern, bound)
        _demand(_same(expected, came), where, expected, came)


def _match_list(pattern: list[Any], came: Any, bound: dict[str, Any], where: str) -> None:
    _demand(isinstance(came, list | tuple), where, pattern, came)
    _demand(len(came) == len(pattern), where, f"{len(pattern)} items: {shown(pattern)}", came)
    for index, (expected, item) in enumerate(zip(pattern, came, strict=True)):
        _match(expected, item, bound, f"{where}[{index}]")


def _match_map(pattern: dict[str, Any], came: Any, bound: dict[str, Any], where: str) -> None:
    _demand(isinstance(came, Mapping), where, pattern, came)
    for key, expected in pattern.items():
        if key == _SPREAD:
            _match(expected, came, bound, where)
        else:
            name = str(_of_text(key, bound))
            _match(expected, came.get(name, _ABSENT), bound, f"{where}.{name}" if where else name)


def _match_one_of(choices: list[Any], came: Any, bound: dict[str, Any], where: str) -> None:
    for choice in choices:
        tried = dict(bound)
        try:
            _match(choice, came, tried, where)
        except Mismatch:
            continue
        bound |= tried
        return
    raise Mismatch(where, f"one of {shown(choices)}", came)


def _match_contains(wanted: Any, came: Any, bound: dict[str, Any], where: str) -> None:
    """A text with this in it, or a list with one that matches; a list of what is wanted: with each of them."""
    if isinstance(came, str):
        part = str(substitute(wanted, bound))
        _demand(part in came, where, f"a text with {part!r} in it", came)
        return
    _demand(isinstance(came, list | tuple), where, f"a list or text with {shown(wanted)} in it", came)
    for each in wanted if isinstance(wanted, list) else [wanted]:
        try:
            _match_one_item(each, came, bound, where)
        except Mismatch as exc:
            raise Mismatch(where, f"{shown(each)} in it", came) from exc


def _match_one_item(wanted: Any, came: list[Any] | tuple[Any, ...], bound: dict[str, Any], where: str) -> None:
    for item in came:
        tried = dict(bound)
        try:
            _match(wanted, item, tried, where)
        except Mismatch:
            continue
        bound |= tried
        return
    raise Mismatch(where, wanted, came)


def _same(expected: Any, came: Any) -> bool:
    """Equal, and of one kind: 1 is not true, and 1.0 is 1 (JSON has one kind of number)."""
    if isinstance(expected, bool) or isinstance(came, bool):
        return expected is came
    match expected:
        case list() | tuple():
            return isinstance(came, list | tuple) and len(came) == len(expected) and all(map(_same, expected, came))
        case dict():
            return (
                isinstance(came, dict)
                and came.keys() == expected.keys()
                and all(_same(value, came[key]) for key, value in expected.items())
            )
        case _:
            return bool(expected == came)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _demand(is_so: bool, where: str, expected: object, came: object) -> None:
    if not is_so:
        raise Mismatch(where, expected, came)
