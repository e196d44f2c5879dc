"""How resources are named: one canonical form, and the order of trees, in which a resource covers what is below it."""


def canonical(resource: str) -> str:
    """The one name of a resource: no `.` segment, no `..` that can be resolved, no slash at the end.

    >>> canonical("repo/./src/../src/"), canonical("/"), canonical("https://example.org/x")
    ('repo/src', '/', 'https://example.org/x')
    """
    if "/." not in resource and not resource.startswith(".") and not resource.endswith("/"):
        return resource
    kept: list[str] = []
    for segment in resource.split("/"):
        if segment == ".." and kept and kept[-1] not in ("", ".."):
            kept.pop()
        elif segment != ".":
            kept.append(segment)
    while len(kept) > 1 and kept[-1] == "":
        kept.pop()
    return "/".join(kept) or ("/" if resource.startswith("/") else ".")


def lineage(resource: str) -> list[str]:
    """A canonical resource and everything above it, from the top.

    >>> lineage("/repo/src"), lineage("plan.md")
    (['/', '/repo', '/repo/src'], ['plan.md'])
    """
    above = []
    end = resource.find("/")
    while end >= 0:
        above.append(resource[:end] or "/")
        end = resource.find("/", end + 1)
    if above != [resource]:
        above.append(resource)
    return above


def below(resource: str) -> tuple[str, str]:
    """The bounds, both excluded, between which every name below this resource sorts.

    >>> below("repo/src")
    ('repo/src/', 'repo/src0')
    """
    first = resource if resource.endswith("/") else resource + "/"
    return first, first[:-1] + "0"  # The character after the slash.


def covers(resource: str, other: str) -> bool:
    """Whether `other` is the resource or lies below it."""
    return other == resource or other.startswith(resource if resource.endswith("/") else resource + "/")
