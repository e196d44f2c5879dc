"""`engram conformance`: what it plays, what it says, and how it ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process import BusProcess, engram, engram_here

ERRORS = "ID_TAKEN: {http: 409, grpc: ALREADY_EXISTS, close: 4509, retryable: false}"
WRONG = """
- exchange: a unit is at version 7
  steps:
    - append: {context_id: "${new}", agent_id: ann, payload: one}
      answer: {version: 7}
"""
STOPPED = """
- exchange: what was said is there after a stop
  needs: restart
  on: [http-json]
  each: [{stage: restart}, {stage: kill}]
  steps:
    - append: {context_id: "${new}", agent_id: ann, payload: one}
      answer: {id: $id}
    - stage: $stage
    - get: {id: $id}
      answer: {payload: one}
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BusProcess]:
    with BusProcess(tmp_path_factory.mktemp("served") / "data", "--grpc-port", "0") as bus:
        yield bus


def test_its_help_says_what_stays_behind() -> None:
    told = engram_here("conformance", "--help").stdout
    assert "thousands of contexts, and some locks, which are held until they run out" in " ".join(told.split())


def vectors(path: Path, exchanges: str) -> str:
    (path / "errors.yaml").write_text(ERRORS)
    (path / "some.yaml").write_text(exchanges)
    return str(path)


def test_a_bus_that_conforms_is_told_in_a_line_for_each_transport(served: BusProcess) -> None:
    ended = engram("conformance", "--url", served.url, "--exchange", "at version 0")
    assert ended.returncode == 0, ended.stdout
    told = [line.split()[:5] for line in ended.stdout.splitlines()]
    assert ["grpc", "1", "passed", "0", "failed"] in told
    assert ["client-grpc", "1", "passed", "0", "failed"] in told


def test_what_fails_is_told_with_its_step_and_what_came(served: BusProcess, tmp_path: Path) -> None:
    options = ("--vectors", vectors(tmp_path, WRONG), "--transport", "grpc", "--transport", "client")
    ended = engram("conformance", "--url", served.url, *options)
    assert ended.returncode == 1
    told = "some.yaml: a unit is at version 7: step 1 (append): at version: expected 7, came 1"
    assert {f"grpc: {told}", f"client: {told}"} <= set(ended.stdout.splitlines())
    assert f"{served.url} does not conform" in ended.stderr


def test_what_needs_more_than_there_is_is_left_out_and_counted(served: BusProcess, tmp_path: Path) -> None:
    ended = engram("conformance", "--url", served.url, "--vectors", vectors(tmp_path, STOPPED))
    assert "2 left out (2 need restart)" in ended.stdout
    assert ended.returncode == 1
    assert "nothing was played" in ended.stderr


def test_a_command_restarts_the_bus(served: BusProcess, tmp_path: Path) -> None:
    told = tmp_path / "told"
    options = ("--vectors", vectors(tmp_path, STOPPED), "--restart", f"echo $ENGRAM_STAGE >> {told}")
    ended = engram("conformance", "--url", served.url, *options)
    assert ended.returncode == 0, ended.stdout
    assert told.read_text().split() == ["restart", "kill"]


def test_a_command_that_fails_is_a_failure(served: BusProcess, tmp_path: Path) -> None:
    options = ("--vectors", vectors(tmp_path, STOPPED), "--restart", "exit 3")
    ended = engram("conformance", "--url", served.url, *options)
    assert ended.returncode == 1
    assert "step 2 (stage): 'exit 3' ended with 3" in ended.stdout


def test_what_cannot_be_played_is_asked_wrongly(served: BusProcess, tmp_path: Path) -> None:
    unknown = engram("conformance", "--url", served.url, "--transport", "pigeon")
    assert unknown.returncode == 2
    assert "'pigeon' is none of http-json, " in unknown.stderr
    wrong = engram("conformance", "--url", served.url, "--vectors", vectors(tmp_path, "- {exchange: x}"))
    assert wrong.returncode == 2
    assert "some.yaml, exchange 1: Object missing required field `steps`" in wrong.stderr


def test_where_no_bus_is_that_is_told() -> None:
    ended = engram("conformance", "--url", "http://127.0.0.1:9")
    assert ended.returncode == 1
    assert "no bus answers at http://127.0.0.1:9" in ended.stderr
