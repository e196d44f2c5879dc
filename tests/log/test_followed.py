"""A log that another process writes is read as one's own is: what cannot be read is told in the contract's words."""

from pathlib import Path
from typing import NoReturn

import lmdb
import pytest

from engram_bus.errors import LogDamaged
from engram_bus.log.lmdb.index import LmdbIndex
from tests.contracts.followed import opened_and_followed
from tests.values import sealed, unit


def test_where_contexts_began_is_damage_where_lmdb_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupted(*_: object) -> NoReturn:
        raise lmdb.CorruptedError("a page is not what it should be")

    with opened_and_followed(tmp_path, behind=0) as log:
        log.append(sealed(log, [unit(1)]))
        monkeypatch.setattr(LmdbIndex, "first_seqs", corrupted)
        with pytest.raises(LogDamaged, match="cannot be read: a page is not what it should be"):
            log.context_ids("", prefix="", limit=9)
