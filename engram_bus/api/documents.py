"""The documents the bus serves of itself."""


def pages(version: str) -> dict[str, tuple[str, bytes]]:
    """Static pages by path: content type and bytes."""
    return {}
