"""A refusal is checked against errors.yaml on whatever it travelled; errors.yaml is the bus's own table."""

import pytest

from engram_bus import errors
from engram_bus.conformance.patterns import UNTOLD
from engram_bus.conformance.refusals import complaint
from engram_bus.conformance.transports.contract import (
    AsClose,
    AsException,
    InFrame,
    InStream,
    OverGrpc,
    OverHttp,
    Refused,
    Way,
)
from engram_bus.conformance.vectors import Refusal, load_refusals

TABLE = {"LOCK_HELD": Refusal(http=409, grpc="FAILED_PRECONDITION", close=4509, retryable=False)}
PROBLEM = {"type": "urn:x", "title": "x", "status": 409, "detail": "held"}

WELL: dict[str, Way] = {
    "http": OverHttp(409, PROBLEM),
    "grpc": OverGrpc("FAILED_PRECONDITION", has_error=True),
    "frame": InFrame(None),
    "frame and close": InFrame(4509),
    "close": AsClose(4509),
    "item": InStream(),
    "exception": AsException(409),
}
WRONG: dict[str, tuple[Way, str]] = {
    "another status": (OverHttp(412, {**PROBLEM, "status": 412}), "the status of LOCK_HELD is 409, and 412 came"),
    "a status of its own": (OverHttp(409, {**PROBLEM, "status": 412}), "says status 412, the answer 409"),
    "no problem": (OverHttp(409, None), "is no application/problem"),
    "half a problem": (OverHttp(409, {"status": 409, "type": "x", "title": "x"}), "has no detail"),
    "another gRPC status": (OverGrpc("ABORTED", has_error=True), "is FAILED_PRECONDITION, and ABORTED came"),
    "no details": (OverGrpc("FAILED_PRECONDITION", has_error=False), "without an engram.v1.Error"),
    "another close code": (AsClose(4500), "the close code of LOCK_HELD is 4509, and 4500 came"),
    "another close after a frame": (InFrame(4500), "the close code"),
    "another exception": (AsException(412), "the status"),
}


def refused(way: Way, **fields: object) -> Refused:
    return Refused({"code": "LOCK_HELD", "message": "held", "retryable": False, **fields}, way)


@pytest.mark.parametrize("way", WELL.values(), ids=WELL)
def test_a_refusal_that_travelled_as_it_must_is_fine(way: Way) -> None:
    assert complaint(refused(way), TABLE) is None
    assert complaint(refused(way, message=UNTOLD, retryable=UNTOLD), TABLE) is None


@pytest.mark.parametrize(("way", "told"), WRONG.values(), ids=WRONG)
def test_one_that_travelled_otherwise_is_told(way: Way, told: str) -> None:
    assert told in str(complaint(refused(way), TABLE))


def test_its_code_its_message_and_whether_it_may_pass_are_checked_too() -> None:
    assert "which is none" in str(complaint(refused(InStream(), code="LOCKED"), TABLE))
    assert "which is none" in str(complaint(refused(InStream(), code=None), TABLE))
    assert "is not retryable, and this says True" in str(complaint(refused(InStream(), retryable=True), TABLE))
    assert "without a message" in str(complaint(refused(InStream(), message=None), TABLE))


def test_errors_yaml_is_the_table_of_the_bus() -> None:
    assert load_refusals() == {
        error.code: Refusal(http=error.status, grpc=error.grpc, close=error.close_code, retryable=error.retryable)
        for error in _with_code(errors.EngramError)
    }


def _with_code(family: type[errors.EngramError]) -> list[type[errors.EngramError]]:
    own = [family] if "code" in vars(family) else []
    return own + [error for child in family.__subclasses__() for error in _with_code(child)]
