"""How many of what, for people."""

from engram_bus.words import counted


def test_one_is_not_several() -> None:
    assert [counted(number, "unit") for number in (0, 1, 2, 1_204)] == ["0 units", "1 unit", "2 units", "1,204 units"]
