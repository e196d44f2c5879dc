"""Errors: each that a caller may meet has one code, one status and one close code, and says whether to try again."""

import ast
import inspect
import pickle
import re
from collections.abc import Iterator

import pytest

from engram_bus import errors
from engram_bus.errors import DataDirectoryError, EngramError, Unavailable, VersionMoved


def leaves(kind: type[EngramError] = EngramError) -> Iterator[type[EngramError]]:
    below = kind.__subclasses__()
    if not below:
        yield kind
    for inner in below:
        yield from leaves(inner)


LEAVES = list(leaves())


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_an_error_says_all_that_a_transport_needs(kind: type[EngramError]) -> None:
    assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", kind.code)
    assert 400 <= kind.status <= 599
    assert kind.title
    assert not kind.title.endswith(".")
    assert 4_000 <= kind.close_code <= 4_999
    assert (kind.close_code < 4_500) == kind.retryable, "below 4500 a client reconnects and resumes"
    assert (kind.status < 500) or issubclass(kind, Unavailable)


def test_no_two_errors_share_a_code() -> None:
    assert len({kind.code for kind in LEAVES}) == len(LEAVES)


def test_every_error_stands_in_the_tree_at_the_top() -> None:
    drawn = re.findall(r"[├└]── (\w+)", errors.__doc__ or "")
    classes = [node.name for node in ast.parse(inspect.getsource(errors)).body if isinstance(node, ast.ClassDef)]
    told = [name for name in classes if issubclass(getattr(errors, name), EngramError)]
    assert drawn == [name for name in told if name != "EngramError"], "the others never reach a caller"


def test_an_error_holds_what_a_caller_can_act_on() -> None:
    moved = VersionMoved("moved", field="expected_version", limit=3, current_version=7)
    assert (moved.message, str(moved), moved.field, moved.limit, moved.index) == (
        "moved",
        "moved",
        "expected_version",
        3,
        None,
    )
    assert moved.details == {"current_version": 7}


def test_naming_the_item_of_a_batch_leaves_the_error_as_it_was() -> None:
    """One error may answer several commands."""
    moved = VersionMoved("moved", field="expected_version", current_version=7)
    named = moved.at(2)
    assert (moved.index, named.index) == (None, 2)
    assert (type(named), named.message, named.field, named.details) == (
        VersionMoved,
        "moved",
        "expected_version",
        {"current_version": 7},
    )


def test_an_error_may_travel_between_processes() -> None:
    moved = pickle.loads(pickle.dumps(VersionMoved("moved", field="f", current_version=7)))
    assert (moved.message, moved.field, moved.details) == ("moved", "f", {"current_version": 7})


def test_a_bad_data_directory_is_no_answer_to_a_caller() -> None:
    assert not issubclass(DataDirectoryError, EngramError)
