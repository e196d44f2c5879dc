"""How resources are named: one canonical form, and the order of trees, in which a resource covers what is below it."""

from functools import lru_cache


def canonical(resource: str) -> str:
    """The one name of a resource: no `.`, no `..` that can be resolved (above the root there is nothing), no slash at
    the end, none doubled but after a scheme.

    >>> canonical("repo/./src//../src/"), canonical("/../"), canonical("https://example.org/x")
    ('repo/src', '/', 'https://example.org/x')
    """
    if not (resource.startswith(".") or resource.endswith("/") or "/." in resource or "//" in resource):
        return resource
    kept: list[str] = []
    for place, segment in enumerate(resource.split("/")):
        match segment:
            case "..":
                if not kept or kept[-1] == "..":
                    kept.append(segment)
                elif kept[-1] != "":
                    kept.pop()
            case "":
                if place == 0 or (len(kept) == 1 and kept[0].endswith(":")):
                    kept.append(segment)
            case ".":
                pass
            case _:
                kept.append(segment)
    if len(kept) > 1 and kept[-1] == "":
        kept.pop()
    return "/".join(kept) or ("/" if kept else ".")


_REMEMBERED = 16_384
_REMEMBERED_LENGTH_MAX = 96
"""Lineages are remembered for short names only: at most 5 KB each in ASCII, and usually a tenth of that."""


def lineage(resource: str) -> tuple[str, ...]:
    """A canonical resource and everything above it, from the top. Asked several times in each decision about it.

    >>> lineage("/repo/src"), lineage("plan.md")
    (('/', '/repo', '/repo/src'), ('plan.md',))
    """
    return remembered(resource) if len(resource) <= _REMEMBERED_LENGTH_MAX else _lineage(resource)


def _lineage(resource: str) -> tuple[str, ...]:
    above = []
    end = resource.find("/")
    while end >= 0:
        above.append(resource[:end] or "/")
        end = resource.find("/", end + 1)
    if above != [resource]:
        above.append(resource)
    return tuple(above)


remembered = lru_cache(maxsize=_REMEMBERED)(_lineage)


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
