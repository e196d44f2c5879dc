"""A cursor reads as it writes, and nothing else is one."""

import pytest

from engram_client.values import Cursor


@pytest.mark.parametrize("text", ["e1.7", "7", "0", "a.b.3"])
def test_a_cursor_reads_as_it_writes(text: str) -> None:
    assert str(Cursor.parse(text)) == text


@pytest.mark.parametrize("text", ["", ".", ".7", "e1.", "e1", "e1.-7", "e1.7.", "e1.\u0667", " 7"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        Cursor.parse(text)
