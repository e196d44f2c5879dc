"""Globs over whole names, compiled once: `*` (slashes too), `?`, `[...]`."""

import re
from collections.abc import Callable, Sequence
from fnmatch import translate


def matcher(globs: Sequence[str]) -> Callable[[str], re.Match[str] | None]:
    """One expression that matches any of these globs, whole. `translate` makes each `*` possessive: no backtracking."""
    return re.compile("|".join(translate(glob) for glob in globs)).match
