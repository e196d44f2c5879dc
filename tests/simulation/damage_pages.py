"""Where in a file of LMDB which kind of byte lies: pages, their headers, pointers, nodes and keys, and the records."""

import struct
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

PAGE_BYTES = 4_096
_HEADER_BYTES = 16
_NODE_BYTES = 8
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_BIG, _TABLE = 1, 2
_ROOT_AT = 40
"""Of what describes a tree, in a meta page or as a table's value."""
_META_TREES = (40, 88)
"""The trees of free pages and of all else."""
_META = (
    ("magic", 16, 20),
    ("version", 20, 24),
    ("map size", 32, 40),
    ("free tree", 40, 88),
    ("tree's depth and counts", 88, 128),
    ("root", 128, 136),
    ("last page", 136, 144),
    ("txnid", 144, 152),
)
_RECORD = (
    ("version", 0, 1),
    ("flags", 1, 2),
    ("units of its command", 2, 4),
    ("CRC", 4, 8),
    ("seq", 8, 16),
    ("chain digest", 16, 48),
    ("payload offset", 48, 52),
    ("private size", 52, 56),
    ("place in its command", 56, 58),
    ("salt", 58, 74),
)


class Span(NamedTuple):
    """Bytes `first` to `end` of a file."""

    first: int
    end: int


Places = dict[str, list[Span]]


def places(content: bytes, *, has_records: bool) -> Places:
    """The spans of each kind of byte, by its name. What no tree leads to from the newer meta page is free."""
    found: Places = defaultdict(list)
    for number in (0, 1):
        for name, first, end in _META:
            found[f"meta page {number}: {name}"].append(Span(number * PAGE_BYTES + first, number * PAGE_BYTES + end))
    newer = max((0, PAGE_BYTES), key=lambda at: _u64(content, at + 144))
    live = {0, 1}
    for tree in _META_TREES:
        _tree(content, _u64(content, newer + tree + _ROOT_AT), found, live, has_records=has_records)
    found["free pages"] = [_page(number) for number in range(len(content) // PAGE_BYTES) if number not in live]
    return {kind: [span for span in spans if span.end > span.first] for kind, spans in found.items() if any(spans)}


def pages(content: bytes) -> Iterator[Span]:
    return (_page(number) for number in range(len(content) // PAGE_BYTES))


def _page(number: int) -> Span:
    return Span(number * PAGE_BYTES, (number + 1) * PAGE_BYTES)


def _u64(content: bytes, at: int) -> int:
    return int(struct.unpack_from("<Q", content, at)[0])


def _tree(content: bytes, number: int, found: Places, live: set[int], *, has_records: bool) -> None:
    if number == 2**64 - 1:
        return
    live.add(number)
    at = number * PAGE_BYTES
    flags, lower, upper = struct.unpack_from("<HHH", content, at + 10)
    kind = "branch" if flags & _BRANCH else "leaf"
    found[f"{kind} page: header"].append(Span(at, at + _HEADER_BYTES))
    found[f"{kind} page: pointers"].append(Span(at + _HEADER_BYTES, at + lower))
    found[f"{kind} page: not in use"].append(Span(at + lower, at + upper))
    for offset in struct.unpack_from(f"<{(lower - _HEADER_BYTES) // 2}H", content, at + _HEADER_BYTES):
        node = at + offset
        low, high, node_flags, key_bytes = struct.unpack_from("<HHHH", content, node)
        value = node + _NODE_BYTES + key_bytes
        found[f"{kind} page: node"].append(Span(node, node + _NODE_BYTES))
        found[f"{kind} page: key"].append(Span(node + _NODE_BYTES, value))
        if flags & _BRANCH:
            child = low | high << 16 | node_flags << 32
            _tree(content, child, found, live, has_records=has_records)
        elif node_flags & _BIG:
            _overflow(content, _u64(content, value), low | high << 16, found, live, has_records=has_records)
        elif node_flags & _TABLE:
            found["leaf page: table"].append(Span(value, value + 48))
            _tree(content, _u64(content, value + _ROOT_AT), found, live, has_records=has_records)
        else:
            _value(content, Span(value, value + (low | high << 16)), found, has_records=has_records)


def _overflow(
    content: bytes, number: int, size_bytes: int, found: Places, live: set[int], *, has_records: bool
) -> None:
    at = number * PAGE_BYTES
    live.update(range(number, number + int(struct.unpack_from("<I", content, at + 12)[0])))
    found["overflow page: header"].append(Span(at, at + _HEADER_BYTES))
    value = Span(at + _HEADER_BYTES, at + _HEADER_BYTES + size_bytes)
    found["overflow page: value"].append(value)
    _value(content, value, found, has_records=has_records)


def _value(content: bytes, value: Span, found: Places, *, has_records: bool) -> None:
    if not has_records or content[value.first] != 1 or value.end - value.first < 74:
        found["leaf page: value"].append(value)
        return
    for name, first, end in _RECORD:
        found[f"record: {name}"].append(Span(value.first + first, value.first + end))
    body_at = value.first + 74 + int(struct.unpack_from(">I", content, value.first + 52)[0])
    found["record: private part"].append(Span(value.first + 74, body_at))
    found["record: body"].append(Span(body_at, value.end))
