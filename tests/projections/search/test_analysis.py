"""Any script has words, and an identifier is found by the whole and by each part."""

from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.projections.search.analysis import identifiers, indexed_words, path_of, starts, without_asking, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parseHTTP", ["parsehttp", "parse", "http"]),
        ("HTTPResponse2", ["httpresponse2", "http", "response", "2"]),
        ("snake_case_name", ["snake_case_name", "snake", "case", "name"]),
        ("__init__", ["__init__", "init"]),
        ("src/parseHTTP.py", ["src/parsehttp.py", "src", "parsehttp", "parse", "http", "py"]),
        (r"C:\Users\Ann", [r"c:\users\ann", "c", "users", "ann"]),
        ("v1.2.3", ["v1.2.3", "v1", "v", "1", "2", "3"]),
        ("E0308", ["e0308", "e", "0308"]),
        ("ENOENT", ["enoent"]),
        ("bd-xrwy", ["bd-xrwy", "bd", "xrwy"]),
        ("ann@example.com", ["ann@example.com", "ann", "example", "com"]),
        ("--flag=value", ["--flag=value", "flag", "value"]),
        ("std::vec", ["std::vec", "std", "vec"]),
        ("naïveÉcole", ["naïveécole", "naïve", "école"]),
        ("ÉCOLEParser", ["écoleparser", "école", "parser"]),
        ("größeÄndern_2", ["größeändern_2", "größe", "ändern", "2"]),
        ("🎉", ["🎉"]),
        ("done🎉", ["done🎉", "done", "🎉"]),
        ("(see `Foo.bar`,)", ["foo.bar", "foo", "bar"]),
        ("don't", ["don't", "don", "t"]),
        ("x" * 128 + "1", []),
    ],
)
def test_an_identifier_is_whole_and_in_parts(text: str, expected: list[str]) -> None:
    assert list(identifiers(text)) == expected


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("src/Main.py", "src/main.py"),
        ("(./src/main.py:12:3):", "src/main.py"),
        ("/src/main.py,", "src/main.py"),
        (".claude/setup.sh", "claude/setup.sh"),
        ("src/", "src"),
        ("parser", "parser"),
        ("./", ""),
        (":12", "12"),
    ],
)
def test_a_path_is_compared_without_what_stands_around_it(name: str, path: str) -> None:
    assert path_of(name) == path


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("who has the parser?", "has the parser?"),
        ("What did she say of WHO, and when", "did say of WHO, and"),
        ("where is I/O done, and whose is it", "is /O done, and is it"),
        ("somewhere anyhow", "somewhere anyhow"),
        ("the US office", "the US office"),
        ("who", ""),
        ('who said "who is it" and why', 'said "who is it" and'),
        ("谁拿走了它", "谁拿走了它"),
    ],
)
def test_words_that_ask_are_not_looked_for(query: str, said: str) -> None:
    assert " ".join(without_asking(query).split()) == said


@pytest.mark.parametrize(
    "text", ["", "plain words", "Capital", "à", "— • …", "École", "日本語", "ไทย", "( ) [ ]", "été"]
)
def test_plain_words_are_no_identifiers(text: str) -> None:
    assert list(identifiers(text)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("日本語", " 日本 本語 "),
        ("日", " 日 "),
        ("see 日本語now", "see  日本 本語 now"),
        ("ไทย", " ไท ทย "),
        ("plain café", "plain café"),
        ("한국", " 한국 "),
        ("人々", " 人々 "),
        ("🎉", "🎉"),
    ],
)
def test_scripts_without_spaces_are_cut_into_pairs(text: str, expected: str) -> None:
    assert words(text) == expected


def test_one_character_alone_is_to_be_found_too() -> None:
    assert indexed_words("a 日本語") == "a  日本 本語 日 本 語 "
    assert indexed_words("日") == " 日 "


@given(st.text(min_size=1).filter(lambda text: not text.isascii()), st.text(), st.text())
def test_what_is_found_alone_is_found_inside(part: str, before: str, after: str) -> None:
    inside = set(indexed_words(before + part + after).split())
    for word in words(part).split():
        assert any(word in one for one in inside)


@given(st.text())
def test_an_identifier_is_told_once_a_name_and_in_small_letters(text: str) -> None:
    for token in text.split():
        found = list(identifiers(token))
        assert len(found) == len(set(found))
        assert all(one and one == one.strip() for one in found)


@given(
    st.from_regex(r"[a-z]{2,9}([A-Z][a-z]{1,9}|_[a-z]{1,9}|/[a-z]{1,9}|\.[a-z]{1,9}|[0-9]{1,4}){1,6}", fullmatch=True)
)
def test_the_parts_of_a_name_are_found_in_any_text(name: str) -> None:
    found = list(identifiers(f"before {name}, after"))
    assert found == list(identifiers(name))
    assert found[0] == name.lower()


MEGABYTE = 2**20


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "A",
        "aB",
        "é",
        "aÉ",
        "日",
        "ก",
        ".",
        "_",
        "a_",
        "/a",
        "aB/",
        "0",
        "🎉",
        "aB/ ",
        "日 ",
        '"',
        "\0",
        "A1.b_C-d ",
    ],
)
def test_a_megabyte_takes_as_long_as_its_parts(text: str) -> None:
    def seconds(size: int) -> float:
        long = (text * size)[:size]
        started = process_time()
        indexed_words(long)
        for _ in identifiers(long):
            pass
        return process_time() - started

    assert seconds(MEGABYTE) < 16 * 4 * seconds(MEGABYTE // 16) + 0.5, "16 times the text, at most 64 times the time"


@pytest.mark.parametrize(
    ("query", "begun"),
    [
        ("pars*", ["pars"]),
        ("who has (src/pars* and Lock*", ["src/pars", "Lock"]),
        ("p* *", []),
        ("**bold** a*b *.py char *x", []),
        ('"int * par*" after*', ["after"]),
        ("日本*", []),
        ("größ*", ["größ"]),
    ],
)
def test_a_star_ends_the_beginning_of_a_word(query: str, begun: list[str]) -> None:
    assert starts(query)[0] == begun
