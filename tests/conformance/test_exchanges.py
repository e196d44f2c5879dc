"""Every exchange of proto/vectors, over every transport, against a real bus; and that they leave nothing out."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from engram_bus.api.operations import OPERATIONS
from engram_bus.conformance.runner import Outcome, is_played
from engram_bus.conformance.transports.protobuf import METHODS
from engram_bus.conformance.transports.table import TRANSPORTS
from engram_bus.conformance.vectors import VERBS, End, Exchange, Hear, Request, load, load_refusals
from engram_bus.pb import bus_pb2
from tests.conformance.conftest import Key, Play, key

EXCHANGES = load()
PLAYS = [(exchange, name) for name in TRANSPORTS for exchange in EXCHANGES if is_played(exchange, name)]
EXCHANGES_MIN = 150


def _id(play: Play) -> str:
    exchange, transport = play
    return f"{transport}-{exchange.file.removesuffix('.yaml')}-{exchange.name}"


@pytest.mark.timeout(900)  # The first one waits for all.
@pytest.mark.parametrize("play", PLAYS, ids=_id)
def test_they_agree(play: Play, outcomes: Mapping[Key, Outcome]) -> None:
    outcome = outcomes[key(play)]
    if outcome.left_out is not None:
        pytest.skip(outcome.left_out)
    assert outcome.failure is None, outcome.failure


def test_there_are_many_and_no_two_have_one_name() -> None:
    sentences = {exchange.name.partition(" [")[0] for exchange in EXCHANGES}
    assert len(sentences) >= EXCHANGES_MIN
    assert len({(exchange.file, exchange.name) for exchange in EXCHANGES}) == len(EXCHANGES)


def test_every_code_is_the_subject_of_an_exchange() -> None:
    codes = {code for exchange in EXCHANGES for code in _codes(exchange)}
    assert load_refusals().keys() - codes == set()


def _codes(exchange: Exchange) -> Iterator[str]:
    """What its steps say that something is refused, or ends, with."""
    for step in exchange.steps:
        match step:
            case Request(refused=refused) | End(refused=refused):
                yield from _code(refused, exchange.variables)
            case Hear(ended=ended):
                yield from _code(ended, exchange.variables)
            case _:
                pass


def _code(pattern: Any, variables: dict[str, Any]) -> Iterator[str]:
    for name, value in pattern.items() if isinstance(pattern, dict) else ():
        if name == "code":
            yield variables.get(str(value).removeprefix("$"), value)
        elif name == "...":
            yield from _code(variables.get(str(value).removeprefix("$")), variables)


def test_every_verb_is_asked_for() -> None:
    assert VERBS - {verb for exchange in EXCHANGES for verb in exchange.verbs} == set()


def test_every_method_of_grpc_is_a_verb() -> None:
    methods = {method.name for method in METHODS.values()} | {"AppendStream", "Subscribe", "HoldSession"}
    assert methods == set(bus_pb2.DESCRIPTOR.services_by_name["EngramBus"].methods_by_name)


def test_every_operation_of_http_is_used() -> None:
    """By a verb, or by a plain request."""
    asked = {(method, path) for exchange in EXCHANGES for method, path in _plain_requests(exchange)}
    unused = [
        operation.name
        for operation in OPERATIONS
        if operation.name.removesuffix("_by_query") not in VERBS | {"lock", "stream_sse"}
        and not any(method == operation.method and _is_at(operation.path, path) for method, path in asked)
    ]
    assert unused == []


def _plain_requests(exchange: Exchange) -> Iterator[tuple[str, str]]:
    for step in exchange.steps:
        if isinstance(step, Request) and step.name == "http":
            path = str(step.asked.get("path"))
            path = str(exchange.variables.get(path.removeprefix("$"), path))
            yield step.asked.get("method", "GET"), path.partition("?")[0].removeprefix("/api/v1")


def _is_at(pattern: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\{\w+(:path)?\}", ".+", pattern), path) is not None
