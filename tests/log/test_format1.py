"""Logs of format 1 stay readable for ever: one that was written when the format was new, and what it holds."""

import json
import tarfile
from pathlib import Path

import pytest

from engram_bus.embedded import Bus
from engram_bus.units import UpdateContext
from engram_bus.verify import verify
from tests.disk import opened
from tests.fixtures import make_format1
from tests.fixtures.make_format1 import ARCHIVE, EXPECTED, REDACTED_SEQ, commands, described


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "format1", filter="data")
    return tmp_path / "format1"


def test_it_is_whole(path: Path) -> None:
    report = verify(path)
    assert report.damage == ()
    assert report.logs[0].epochs[0].first_seq == 1


def test_it_holds_what_it_held(path: Path) -> None:
    with opened(path) as log:
        found = described(log)
    expected = json.loads(EXPECTED.read_text())
    assert found["contexts"] == expected["contexts"]
    assert found["records"] == expected["records"]


async def test_it_goes_on(path: Path) -> None:
    """Repeats of the commands it was written by are answered by their units, and new ones are appended."""
    async with Bus.open(path) as bus:
        head = bus.head
        for command in commands():
            if command.idempotency_key is not None:
                answer = await bus.execute(command)
                assert answer.replayed
                assert (answer.context is not None) is isinstance(command, UpdateContext)
        assert bus.head == head
        assert (await bus.append("plan", "more", agent_id="ann")).seq == head + 1
    assert verify(path).damage == ()


def test_what_is_written_today_is_the_same(path: Path, tmp_path: Path) -> None:
    """Byte for byte, time and randomness being equal. A change here is a new format, and needs its number."""
    make_format1.write(tmp_path / "today")
    with opened(path) as old, opened(tmp_path / "today") as new:
        assert new.head == old.head
        for seq in range(1, old.head + 1):
            assert new.record(seq).raw == old.record(seq).raw
        assert old.record(REDACTED_SEQ).redacted
