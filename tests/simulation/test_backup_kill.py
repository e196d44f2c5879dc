"""Backups, restores and repairs are killed at any moment: what was there is there, and what is half-made is refused."""

import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from engram_bus.backup.checking import check_backup
from engram_bus.backup.manifest import is_backup, load
from engram_bus.backup.segments import records
from engram_bus.errors import DataDirectoryError
from engram_bus.log.index import seq_key
from engram_bus.verify import verify
from tests.backup.logs import fill, raws_of
from tests.disk import opened, stored, tampering
from tests.process import ENGRAM, engram, environment

KILLS = [4, pytest.param(40, marks=[pytest.mark.long, pytest.mark.timeout(1_800)])]


@pytest.fixture
def dice() -> random.Random:
    seed = random.getrandbits(32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    fill(tmp_path / "there" / "data", range(1, 8_001), group=4, payload_bytes=900)
    return tmp_path / "there" / "data"


def killed(dice: random.Random, *arguments: object) -> None:
    """Run a command until a moment of its life that nobody knows; often it was done by then."""
    with subprocess.Popen([*ENGRAM, *map(str, arguments)], env=environment(), stdout=-3, stderr=-3) as process:
        time.sleep(dice.uniform(0.2, 3))
        process.kill()


@pytest.mark.parametrize("kills", KILLS)
def test_a_backup(data: Path, tmp_path: Path, dice: random.Random, kills: int) -> None:
    kept, head = tmp_path / "backup", 8_000
    for _ in range(kills):
        before = load(kept).head if is_backup(kept) else 0
        killed(dice, "backup", data, kept)
        if is_backup(kept):
            assert check_backup(kept).damage == ()
            assert load(kept).head >= before
        fill(data, range(head + 1, head + 101), group=4)
        head += 100
    assert engram("backup", str(data), str(kept)).returncode == 0
    assert [record.raw for record in records(kept, load(kept))] == raws_of(data)


@pytest.mark.parametrize("kills", KILLS)
def test_a_restore(data: Path, tmp_path: Path, dice: random.Random, kills: int) -> None:
    kept, restored = tmp_path / "backup", tmp_path / "restored"
    assert engram("backup", str(data), str(kept)).returncode == 0
    whole = raws_of(data)
    for _ in range(kills):
        killed(dice, "restore", kept, restored)
        if (restored / "identity").exists():
            assert raws_of(restored) == whole
        elif any(restored.glob("tenants/*/log/data.mdb")):
            with pytest.raises(DataDirectoryError, match="identity is missing beside a log"), opened(restored):
                pass
            assert "was not finished" in engram("restore", str(kept), str(restored)).stderr
        shutil.rmtree(restored, ignore_errors=True)


@pytest.mark.parametrize("kills", KILLS)
def test_a_repair(data: Path, tmp_path: Path, dice: random.Random, kills: int) -> None:
    kept, whole = tmp_path / "backup", raws_of(data)
    assert engram("backup", str(data), str(kept)).returncode == 0
    for _ in range(kills):
        with tampering(data, "log") as txn:
            txn.put(seq_key(4_000), stored(txn, seq_key(4_000))[:-1])
        killed(dice, "repair", data, "--from", kept)
        report = verify(data)
        if not report.is_whole:
            assert [damage.seq for damage in report.damage] == [4_000], "it is as it was"
            assert engram("repair", str(data), "--from", str(kept)).returncode == 0
        assert raws_of(data) == whole
