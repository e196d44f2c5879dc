"""What a text is found by: its words in any script, and its identifiers whole and by their parts."""

import re
from collections.abc import Iterator

# Scripts written without spaces: every two neighbouring characters are a word.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U00020000-\U0002ffff"
)
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+")
_AROUND = ".,;:!?()[]{}<>\"'`*=+|~&%$^"
"""What stands around a name without being of it."""
_SEPARATORS = re.compile(r"[^\w]+")
_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_A-Za-z]+")
_NAME_CHARACTERS_MAX = 128
"""Longer runs are data, not names."""


def words(text: str) -> str:
    """The text with scripts that have no spaces cut into overlapping pairs, so that any part of a phrase is found."""
    return _UNSPACED_RUN.sub(_pairs, text)


def _pairs(match: re.Match[str]) -> str:
    run = match.group()
    if len(run) == 1:
        return f" {run} "
    return f" {' '.join(run[at : at + 2] for at in range(len(run) - 1))} "


def identifiers(text: str) -> Iterator[str]:
    """Every identifier in a text, lower-case: the whole, each segment of it, and the parts of each segment.

    An identifier is what no plain word looks like: with a digit, a sign or a capital inside, or all in capitals.

    >>> list(identifiers("see src/parseHTTP.py"))
    ['src/parsehttp.py', 'src', 'parsehttp', 'parse', 'http', 'py']
    """
    for token in text.split():
        name = token.strip(_AROUND)
        if len(name) < 2 or len(name) > _NAME_CHARACTERS_MAX or (name.isalpha() and name[1:].islower()):
            continue
        whole = name.lower()
        seen = {whole}
        yield whole
        for segment in _SEPARATORS.split(name):
            for part in (segment, *_PART.findall(segment)):
                lower = part.lower().strip("_")
                if lower and lower not in seen:
                    seen.add(lower)
                    yield lower
