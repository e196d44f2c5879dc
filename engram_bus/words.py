"""How many of what, for people."""


def counted(number: int, noun: str) -> str:
    """`1 unit`, `1,204 units`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
