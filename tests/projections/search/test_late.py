"""An embedder that may be slow or away: when its vectors rank, and what becomes of search while they do not."""

import select
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from engram_bus.projections.search import late
from engram_bus.projections.search.embedders import StaticEmbedder, Vectors
from engram_bus.projections.search.embedders.contract import EmbedderUnavailable
from engram_bus.projections.search.late import AWAITED_UNITS, BATCH_UNITS, MISSING_UNITS_MAX, Late, Units, Wanted

MODEL = StaticEmbedder()


class Elsewhere:
    """The shipped model, as if it were elsewhere: it can be away, and it can be held."""

    name = "elsewhere-1"
    is_at_hand = False

    def __init__(self) -> None:
        self.is_away = False
        self.width = 256
        self.asked: list[Sequence[str]] = []
        self.goes_on = threading.Event()
        self.goes_on.set()

    @property
    def dimension(self) -> int | None:
        return None

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.asked.append(texts)
        assert self.goes_on.wait(20)
        if self.is_away:
            raise EmbedderUnavailable("it is away")
        return MODEL.embed(texts)[:, : self.width]

    def close(self) -> None:
        self.goes_on.set()


class World:
    """Units, a clock, and an embedder elsewhere."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.texts: list[str] = []
        self.log = "one"
        self.now = 0.0
        self.embedder = Elsewhere()
        self.late = self.opened()

    def opened(self) -> Late:
        units = Units(lambda: len(self.texts), self._wanted)
        return Late(self.path, self.embedder, units, now=lambda: self.now)

    def again(self) -> None:
        self.late.close()
        self.embedder = Elsewhere()
        self.late = self.opened()

    def say(self, *texts: str) -> None:
        self.texts += texts

    def work(self, until: Callable[[], bool]) -> None:
        """Until it is so; woken as the process is."""
        while not until():
            seconds = self.late.work()
            if seconds is None and not until():
                assert select.select([self.late.wakes], [], [], 20)[0], "nothing came"

    def work_all(self) -> None:
        self.work(lambda: self.late.missing == 0)

    def is_ranked(self, query: str = "weather") -> bool:
        return self.late.vector_of(query) is not None

    def _wanted(self, first: int, count: int) -> list[Wanted]:
        return [
            Wanted(number + 1, f"{self.log}-{number}", self.texts[number])
            for number in range(first, min(first + count, len(self.texts)))
        ]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "late")
    yield world
    world.late.close()


def nearest(world: World, query: str) -> list[int]:
    vector = world.late.vector_of(query)
    assert vector is not None
    return world.late.rows.nearest(vector, None, 10)[0].tolist()


def test_what_is_said_is_ranked_at_once_while_the_embedder_answers(world: World) -> None:
    world.say("rain in Lisbon", "the parser lost a token")
    assert nearest(world, "weather in Portugal")[0] == 0
    world.say("snow in Porto, Portugal")
    assert nearest(world, "weather in Portugal, Porto")[0] == 2


def test_units_come_in_batches_in_their_order(world: World) -> None:
    world.say(*(f"unit number {number}" for number in range(3 * BATCH_UNITS + 1)))
    world.work_all()
    assert [len(texts) for texts in world.embedder.asked] == [BATCH_UNITS] * 3 + [1]
    assert nearest(world, "unit number 33")[0] == 33


def test_a_search_waits_for_a_few_units_and_not_for_many(world: World) -> None:
    world.say("first")
    world.work_all()
    world.say(*["more"] * AWAITED_UNITS)
    assert world.is_ranked()
    assert world.late.missing == 0
    world.say(*["more"] * (AWAITED_UNITS + 1))
    assert world.is_ranked()
    assert world.late.missing == AWAITED_UNITS + 1


def test_it_does_not_rank_while_too_many_are_missing(world: World) -> None:
    world.say(*["text"] * (MISSING_UNITS_MAX + BATCH_UNITS + 1))
    world.work(lambda: world.late.count == BATCH_UNITS)
    assert not world.is_ranked()
    world.work(lambda: world.late.missing <= MISSING_UNITS_MAX)
    assert world.is_ranked()


def test_while_it_is_away_it_is_asked_now_and_then(world: World) -> None:
    world.say("first")
    world.embedder.is_away = True
    assert not world.is_ranked()
    assert world.late.trouble == "it is away"
    asked = len(world.embedder.asked)
    assert not world.is_ranked(), "and nobody waits for it"
    assert len(world.embedder.asked) == asked
    assert world.late.work() == pytest.approx(1.0)
    world.now += 1.0
    assert not world.is_ranked()
    assert world.late.work() == pytest.approx(2.0), "each time later"


def test_when_it_is_back_what_was_said_meanwhile_gets_its_vectors(world: World) -> None:
    world.say("rain in Lisbon")
    world.work_all()
    world.embedder.is_away = True
    world.say("snow in Porto, Portugal")
    assert not world.is_ranked()
    world.embedder.is_away = False
    world.now += 100
    assert nearest(world, "weather in Porto, Portugal")[0] == 1
    assert world.late.trouble is None


def test_a_query_that_is_not_answered_in_time_is_done_without(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.say("first")
    world.work_all()
    monkeypatch.setattr(late, "QUERY_SECONDS", 0.01)
    world.embedder.goes_on.clear()
    assert not world.is_ranked()
    assert "no answer" in (world.late.trouble or "")
    world.now += 100
    assert not world.is_ranked("another"), "the one before still hangs"
    assert len(world.embedder.asked) == 2


def test_a_unit_that_is_not_embedded_in_time_is_not_waited_for_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.say("first")
    world.work_all()
    assert world.is_ranked()
    monkeypatch.setattr(late, "QUERY_SECONDS", 0.01)
    world.embedder.goes_on.clear()
    world.say("second")
    assert world.is_ranked(), "by what has a vector: the query is known"
    assert world.late.missing == 1
    assert world.late.trouble is not None
    world.embedder.goes_on.set()
    world.work_all()
    assert world.late.trouble is None


def test_a_query_is_embedded_once(world: World) -> None:
    world.say("first")
    world.work_all()
    assert all(world.is_ranked("the same") for _ in range(3))
    assert world.embedder.asked.count(["the same"]) == 1


def test_without_units_there_is_nothing_to_rank(world: World) -> None:
    assert not world.is_ranked()
    assert world.embedder.asked == []


# --- After a restart -------------------------------------------------------------------------------------------------


def test_what_has_a_vector_is_not_embedded_again(world: World) -> None:
    world.say("rain in Lisbon", "the parser lost a token")
    world.work_all()
    world.again()
    world.say("snow in Porto, Portugal")
    world.work_all()
    assert world.embedder.asked == [["snow in Porto, Portugal"]]
    assert nearest(world, "weather in Porto, Portugal")[0] == 2


def test_vectors_wait_for_an_index_that_is_built_again(world: World) -> None:
    world.say("one", "two", "three")
    world.work_all()
    world.texts, texts = world.texts[:1], world.texts
    world.again()
    assert world.late.work() is None
    assert not world.is_ranked()
    world.texts = texts
    assert world.is_ranked()
    assert world.embedder.asked == [["weather"]]


def test_vectors_of_another_log_are_made_again(world: World) -> None:
    world.say("rain in Lisbon", "the parser lost a token")
    world.work_all()
    world.log, world.texts = "another", ["the parser lost a token", "rain in Lisbon"]
    world.again()
    assert nearest(world, "weather in Lisbon")[0] == 1


@pytest.mark.parametrize("name", ["rows", "newest"])
@pytest.mark.parametrize("damage", [b"", b"garbage", b"[" * 5_000])
def test_damaged_vectors_are_made_again(world: World, name: str, damage: bytes) -> None:
    world.say("rain in Lisbon", "the parser lost a token")
    world.work_all()
    world.late.close()
    (world.path / name).write_bytes(damage)
    world.again()
    assert nearest(world, "weather in Lisbon")[0] == 0


def test_rows_whose_count_is_gone_are_made_again_and_that_is_said(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.say("rain in Lisbon")
    world.work_all()
    assert not caplog.text
    world.late.close()
    (world.path / "newest").unlink()
    world.again()
    world.work_all()
    assert world.embedder.asked == [["rain in Lisbon"]]
    assert "are made again" in caplog.text


def test_whole_rows_of_others_are_made_again(world: World, tmp_path: Path) -> None:
    world.say("rain in Lisbon", "the parser lost a token")
    world.work_all()
    other = World(tmp_path / "other")
    other.say("the parser lost a token", "rain in Lisbon")
    other.work_all()
    other.late.close()
    world.late.close()
    (world.path / "rows").write_bytes((other.path / "rows").read_bytes())
    world.again()
    world.work_all()
    assert nearest(world, "weather in Lisbon")[0] == 0


def test_rows_that_were_not_counted_are_made_again(world: World) -> None:
    world.say("rain in Lisbon")
    world.work_all()
    newest = (world.path / "newest").read_bytes()
    world.say("the parser lost a token")
    world.work_all()
    world.late.close()
    (world.path / "newest").write_bytes(newest)
    world.again()
    world.work_all()
    assert world.embedder.asked == [["the parser lost a token"]]
    assert nearest(world, "a lost token")[0] == 1


def test_another_dimension_by_the_same_name_is_refused(world: World) -> None:
    world.say("rain in Lisbon")
    world.work_all()
    world.again()
    world.embedder.width = 128
    assert not world.is_ranked()
    assert "128 numbers come, and what is indexed has 256" in (world.late.trouble or "")


def test_a_disk_that_takes_nothing_is_told_and_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    world.say("rain in Lisbon")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        world.work(lambda: world.late.trouble is not None)
    assert "No space left" in (world.late.trouble or "")
    world.now += 100
    world.work_all()
    assert world.late.count == 1
    assert np.isclose(world.late.rows.cosines(MODEL.embed(["rain in Lisbon"])[0], np.array([0]))[0] or 0, 1, atol=0.01)
