"""Contexts: what an update asks for becomes units, and units, live or folded again, become the same state."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.decisions.contexts import (
    CHANGED,
    CLOSED,
    CREATED,
    JOINED,
    LEFT,
    PINNED,
    REOPENED,
    UNPINNED,
    Contexts,
)
from engram_bus.errors import ContextClosed, EngramError, TooLarge, VersionMoved
from engram_bus.limits import CONTEXT_AGENTS_MAX, CONTEXT_PINS_MAX, META_BYTES_MAX, META_ENTRIES_MAX
from engram_bus.units import AppendAtomic, Command, Context, Stamp, UnitType, UpdateContext, WorkUnit, ts_text
from tests.values import append

STAMP = Stamp(0, 0)


class Table:
    """Contexts with the log they came from: decides and records as the writer does."""

    def __init__(self) -> None:
        self.contexts = Contexts()
        self.units: list[WorkUnit] = []

    def ask(self, command: Command) -> list[tuple[str | None, dict[str, Any]]]:
        """Decide a command and record it; gives the kinds and changes of its units."""
        drafts = self.contexts.decide(command, STAMP)
        for draft in drafts:
            unit = WorkUnit(
                seq=len(self.units) + 1,
                id=STAMP.unit_id(len(self.units)),
                context_id=draft.context_id,
                version=self.contexts.version(draft.context_id) + 1,
                agent_id=draft.agent_id,
                type=draft.type,
                ts=ts_text(len(self.units) + 1),
                content_type=draft.content_type,
                kind=draft.kind,
                payload=draft.payload,
            )
            self.units.append(unit)
            self.contexts.evolve(unit)
        return [(draft.kind, msgspec.json.decode(draft.payload) if draft.kind else {}) for draft in drafts]

    def view(self, context_id: str = "plan") -> Context:
        context = self.contexts.view(context_id)
        assert context is not None
        return context


@pytest.fixture
def table() -> Table:
    return Table()


def update(context_id: str = "plan", **changes: Any) -> UpdateContext:
    return UpdateContext(context_id=context_id, agent_id="ann", **changes)


# --- What a context is -----------------------------------------------------------------------------------------------


def test_a_context_exists_from_its_first_unit_on(table: Table) -> None:
    assert table.contexts.view("plan") is None
    assert (table.contexts.version("plan"), len(table.contexts)) == (0, 0)
    assert table.ask(append()) == [(None, {})]
    assert table.view() == Context("plan", 1, created_at=ts_text(1), updated_at=ts_text(1))
    table.ask(append())
    assert table.view() == Context("plan", 2, created_at=ts_text(1), updated_at=ts_text(2))
    assert len(table.contexts) == 1


def test_an_update_makes_a_context_and_says_all_of_it(table: Table) -> None:
    made = table.ask(
        update(display_name="Plan", add_agents=("ann", "bob"), pin_units=("u",), meta={"a": "1"}, fences=("src/*",))
    )
    assert made == [
        (CREATED, {"display_name": "Plan", "meta": {"a": "1"}, "fences": ["src/*"]}),
        (JOINED, {"agents": ["ann", "bob"]}),
        (PINNED, {"units": ["u"]}),
    ]
    assert table.view() == Context(
        id="plan",
        version=3,
        created_at=ts_text(1),
        updated_at=ts_text(3),
        display_name="Plan",
        agent_ids=["ann", "bob"],
        pinned_units=["u"],
        meta={"a": "1"},
        fences=["src/*"],
    )


def test_the_units_of_a_change_are_the_buss_own_and_say_who_asked(table: Table) -> None:
    (draft,) = table.contexts.decide(update(), STAMP)
    assert (draft.type, draft.kind, draft.agent_id) == (UnitType.SYSTEM, CREATED, "ann")
    assert (draft.content_type, draft.payload) == ("application/json", b"{}")


def test_only_what_changes_is_recorded(table: Table) -> None:
    table.ask(update(display_name="Plan", add_agents=("ann",), pin_units=("u",), meta={"a": "1"}, fences=("x",)))
    nothing_new = update(display_name="Plan", add_agents=("ann",), pin_units=("u",), meta={"a": "1"}, fences=("x",))
    assert table.ask(nothing_new) == []
    assert table.ask(update()) == []
    assert table.ask(update(remove_agents=("eve",), unpin_units=("v",), meta={"gone": None}, closed=False)) == []
    assert table.ask(update(add_agents=("ann", "bob", "bob"), meta={"a": "1", "b": "2"})) == [
        (CHANGED, {"meta": {"b": "2"}}),
        (JOINED, {"agents": ["bob"]}),
    ]


def test_what_is_taken_away_goes_before_what_comes(table: Table) -> None:
    table.ask(update(add_agents=("ann",), pin_units=("u",), meta={"a": "1"}, fences=("x",), display_name="Plan"))
    changed = update(
        add_agents=("bob",),
        remove_agents=("ann",),
        pin_units=("v",),
        unpin_units=("u",),
        meta={"a": None, "b": ""},
        fences=(),
        display_name="",
        closed=True,
    )
    assert table.ask(changed) == [
        (CHANGED, {"display_name": "", "meta": {"a": None, "b": ""}, "fences": []}),
        (LEFT, {"agents": ["ann"]}),
        (JOINED, {"agents": ["bob"]}),
        (UNPINNED, {"units": ["u"]}),
        (PINNED, {"units": ["v"]}),
        (CLOSED, {}),
    ]
    view = table.view()
    assert (view.agent_ids, view.pinned_units, view.meta, view.fences, view.display_name, view.closed) == (
        ["bob"],
        ["v"],
        {"b": ""},
        [],
        "",
        True,
    )


def test_a_view_is_not_the_state(table: Table) -> None:
    table.ask(update(add_agents=("ann",), meta={"a": "1"}))
    table.view().agent_ids.append("eve")
    table.view().meta["b"] = "2"
    assert (table.view().agent_ids, table.view().meta) == (["ann"], {"a": "1"})


# --- Refusals --------------------------------------------------------------------------------------------------------


def test_an_expected_version_is_the_contexts_version(table: Table) -> None:
    table.ask(append(expected_version=0))
    table.ask(append(expected_version=1))
    table.ask(update(expected_version=2, meta={"a": "1"}))
    for stale in (append(expected_version=2), update(expected_version=0), append("other", expected_version=1)):
        with pytest.raises(VersionMoved) as caught:
            table.ask(stale)
        assert caught.value.field == "expected_version"
        assert caught.value.details["current_version"] in (0, 3)
    assert table.contexts.version("plan") == 3


def test_in_an_atomic_batch_versions_count_the_units_before(table: Table) -> None:
    batch = (append(expected_version=0), append("other", expected_version=0), append(expected_version=1))
    assert len(table.ask(AppendAtomic(appends=batch))) == 3
    with pytest.raises(VersionMoved) as caught:
        table.ask(AppendAtomic(appends=(append(), append(expected_version=2))))
    assert (caught.value.index, caught.value.details) == (1, {"current_version": 3})


def test_a_closed_context_takes_nothing_until_it_is_reopened(table: Table) -> None:
    table.ask(append())
    assert table.ask(update(closed=True)) == [(CLOSED, {})]
    for refused in (append(), AppendAtomic(appends=(append("other"), append())), update(meta={"a": "1"})):
        with pytest.raises(ContextClosed) as caught:
            table.ask(refused)
        assert caught.value.field == "context_id"
    assert caught.value.message == "context 'plan' is closed: reopen it with closed=false"
    for change in ("add_agents", "remove_agents", "pin_units", "unpin_units", "fences"):
        with pytest.raises(ContextClosed):
            table.ask(update(**{change: ("x",)}))
    with pytest.raises(ContextClosed):
        table.ask(update(display_name=""))
    assert table.ask(update(closed=True)) == []
    assert table.ask(update(closed=False, display_name="Again")) == [
        (REOPENED, {}),
        (CHANGED, {"display_name": "Again"}),
    ]
    table.ask(append())
    assert not table.view().closed


def test_the_agents_of_a_context_are_bounded(table: Table) -> None:
    table.ask(update(add_agents=agents(0, CONTEXT_AGENTS_MAX)))
    table.ask(update(add_agents=agents(0, 5)))
    table.ask(update(add_agents=("new",), remove_agents=agents(0, 1)))
    with pytest.raises(TooLarge) as caught:
        table.ask(update(add_agents=("another",)))
    assert (caught.value.field, caught.value.limit) == ("add_agents", CONTEXT_AGENTS_MAX)


def test_the_pins_of_a_context_are_bounded(table: Table) -> None:
    table.ask(update(pin_units=agents(0, CONTEXT_PINS_MAX)))
    table.ask(update(pin_units=("new",), unpin_units=agents(0, 1)))
    with pytest.raises(TooLarge) as caught:
        table.ask(update(pin_units=("another",)))
    assert (caught.value.field, caught.value.limit) == ("pin_units", CONTEXT_PINS_MAX)


def test_the_meta_of_a_context_is_bounded_over_all_updates(table: Table) -> None:
    table.ask(update(meta=dict.fromkeys(agents(0, META_ENTRIES_MAX), "")))
    table.ask(update(meta={"new": "", agents(0, 1)[0]: None}))
    with pytest.raises(TooLarge) as caught:
        table.ask(update(meta={"another": ""}))
    assert (caught.value.field, caught.value.limit) == ("meta", META_ENTRIES_MAX)
    for letter in "abcdefgh":
        table.ask(update("wide", meta={letter: "v" * (META_BYTES_MAX // 8 - 1)}))
    with pytest.raises(TooLarge) as caught:
        table.ask(update("wide", meta={"i": ""}))
    assert (caught.value.field, caught.value.limit) == ("meta", META_BYTES_MAX)


def agents(first: int, count: int) -> tuple[str, ...]:
    return tuple(f"n{number}" for number in range(first, first + count))


# --- Folding ---------------------------------------------------------------------------------------------------------


def test_a_version_that_is_not_next_is_our_mistake(table: Table) -> None:
    table.ask(append())
    with pytest.raises(AssertionError, match="version 1 after 1 at seq 1"):
        table.contexts.evolve(table.units[0])


def test_a_kind_this_version_does_not_write_is_our_mistake(table: Table) -> None:
    table.ask(update())
    later = msgspec.structs.replace(table.units[0], seq=2, version=2, kind="context.merged")
    with pytest.raises(AssertionError, match="writes no such kind"):
        table.contexts.evolve(later)


def test_a_change_with_keys_of_a_later_version_is_read(table: Table) -> None:
    table.ask(update())
    later = msgspec.structs.replace(table.units[0], seq=2, version=2, kind=CHANGED, payload=b'{"later": 1}')
    table.contexts.evolve(later)
    assert table.contexts.version("plan") == 2


CONTEXT = st.sampled_from(["a", "b"])
NAMES = st.lists(st.sampled_from("xyz"), max_size=3).map(tuple)


def as_admitted(command: UpdateContext) -> UpdateContext:
    """Nothing is both added and removed: admission refuses that."""
    return msgspec.structs.replace(
        command,
        remove_agents=tuple(name for name in command.remove_agents if name not in command.add_agents),
        unpin_units=tuple(name for name in command.unpin_units if name not in command.pin_units),
    )


COMMANDS = st.one_of(
    st.builds(append, CONTEXT, expected_version=st.none() | st.integers(0, 5)),
    st.builds(
        UpdateContext,
        context_id=CONTEXT,
        agent_id=st.just("ann"),
        display_name=st.none() | st.sampled_from(["", "A"]),
        add_agents=NAMES,
        remove_agents=NAMES,
        pin_units=NAMES,
        unpin_units=NAMES,
        meta=st.dictionaries(st.sampled_from("pq"), st.none() | st.sampled_from(["", "1"]), max_size=2),
        fences=st.none() | NAMES,
        closed=st.none() | st.booleans(),
        expected_version=st.none() | st.integers(0, 5),
    ).map(as_admitted),
)


@given(st.lists(COMMANDS, max_size=25), st.data())
def test_live_folded_and_restored_are_the_same_state(commands: list[Command], data: st.DataObject) -> None:
    table = Table()
    for command in commands:
        try:
            table.ask(command)
        except EngramError:
            continue
    cut = data.draw(st.integers(0, len(table.units)))
    folded, restored = Contexts(), Contexts()
    for unit in table.units[:cut]:
        folded.evolve(unit)
    restored.restore(folded.snapshot())
    for unit in table.units[cut:]:
        folded.evolve(unit)
        restored.evolve(unit)
    assert restored.snapshot() == folded.snapshot() == table.contexts.snapshot()
    restored.restore(None)
    assert (len(restored), restored.snapshot()) == (0, Contexts().snapshot())


@given(st.lists(COMMANDS, max_size=25))
def test_an_update_leaves_what_it_asked_for_and_asking_again_changes_nothing(commands: list[Command]) -> None:
    table = Table()
    for command in commands:
        before = table.contexts.snapshot()
        try:
            table.ask(command)
        except EngramError:
            assert table.contexts.snapshot() == before, "a refusal leaves no trace"
            continue
        if isinstance(command, UpdateContext):
            check(table.view(command.context_id), command)
            if not command.closed:
                assert table.ask(msgspec.structs.replace(command, expected_version=None)) == []


def check(view: Context, command: UpdateContext) -> None:
    assert set(command.add_agents) <= set(view.agent_ids)
    assert set(view.agent_ids).isdisjoint(command.remove_agents)
    assert set(command.pin_units) <= set(view.pinned_units)
    assert set(view.pinned_units).isdisjoint(command.unpin_units)
    assert {key: view.meta.get(key) for key in command.meta} == command.meta
    assert command.display_name in (None, view.display_name)
    assert command.fences in (None, tuple(view.fences))
    assert command.closed in (None, view.closed)
