"""What a text is found by: its words in any script, and its identifiers whole and by their parts."""

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from unicodedata import normalize

# Scripts written without spaces: every two neighbouring characters are a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\U00020000-\U0002ffff"
)
UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+")
_AROUND = ".,;:!?()[]{}<>\"'`*=+|~&%$^"
"""What stands around a name without being of it."""
_AROUND_PATH = f"{_AROUND}/"
_LINE = re.compile(r"(?::\d+)+$")
_SEPARATORS = re.compile(r"[^\w]+")
# In any script: `\w` of re knows letters, digits and _, but not which of them are capitals.
_PART = re.compile(r"[^\W\d_]+|\d+")
_ASCII_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_SIGNS = "\u20a0-\u20cf\u2190-\u22ff\u2600-\u27bf\U0001f000-\U0001faff"
_SIGN = re.compile(f"[{_SIGNS}]")
"""Currencies, arrows, signs of mathematics and pictures: they are looked for by themselves."""
_SAYING = re.compile(f"[\\w{_SIGNS}]")
NAME_CHARACTERS_MAX = 128
"""Longer runs are data, not names."""
_STARTING = re.compile(r'(?<!\S)([^\s"*]{2,})\*(?!\S)')
_START_CHARACTERS_MIN = 2
"""Shorter beginnings are those of everything."""
_NAMES_KEPT = 32_768
"""What stands between spaces comes again and again: its names are remembered, about 10 MB of them."""


_ASKING = re.compile(
    r"\b(?:[Ww](?:ho|hom|hose|hat|hen|here|hich|hy|e)|[Hh](?:ow|e|im|is|er|ers)|I|[Mm](?:e|y|ine)|[Oo]urs?|"
    r"[Yy](?:ou|our|ours)|[Ss]he|[Ii]ts|[Tt]hem)\b"
)
"""Words that ask, and pronouns. Not in capitals: `WHO` is a name, and `us` may be one."""


def normal(text: str) -> str:
    """One way to write what can be written in several: composed characters, and none that only look wider or narrower
    (Unicode's form NFKC)."""
    return text if text.isascii() else normalize("NFKC", text)


def says_anything(text: str) -> bool:
    """Whether there is a word in a text, one that says little too, or a picture."""
    return _SAYING.search(text) is not None


def without_asking(text: str) -> str:
    """A query without the words that ask and the pronouns: they say nothing of what is looked for. What is in double
    quotes stays: it has to stand there."""
    parts = text.split('"')
    parts[::2] = [_ASKING.sub(" ", part) for part in parts[::2]]
    return '"'.join(parts)


def starts(text: str) -> tuple[list[str], str]:
    """What a query says only the beginning of, with a star behind it and outside of double quotes; and what it says
    besides. In scripts that have no spaces any part of what stands there is found without.

    >>> starts('who has "int *" and src/pars* or lock*?')
    (['src/pars'], 'who has "int *" and   or lock*?')
    """
    begun: list[str] = []

    def keep(found: re.Match[str]) -> str:
        start = found.group(1).strip(_AROUND)
        if len(start) < _START_CHARACTERS_MIN or UNSPACED_RUN.search(start):
            return found.group()
        begun.append(start)
        return " "

    parts = text.split('"')
    parts[::2] = [_STARTING.sub(keep, part) for part in parts[::2]]
    return begun, '"'.join(parts)


def words(text: str) -> str:
    """A text that is looked for: scripts that have no spaces are cut into overlapping pairs, so that any part of what
    stands there is found."""
    return text if text.isascii() else UNSPACED_RUN.sub(_pairs, text)


def indexed_words(text: str) -> str:
    """A text that is to be found: beside the pairs each character too, for who looks for one alone."""
    return text if text.isascii() else UNSPACED_RUN.sub(_pairs_and_characters, text)


def _pairs(match: re.Match[str]) -> str:
    run = match.group()
    if len(run) == 1:
        return f" {run} "
    return f" {' '.join(run[at : at + 2] for at in range(len(run) - 1))} "


def _pairs_and_characters(match: re.Match[str]) -> str:
    run = match.group()
    return _pairs(match) if len(run) == 1 else f"{_pairs(match)}{' '.join(run)} "


def identifiers(text: str) -> Iterator[str]:
    """Every identifier in a text, lower-case: the whole, each segment of it, and the parts of each segment.

    An identifier is what no plain word looks like: with a digit, a sign or a capital inside, or all in capitals.

    >>> list(identifiers("see src/parseHTTP.py"))
    ['src/parsehttp.py', 'src', 'parsehttp', 'parse', 'http', 'py']
    """
    tokens = text.split()
    is_usual = max(map(len, tokens), default=0) <= NAME_CHARACTERS_MAX  # What is kept has a bound.
    return chain.from_iterable(map(_remembered if is_usual else _names, tokens))


def path_of(name: str) -> str:
    """A path as it is compared: without what stands around it, a line's number, and capitals.

    >>> path_of("(./src/Main.py:12:3):")
    'src/main.py'
    """
    return _LINE.sub("", name.strip(_AROUND_PATH)).strip(_AROUND_PATH).lower()


def _names(token: str) -> tuple[str, ...]:
    """Those of what stands between two spaces."""
    name = token.strip(_AROUND)
    if len(name) > NAME_CHARACTERS_MAX or _is_plain(name):
        return ()
    segments = (*_SEPARATORS.split(name), *_SIGN.findall(name))
    parts = (part.lower().strip("_") for segment in segments for part in (segment, *_parts(segment)))
    return tuple(dict.fromkeys((name.lower(), *filter(None, parts))))


_remembered = lru_cache(_NAMES_KEPT)(_names)


def _is_plain(name: str) -> bool:
    """A word, or a lone sign that is no picture."""
    if len(name) < 2:
        return _SIGN.match(name) is None
    return name.isalpha() and name[1:] == name[1:].lower()


def _parts(segment: str) -> Iterator[str]:
    """The words that were written together: `parse`, `HTTP`."""
    if segment.isascii():
        yield from _ASCII_PART.findall(segment)
    else:
        for run in _PART.findall(segment):
            yield from _humps(run)


def _humps(letters: str) -> Iterator[str]:
    """As `_ASCII_PART` cuts, in any script: before a capital after a small letter, and before the last of capitals that
    a small letter follows."""
    start = 0
    for at in range(1, len(letters)):
        is_start = letters[at].isupper() and (
            letters[at - 1].islower() or (at + 1 < len(letters) and letters[at + 1].islower())
        )
        if is_start:
            yield letters[start:at]
            start = at
    yield letters[start:]
