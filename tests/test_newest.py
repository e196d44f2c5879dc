"""The last units of a context are the log's, however often they were kept, added to, and pushed out."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_bus.codec import Entry
from engram_bus.embedded import Bus
from engram_bus.limits import NEWEST_UNITS_MAX
from engram_bus.log.memory import MemoryLog
from engram_bus.newest import Newest
from tests.values import sealed, unit

ALL = {"after": 0, "before": None, "reverse": True, "bytes_max": 10**9}
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.lists(st.sampled_from("abc"), min_size=1, max_size=5)),
        st.tuples(st.just("read"), st.sampled_from("abc"), st.integers(1, 9)),
    ),
    max_size=60,
)


@given(steps=STEPS, bytes_max=st.sampled_from([0, 900, 2_000, 10**9]))
def test_what_is_kept_is_what_the_log_has(steps: list[tuple[str, ...]], bytes_max: int) -> None:
    log, newest, versions = MemoryLog(), Newest(bytes_max=bytes_max), dict.fromkeys("abc", 0)
    for what, *step in steps:
        if what == "record":
            units = []
            for name in step[0]:
                versions[name] += 1
                units.append(unit(log.head + 1 + len(units), context_id=name, version=versions[name]))
            records = sealed(log, units)
            log.append(records)
            newest.take([Entry(record.unit.seq, record.body, record.unit) for record in records])
            continue
        name, limit = step
        found = log.read_context(name, units_max=int(limit), **ALL)
        kept = newest.of(name, int(limit))
        assert kept is None or [entry.seq for entry in kept] == [entry.seq for entry in found]
        newest.keep(name, found)
        assert newest._held_bytes <= bytes_max
        if bytes_max == 10**9 and found:
            kept = newest.of(name, int(limit))
            assert kept is not None
            assert [entry.seq for entry in kept] == [entry.seq for entry in found]


@pytest.mark.anyio
async def test_the_newest_page_is_the_same_kept_or_read(tmp_path: Path) -> None:
    async with Bus.open(tmp_path / "one") as bus, Bus.open(tmp_path / "other") as other:
        for at in range(NEWEST_UNITS_MAX + 20):
            for one in (bus, other):
                await one.append("plan" if at % 3 else "other", f"{at}", agent_id="ann")
            for limit in (1, 3, 100):
                page = bus.list("plan", limit=limit, reverse=True)
                fresh = other.list("plan", limit=limit, reverse=True, after=0, before=other.head + 1)
                assert [entry.seq for entry in page.entries] == [entry.seq for entry in fresh.entries]
                assert (page.next_page is None) == (fresh.next_page is None)
                assert page.applied_seq == at + 1
                if page.next_page is not None and at % 50 == 0:
                    rest = bus.list("plan", limit=1_000, reverse=True, page=page.next_page)
                    assert len(page.entries) + len(rest.entries) == len(bus.list("plan", limit=1_000).entries)
