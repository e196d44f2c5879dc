"""Globs over whole names, compiled once: `*` (slashes too), `?`, `[...]`."""

import re
from collections.abc import Callable, Sequence
from fnmatch import translate
from functools import lru_cache


def matcher(globs: Sequence[str]) -> Callable[[str], re.Match[str] | None]:
    """One expression that matches any of these globs, whole. `translate` makes each `*` possessive: no backtracking."""
    return re.compile("|".join(translate(glob) for glob in globs)).match


cached_matcher: Callable[[tuple[str, ...]], Callable[[str], re.Match[str] | None]] = lru_cache(maxsize=256)(matcher)
"""The same, for globs that are asked for again and again."""
