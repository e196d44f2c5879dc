"""Exchanges are read as their format says; what it does not have is refused with its place."""

from pathlib import Path

import pytest

from engram_bus.conformance.vectors import (
    End,
    Exchange,
    Hear,
    Request,
    Stage,
    VectorError,
    exchanges,
    load,
    load_refusals,
)

ONE = """
- exchange: who resumes hears the rest
  on: [sse, grpc]
  needs: restart
  each: [{stage: restart}, {stage: kill}]
  steps:
    - append: {context_id: plan, agent_id: on, kind: yes.no, payload: 2026-01-01}
      answer: {seq: $first}
      begin: later
    - end: later
    - stage: $stage
    - status:
      until: {ready: true}
    - hear: reader
      units: [{payload: two}]
"""


def read(text: str) -> list[Exchange]:
    return list(exchanges("some.yaml", text))


def test_an_exchange_is_played_once_for_each() -> None:
    restart, kill = read(ONE)
    assert restart.name == "who resumes hears the rest [stage restart]"
    assert kill.variables == {"stage": "kill"}
    assert restart.steps == kill.steps
    assert restart.needs == ("restart",)
    assert restart.is_for("sse")
    assert not restart.is_for("http-json")
    assert restart.verbs == {"append", "status"}


def test_each_has_a_name_of_its_own() -> None:
    each = read(f"- {{exchange: x, steps: [], each: [{{a: {'y' * 50}}}, {{a: {'y' * 60}}}, {{a: {{b: 1}}}}]}}")
    assert [one.name for one in each] == [f"x [a {'y' * 37}...]", f"x [a {'y' * 37}...] (2)", 'x [a {"b":1}]']


def test_steps_are_what_they_say() -> None:
    append, end, stage, status, hear = read(ONE)[0].steps
    assert isinstance(append, Request)
    assert append.name == "append"
    assert append.begin == "later"
    assert append.answer == {"seq": "$first"}
    assert end == End(name="later")
    assert stage == Stage(name="$stage")
    assert isinstance(status, Request)
    assert status.asked == {}
    assert hear == Hear(name="reader", units=[{"payload": "two"}])


def test_words_and_dates_are_texts() -> None:
    append = read(ONE)[0].steps[0]
    assert isinstance(append, Request)
    assert append.asked == {"context_id": "plan", "agent_id": "on", "kind": "yes.no", "payload": "2026-01-01"}


def test_what_changes_the_server_is_played_alone() -> None:
    restarting, reading, plain = read(
        "- {exchange: x, needs: restart, steps: []}\n"
        "- {exchange: y, needs: [history], steps: []}\n"
        "- {exchange: z, steps: [{get: {id: $id, min_seq: '${head+1}'}}]}"
    )
    assert restarting.is_alone
    assert not reading.is_alone
    assert not plain.is_alone
    assert plain.names == {"id", "head"}


def test_not_on_is_all_but_these() -> None:
    (exchange,) = read("- {exchange: x, not_on: [client], steps: []}")
    assert not exchange.is_for("client")
    assert exchange.is_for("client-grpc")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{exchange: x}", "is not a list of exchanges"),
        ("- {steps: []}", "exchange 1: Object missing required field `exchange`"),
        ("- {exchange: x, steps: [], colour: red}", "unknown field `colour`"),
        ("- {exchange: x, steps: [{apend: {}}]}", "'x', step 1: one of acquire_lock, append"),
        ("- {exchange: x, steps: [{append: {}, get: {}}]}", "step 1: one of"),
        ("- {exchange: x, steps: [{append: {}, answr: {}}]}", "step 1: Object contains unknown field `answr`"),
        ("- {exchange: x, steps: [{append: 5}]}", "step 1: Expected `object`, got `int`"),
        ("- {exchange: x", "some.yaml: while parsing"),
    ],
)
def test_what_the_format_does_not_have_is_refused_with_its_place(text: str, told: str) -> None:
    with pytest.raises(VectorError) as refused:
        read(text)
    assert told in str(refused.value)


def test_vectors_are_part_of_the_package() -> None:
    here = Path(__file__).parents[2] / "proto" / "vectors"
    assert load() == load(here)
    assert load_refusals() == load_refusals(here)


def test_without_its_table_of_refusals_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match=r"errors\.yaml is not among the vectors"):
        load_refusals(tmp_path)
