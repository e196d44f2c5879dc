"""Globs: one expression for many of them, over whole names, whatever is written in them."""

from fnmatch import fnmatchcase

from hypothesis import given
from hypothesis import strategies as st

from engram_bus.globs import matcher

TEXTS = st.text("ab/*?[]!^-.\\", max_size=8)


def test_a_star_goes_over_slashes_and_the_whole_name_is_meant() -> None:
    matches = matcher(["src/*", "plan.??"])
    assert [bool(matches(name)) for name in ("src/a/b.py", "plan.md", "src", "plan.json", "my/src/a", "src/a\nb")] == [
        True,
        True,
        False,
        False,
        False,
        True,
    ]


@given(st.lists(TEXTS, min_size=1, max_size=3), TEXTS)
def test_any_text_is_a_glob(globs: list[str], name: str) -> None:
    assert bool(matcher(globs)(name)) == any(fnmatchcase(name, glob) for glob in globs)


def test_a_row_of_stars_does_not_backtrack() -> None:
    assert not matcher(["*a" * 100 + "b"])("a" * 1_000)
