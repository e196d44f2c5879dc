"""Resources: every way to write one name comes to the same one, and a resource covers what is below it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.resources import below, canonical, covers, lineage, remembered

RESOURCES = (
    st.lists(st.sampled_from(["a", "b", "a b", "*", ".", "..", "", "https:", ".git"]), min_size=1)
    .map("/".join)
    .filter(bool)
)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("src/a.py", "src/a.py"),
        ("src/", "src"),
        ("./src", "src"),
        ("src/./a.py", "src/a.py"),
        ("src/../secret", "secret"),
        ("src/..", "."),
        ("../src", "../src"),
        ("src/../../other", "../other"),
        (".git/config", ".git/config"),
        ("src/...", "src/..."),
        ("/", "/"),
        ("//", "/"),
        ("https://", "https:"),
        (".", "."),
        ("./", "."),
    ],
)
def test_a_resource_has_one_name(written: str, meant: str) -> None:
    assert canonical(written) == meant


@pytest.mark.parametrize("written", ["src//a.py", "src/.//a.py", "src/lib//../a.py", "src///a.py/"])
def test_a_doubled_slash_is_one(written: str) -> None:
    assert canonical(written) == "src/a.py"


@pytest.mark.parametrize("written", ["/../etc", "/src/../../etc", "//etc", "/.././etc/"])
def test_nothing_is_above_the_root(written: str) -> None:
    assert canonical(written) == "/etc"


@pytest.mark.parametrize("url", ["https://example.org/x", "https://example.org//x/", "https://example.org/y/../x"])
def test_a_url_keeps_its_authority(url: str) -> None:
    assert canonical(url) == "https://example.org/x"


def test_a_lineage_goes_from_the_top_to_the_resource() -> None:
    assert lineage("plan.md") == ("plan.md",)
    assert lineage("/") == ("/",)
    assert lineage("/repo/src") == ("/", "/repo", "/repo/src")
    assert lineage("repo/src/a.py") == ("repo", "repo/src", "repo/src/a.py")


def test_only_what_is_short_is_remembered() -> None:
    """Long names would be a way to fill the memory: each has as many lines above it as it has slashes."""
    remembered.cache_clear()
    assert len(lineage("a/" * 500 + "a")) == 501
    lineage("a/b")
    assert remembered.cache_info().currsize == 1


def test_a_neighbour_with_the_same_beginning_is_not_covered() -> None:
    assert covers("src", "src")
    assert covers("src", "src/a.py")
    assert covers("/", "/src")
    assert not covers("src", "src2")
    assert not covers("src/a.py", "src")
    assert not covers("/", "src")


@given(RESOURCES)
def test_the_one_name_of_a_name_is_itself(resource: str) -> None:
    assert canonical(canonical(resource)) == canonical(resource)


@given(RESOURCES.map(canonical), RESOURCES.map(canonical))
def test_lineage_below_and_covers_agree(one: str, other: str) -> None:
    first, last = below(one)
    assert covers(one, other) == (one in lineage(other)) == (one == other or first < other < last)
