"""Against a real bus: what was said is found, by its words and by its meaning."""

import inspect
from datetime import timedelta
from typing import Any, get_args

import pytest
from live_bus import SameBus

from engram_client import Client, Relationship, RelationshipType, SyncClient, WorkUnit, client, errors, values


@pytest.fixture
def context(request: pytest.FixtureRequest) -> str:
    return f"t\u00ebst/{request.node.nodeid} ?#%"


async def said(bus: Client, context: str) -> tuple[WorkUnit, WorkUnit, WorkUnit]:
    """Three that tell of a parser, each in its own way."""
    first = await bus.append(context, "I take the parser", type="TASK_STATUS", kind="task.taken", meta={"run": "7"})
    edge = Relationship(first.id, RelationshipType.RESPONDS_TO)
    second = await bus.append(context, "the parser drops comments", agent_id="bob", relationships=[edge])
    third = await bus.append(context, {"parser": {"state": "done"}}, resources=["src/parser.py"])
    return first, second, third


async def test_what_was_said_is_found_with_the_words_that_were_looked_for(shared_bus: SameBus, context: str) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        first, second, third = await said(bus, context)
        page = await bus.search("who takes the parser", context_id=context, include="units", explain=True, facets=True)
        assert {hit.unit_id for hit in page} == {first.id, second.id, third.id}
        assert (page.total, page.applied_seq >= third.seq, page.next_page) == (3, True, None)
        assert [hit.score for hit in page] == sorted((hit.score for hit in page), reverse=True)
        hit = next(hit for hit in page if hit.unit == first)
        (fragment,) = hit.highlights
        assert [fragment.text[start:end] for start, end in fragment.spans] == ["take", "parser"]
        assert hit.keyword is not None
        assert hit.vector is not None
        assert hit.explain is not None
        assert hit.score == pytest.approx(hit.explain.keyword_part + hit.explain.vector_part)
        assert page.facets is not None
        assert page.facets["agent"] == {"ann": 2, "bob": 1}
        assert page.facets["context"] == {context: 3}


async def test_what_was_meant_is_found_without_its_words(shared_bus: SameBus, context: str) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        await bus.append(context, "lunch is at noon")
        meant = await bus.append(context, "the automobile broke down")
        page = await bus.search("a car with engine trouble", context_id=context, mode="semantic")
        assert page.results[0].unit_id == meant.id
        assert page.results[0].keyword is None


async def test_every_filter_lets_through_what_it_names(shared_bus: SameBus, context: str) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        first, second, third = await said(bus, context)
        before, after = first.time - timedelta(seconds=1), third.time + timedelta(seconds=1)
        for filters, found in [
            ({"agent_id": ["bob", "eve"]}, [second]),
            ({"type": "TASK_STATUS"}, [first]),
            ({"kind": "task.*"}, [first]),
            ({"meta": {"run": "7"}}, [first]),
            ({"resource": "src/*"}, [third]),
            ({"related_to": first.id}, [second]),
            ({"after_seq": first.seq, "before_seq": third.seq}, [second]),
            ({"after_ts": before, "before_ts": after.isoformat()}, [first, second, third]),
            ({"after_ts": after}, []),
            ({"as_of_seq": second.seq}, [first, second]),
        ]:
            page = await bus.search("parser", context_id=[context], **filters)  # type: ignore[arg-type]
            assert {hit.seq for hit in page} == {unit.seq for unit in found}, filters
            assert page.total == len(found), filters


async def test_pages_hold_each_unit_once_while_more_is_said(shared_bus: SameBus, context: str) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        units = [await bus.append(context, f"the parser, part {number}") for number in range(7)]
        page = await bus.search("parser", context_id=context, limit=3)
        seen = [hit.seq for hit in page]
        while page.next_page is not None:
            await bus.append(context, "the parser parser parser")
            page = await bus.search("parser", context_id=context, limit=3, page=page.next_page)
            seen += [hit.seq for hit in page]
        assert sorted(seen) == [unit.seq for unit in units]


