"""The log is read beside the bus as the bus wrote it, even where the bus's index is behind."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from engram_bus.log.index import Table, context_key
from engram_bus.log.record import RecordError
from engram_bus.projections import follower as following
from engram_bus.projections.follower import Follower
from engram_bus.units import WorkUnit
from tests.disk import opened, stored, tampering, tenant
from tests.values import sealed, unit


@contextmanager
def followed(path: Path) -> Iterator[Follower]:
    follower = Follower(tenant(path))
    try:
        yield follower
    finally:
        follower.close()


def filled(path: Path, count: int) -> list[WorkUnit]:
    """Every third unit is of one context, the others of another."""
    versions = {"plan": 0, "side": 0}
    units = []
    for seq in range(1, count + 1):
        context = "side" if seq % 3 else "plan"
        versions[context] += 1
        units.append(unit(seq, context_id=context, version=versions[context], payload=b"x" * seq))
    with opened(path) as log:
        if units:
            log.append(sealed(log, units))
    return units


def test_units_come_in_order_up_to_a_bound(tmp_path: Path) -> None:
    units = filled(tmp_path, 30)
    with followed(tmp_path) as follower:
        assert follower.head == 30
        assert follower.units(0, units_max=100, bytes_max=2**20) == units
        assert follower.units(10, units_max=5, bytes_max=2**20) == units[10:15]
        assert follower.units(10, units_max=5, bytes_max=1) == units[10:11]
        assert follower.units(30, units_max=5, bytes_max=1) == []
        assert follower.unit(7) == units[6]


def test_an_empty_log_has_none(tmp_path: Path) -> None:
    filled(tmp_path, 0)
    with followed(tmp_path) as follower:
        assert follower.head == 0
        assert follower.units(0, units_max=9, bytes_max=9) == []


def test_what_came_before_in_a_context(tmp_path: Path) -> None:
    of_plan = filled(tmp_path, 30)[2::3]
    with followed(tmp_path) as follower:
        assert follower.before(of_plan[0], 3) == []
        assert follower.before(of_plan[2], 3) == of_plan[:2]
        assert follower.before(of_plan[9], 3) == of_plan[6:9]


def forget(path: Path, units: Sequence[WorkUnit], *, cursor: int) -> None:
    """Let the bus's index go only up to a seq."""
    with tampering(path, "index", Table.CONTEXTS) as txn:
        for one in units:
            assert txn.delete(context_key(one.context_id, one.version))
    with tampering(path, "index", Table.STATE) as txn:
        txn.put(b"cursor", cursor.to_bytes(8, "big") + stored(txn, b"cursor")[8:])


@pytest.mark.parametrize("behind", [1, 7, 30])
def test_a_bus_whose_index_is_behind_its_log_is_read_all_the_same(
    tmp_path: Path, behind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_SCAN_UNITS", 4)
    units = filled(tmp_path, 30)
    forget(tmp_path, units[30 - behind :], cursor=30 - behind)
    with followed(tmp_path) as follower:
        for one in units:
            expected = [other for other in units[: one.seq - 1] if other.context_id == one.context_id]
            assert follower.before(one, 4) == expected[-4:]


def test_an_index_that_lost_a_unit_is_damage(tmp_path: Path) -> None:
    units = filled(tmp_path, 30)
    forget(tmp_path, units[8:9], cursor=30)
    with followed(tmp_path) as follower, pytest.raises(RecordError):
        follower.before(units[14], 4)


def test_units_end_before_one_that_cannot_be_read(tmp_path: Path) -> None:
    units = filled(tmp_path, 30)
    with tampering(tmp_path, "log") as txn:
        txn.put((20).to_bytes(8, "big"), b"nothing of the kind")
    with followed(tmp_path) as follower:
        assert follower.units(10, units_max=100, bytes_max=2**20) == units[10:19]
        with pytest.raises(RecordError):
            follower.units(19, units_max=100, bytes_max=2**20)
