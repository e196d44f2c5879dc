"""Every code of the bus has its class here, with the same meaning."""

import pytest

from engram_client import errors
from engram_client.codec import problem
from engram_client.errors import (
    BY_CODE,
    Conflict,
    EngramConnectionError,
    EngramError,
    EpochChanged,
    Invalid,
    NotFound,
    ShuttingDown,
    Unavailable,
    VersionMoved,
    error_from,
    error_of_close,
)


def bus_errors() -> list[type]:
    bus = pytest.importorskip("engram_bus.errors")
    return [
        found
        for found in vars(bus).values()
        if isinstance(found, type) and issubclass(found, bus.EngramError) and "code" in vars(found)
    ]


def test_the_table_is_that_of_the_bus() -> None:
    told = {error.code: (error.__name__, error.status, error.retryable) for error in bus_errors()}
    known = {code: (error.__name__, error.status, error.retryable) for code, error in BY_CODE.items()}
    assert known == told


def test_a_close_code_alone_tells_the_same_family_and_whether_to_come_back() -> None:
    for error in bus_errors():
        read = error_of_close(error.close_code, "")
        mirrored = BY_CODE[error.code]
        assert isinstance(read, mirrored.__base__ or mirrored)
        assert read.retryable == error.retryable


def test_a_problem_says_everything() -> None:
    body = (
        b'{"type":"about:blank","title":"The context has another version","status":412,"detail":"3, not 2",'
        b'"code":"VERSION_MOVED","retryable":false,"field":"expected_version","index":4,"current_version":3}'
    )
    error = problem(412, body, None)
    assert isinstance(error, VersionMoved)
    assert (error.message, error.field, error.index, error.limit) == ("3, not 2", "expected_version", 4, None)
    assert (error.status, error.retryable, error.details) == (412, False, {"current_version": 3})
    assert str(error) == "VERSION_MOVED: 3, not 2"


@pytest.mark.parametrize(
    ("status", "family", "retryable"),
    [
        (401, Invalid, False),
        (404, NotFound, False),
        (409, Conflict, False),
        (429, Unavailable, True),
        (502, Unavailable, True),
    ],
)
def test_an_unknown_code_comes_as_the_family_of_its_status(status: int, family: type, retryable: bool) -> None:
    error = problem(status, b'{"code":"LATER_INVENTION","detail":"by ann"}', "3")
    assert type(error) is family
    assert (error.code, error.status, error.retryable, error.retry_after_seconds) == (
        "LATER_INVENTION",
        status,
        retryable,
        3,
    )


@pytest.mark.parametrize("body", [b"", b"<html>Bad Gateway</html>", b"[1]", b'"text"', b"\xff"])
def test_a_proxy_in_between_answers_in_its_own_words(body: bytes) -> None:
    error = problem(502, body, "Wed, 21 Oct 2026 07:28:00 GMT")
    assert isinstance(error, Unavailable)
    assert error.message
    assert error.retry_after_seconds is None


def test_an_error_frame_says_the_same_as_a_problem() -> None:
    error = error_from(
        {"event": "error", "id": 7, "code": "EPOCH_CHANGED", "message": "m", "retryable": False, "epoch": "e2"}
    )
    assert isinstance(error, EpochChanged)
    assert error.details == {"epoch": "e2"}


@pytest.mark.parametrize(
    ("close_code", "reason", "kind", "retryable"),
    [
        (4001, "SHUTTING_DOWN", ShuttingDown, True),
        (4511, "", EpochChanged, False),
        (4999, "EPOCH_CHANGED: other history", EpochChanged, False),
        (1001, "", EngramConnectionError, True),
        (1012, "", EngramConnectionError, True),
        (1006, "", EngramConnectionError, True),
        (1002, "", EngramConnectionError, False),
        (1009, "", EngramConnectionError, False),
        (4600, "LATER_INVENTION", EngramConnectionError, False),
    ],
)
def test_a_close_code_tells_whether_to_come_back(close_code: int, reason: str, kind: type, retryable: bool) -> None:
    error = error_of_close(close_code, reason)
    assert (type(error), error.retryable) == (kind, retryable)


def test_every_class_is_in_the_tree_that_is_drawn() -> None:
    for name, found in vars(errors).items():
        if isinstance(found, type) and issubclass(found, EngramError):
            assert f" {name}" in (errors.__doc__ or "") or name == "EngramError"


def test_an_error_frame_of_an_unknown_code_is_an_error_all_the_same() -> None:
    error = error_from({"event": "error", "code": "LATER_INVENTION", "message": "m", "retryable": True})
    assert (type(error), error.code, error.retryable) == (EngramError, "LATER_INVENTION", True)