async def test_a_budget_of_tokens_is_filled_in_order_of_rank(shared_bus: SameBus, context: str) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        for payload in ("parser " * 3, "parser " * 300, "parser again"):
            await bus.append(context, payload)
        page = await bus.search("parser", context_id=context, max_tokens=20)
        assert len(page) == 2
        assert sum(hit.tokens for hit in page) <= 20


async def test_a_search_waits_for_what_it_is_to_reflect(shared_bus: SameBus, context: str) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        unit = await bus.append(context, "the parser")
        assert len(await bus.search("parser", context_id=context, min_seq=unit.seq)) == 1
        with pytest.raises(errors.MinSeqTimeout):
            await bus.search("parser", min_seq=unit.seq + 1_000_000, timeout_ms=10)


@pytest.mark.parametrize(
    ("asked", "kind", "field"),
    [
        ({"mode": "psychic"}, errors.InvalidRequest, "mode"),
        ({"limit": 201}, errors.InvalidRequest, "limit"),
        ({"after_ts": "yesterday"}, errors.InvalidRequest, "after_ts"),
        ({"query": "q" * 9_000}, errors.TooLarge, "query"),
    ],
)
async def test_a_search_that_cannot_be_names_its_field(
    shared_bus: SameBus, asked: dict[str, Any], kind: type[errors.EngramError], field: str
) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        with pytest.raises(kind) as told:
            await bus.search(**{"query": "parser", **asked})
    assert told.value.field == field


async def test_the_status_says_how_far_the_index_is(shared_bus: SameBus, context: str) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        unit = await bus.append(context, "the parser")
        await bus.search("parser")
        status = await bus.status()
        assert status.search is not None
        assert status.search.taken_seq + status.search.lag_units >= unit.seq


async def test_the_index_is_built_again_on_demand(shared_bus: SameBus, context: str) -> None:
    async with Client(shared_bus.url, agent_id="ann") as bus:
        unit = await bus.append(context, "the parser")
        await bus.search("parser")
        before = await bus.rebuild_search()
        while (status := (await bus.status()).search) is None or status.generation == before.generation:
            assert [hit.unit_id for hit in await bus.search("parser", context_id=context)] == [unit.id]
        assert status.generation > before.generation
        assert [hit.unit_id for hit in await bus.search("parser", context_id=context)] == [unit.id]


def test_the_same_without_a_loop(shared_bus: SameBus, context: str) -> None:
    with SyncClient(shared_bus.url, agent_id="ann") as bus:
        unit = bus.append(context, "the parser")
        assert [hit.unit_id for hit in bus.search("parser", context_id=context)] == [unit.id]


def test_what_can_be_asked_and_answered_is_what_the_bus_knows() -> None:
    requests = pytest.importorskip("engram_bus.projections.search.requests")
    asked = set(inspect.signature(Client.search).parameters) - {"self"}
    assert asked == set(requests.SearchIn.__struct_fields__)
    for name, own in [("SearchHit", values.SearchHit), ("SearchOut", values.SearchPage)]:
        assert own.__struct_fields__ == getattr(requests, name).__struct_fields__
    assert values.SearchExplained.__struct_fields__ == requests.Explained.__struct_fields__
    assert values.Highlight.__struct_fields__ == requests.Highlight.__struct_fields__
    assert values.SearchLeg.__struct_fields__ == requests.Leg.__struct_fields__
    assert get_args(client.Mode) == requests.MODES
    assert get_args(client.Fusion) == requests.FUSIONS


def test_a_status_says_what_the_bus_says() -> None:
    operations = pytest.importorskip("engram_bus.api.operations")
    assert set(values.Status.__struct_fields__) == set(operations.Status.__struct_fields__)
    assert set(values.SearchStatus.__struct_fields__) >= set(operations.SearchStatus.__struct_fields__)
