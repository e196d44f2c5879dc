"""A bus with an embedder of choice: what is found while it answers, while it is away, and when it is exchanged."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engram_bus import Bus
from engram_bus.projections.search.choice import UnknownEmbedder
from engram_bus.projections.search.requests import SearchOut
from engram_bus.serve import run
from engram_bus.settings import Settings, SettingsError
from tests.embedding import MODEL, EmbeddingServer, Reply, serving

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["openai", "ollama"])
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddingServer]:
    with serving(request.param) as server:
        yield server


async def said(bus: Bus, *texts: str) -> None:
    for text in texts:
        await bus.append("talk", text, agent_id="ann")


async def until(bus: Bus, is_so: Callable[[SearchOut], bool], query: str = "weather") -> SearchOut:
    """The first answer that is so."""
    deadline = time.monotonic() + 20
    while True:
        found = await bus.search(query)
        if is_so(found):
            return found
        assert time.monotonic() < deadline, found


def kept(path: Path) -> list[str]:
    return sorted(one.name for one in (path / "tenants" / "default" / "search").iterdir() if one.is_dir())


async def test_units_are_found_by_the_meaning_it_gives_them(tmp_path: Path, server: EmbeddingServer) -> None:
    async with Bus.open(tmp_path, embedder=server.setting) as bus:
        await said(bus, "rain in Lisbon", "the parser lost a token")
        found = await until(bus, lambda found: not found.degraded)
        assert found.results[0].seq == 1
        assert ["weather"] in [one["input"] for one in server.asked]


async def test_what_was_acknowledged_is_found_by_its_meaning_at_once(tmp_path: Path, server: EmbeddingServer) -> None:
    async with Bus.open(tmp_path, embedder=server.setting) as bus:
        await said(bus, "rain in Lisbon")
        await until(bus, lambda found: not found.degraded)
        await said(bus, "snow on the mountains")
        found = await bus.search("winter in the Alps", mode="semantic")
        assert (found.results[0].seq, found.degraded) == (2, False)


async def test_while_it_is_away_everything_is_found_all_the_same(tmp_path: Path, server: EmbeddingServer) -> None:
    async with Bus.open(tmp_path, embedder=server.setting) as bus:
        await said(bus, "rain in Lisbon")
        await until(bus, lambda found: not found.degraded)
        server.answering = lambda texts: Reply(401)
        await said(bus, "the parser lost a token", "snow on the mountains")
        for mode, query, seq in (
            ("keyword", "parser", 2),
            ("hybrid", "parser", 2),
            ("semantic", "winter in the Alps", 3),
        ):
            found = await bus.search(query, mode=mode)
            assert found.results[0].seq == seq
            assert found.degraded == (mode != "keyword")
        server.answering = MODEL.embed
        found = await until(bus, lambda found: not found.degraded, "winter in the Alps")
        assert found.results[0].seq == 3


async def test_a_bus_that_starts_without_it_searches_without_it(tmp_path: Path, server: EmbeddingServer) -> None:
    server.answering = lambda texts: Reply(401, b"no key")
    async with Bus.open(tmp_path, embedder=server.setting) as bus:
        await said(bus, "rain in Lisbon")
        assert bus.start_search() is not None
        found = await until(bus, lambda found: found.degraded)
        assert [hit.seq for hit in found.results] == [1]


async def test_its_vectors_outlive_a_restart(tmp_path: Path, server: EmbeddingServer) -> None:
    async with Bus.open(tmp_path, embedder=server.setting) as bus:
        await said(bus, "rain in Lisbon", "the parser lost a token")
        await until(bus, lambda found: not found.degraded)
    server.asked.clear()
    async with Bus.open(tmp_path, embedder=server.setting) as bus:
        await until(bus, lambda found: not found.degraded)
    assert {text for one in server.asked for text in one["input"]} == {"weather"}


async def test_another_takes_over_once_it_has_seen_everything(tmp_path: Path, server: EmbeddingServer) -> None:
    async with Bus.open(tmp_path, embedder=server.setting) as bus:
        await said(bus, "rain in Lisbon")
        await until(bus, lambda found: not found.degraded)
        before = kept(tmp_path)
    with serving("openai") as other:
        other.answering = lambda texts: Reply(503)
        async with Bus.open(tmp_path, embedder=other.setting) as bus:
            assert (await until(bus, lambda found: found.degraded)).results[0].seq == 1
            assert set(before) < set(kept(tmp_path)), "what was before stays until then"
            other.answering = MODEL.embed
            await until(bus, lambda found: not found.degraded and len(kept(tmp_path)) == 2)
            assert set(kept(tmp_path)) != set(before)


async def test_back_to_the_shipped_one_nothing_else_stays(tmp_path: Path, server: EmbeddingServer) -> None:
    async with Bus.open(tmp_path, embedder=server.setting) as bus:
        await said(bus, "rain in Lisbon")
        await until(bus, lambda found: not found.degraded)
    async with Bus.open(tmp_path) as bus:
        found = await until(bus, lambda found: len(kept(tmp_path)) == 1)
        assert (found.results[0].seq, found.degraded) == (1, False)


async def test_the_key_comes_from_the_environment(
    tmp_path: Path, server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGRAM_EMBEDDER_KEY", "sk-secret")
    async with Bus.open(tmp_path, embedder=server.setting) as bus:
        await said(bus, "rain in Lisbon")
        await until(bus, lambda found: not found.degraded)
    assert set(server.keys) == {"Bearer sk-secret"}


async def test_what_names_no_embedder_opens_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnknownEmbedder):
        async with Bus.open(tmp_path / "new", embedder="openia:http://h#m"):
            pass
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("embedder", ["nonsense", "openai:http://h"])
async def test_what_names_no_embedder_serves_nothing(tmp_path: Path, embedder: str) -> None:
    with pytest.raises(SettingsError, match=f"embedder: '{embedder}' is not"):
        run(Settings(data_dir=str(tmp_path / "new"), port=0, embedder=embedder))
    assert not (tmp_path / "new").exists()


async def test_status_tells_how_far_it_is_and_its_trouble(tmp_path: Path, server: EmbeddingServer) -> None:
    server.answering = lambda texts: Reply(401, b"no key")
    async with Bus.open(tmp_path, embedder=server.setting) as bus:
        await said(bus, "rain in Lisbon")
        await until(bus, lambda found: found.degraded)
        searcher = bus.start_search()
        await until(bus, lambda found: searcher.state.embedder_trouble is not None)
        assert searcher.state.embedder.startswith(f"{server.kind}-minilm-")
        assert searcher.state.embedder_lag_units == 1
        assert "401: no key" in str(searcher.state.embedder_trouble)
