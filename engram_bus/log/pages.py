"""Pages of an LMDB file that a write comes across, looked at before.

Where one is not what it should be, LMDB would end the process in the middle of a commit (an assertion, a signal). They
are the first and the last of the tree of records, for it is only added to, and all that tell which pages are free. Who
looks holds a read transaction, so that nothing it leads to is written over meanwhile.
"""

import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

_META_BYTES = 152
_PAGE_BYTES_AT = struct.Struct("<40xI")
_TXN_AT = struct.Struct("<136xQQ")
"""In a meta page: the file's last page, and the transaction that wrote it."""
_TREE = struct.Struct("<6xH32xQ")
"""Depth and root of a tree, as a meta page describes it."""
_FREE_AT, _RECORDS_AT = 40, 88
_HEADER = struct.Struct("<Q2xHHH")
"""A page's own number, its flags, and where its free room begins and ends."""
_HEADER_BYTES = 16
_NODE = struct.Struct("<HHHH")
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_BIG, _TABLE = 1, 2
_NO_ROOT = 2**64 - 1
_FIRST_PAGE = 2
_DEPTH_MAX = 32
"""Of LMDB's own stack."""


class _WrongPageError(Exception):
    """What is wrong, and with which page."""


class _Node(NamedTuple):
    """A key's place: the page it leads to in a branch; its flags, and its value as it lies in a leaf."""

    child: int
    flags: int
    value: bytes
    value_bytes: int


def wrong_page(file: Path, transaction: int, *, everywhere: bool = False) -> str | None:
    """What is wrong with the first page that is not what it should be, as of a transaction that is being read; None
    where there is none, or where the file is of a later one already. `everywhere`: not at the ends of trees alone.
    """
    with file.open("rb") as content:
        (page_bytes,) = _PAGE_BYTES_AT.unpack_from(content.read(_META_BYTES))
        for at in (0, page_bytes):
            content.seek(at)
            meta = content.read(_META_BYTES)
            last_page, written_by = _TXN_AT.unpack_from(meta) if len(meta) == _META_BYTES else (0, 0)
            if written_by == transaction:
                return _Pages(content, page_bytes, last_page, everywhere=everywhere).wrong(meta)
    return None


class _Pages:
    def __init__(self, content: BinaryIO, page_bytes: int, last_page: int, *, everywhere: bool) -> None:
        self._content = content
        self._page_bytes = page_bytes
        self._last_page = last_page
        self._everywhere = everywhere
        self._seen: set[int] = set()
        self._free: list[int] = []

    def wrong(self, meta: bytes) -> str | None:
        try:
            self._walk(*_TREE.unpack_from(meta, _FREE_AT), is_free=True)
            self._walk(*_TREE.unpack_from(meta, _RECORDS_AT), is_free=False)
            for number in self._free:
                _require(number not in self._seen, number, "is in use, and listed as free")
        except _WrongPageError as exc:
            return str(exc)
        return None

    def _walk(self, depth: int, number: int, *, is_free: bool) -> None:
        """All of the tree of free pages; of the others, what lies at both ends."""
        if number == _NO_ROOT:
            return
        _require(0 < depth <= _DEPTH_MAX, number, f"cannot be the root of a tree {depth} deep")
        nodes = self._nodes(number, _LEAF if depth == 1 else _BRANCH)
        if depth > 1:
            _require(len(nodes) > 1 or is_free, number, "has fewer branches than two")
            for node in nodes if is_free or self._everywhere else {nodes[0], nodes[-1]}:
                self._walk(depth - 1, node.child, is_free=is_free)
            return
        for node in nodes:
            if is_free:
                self._check_free(number, node)
            elif node.flags & _BIG and self._everywhere:
                self._overflow_page(int.from_bytes(node.value, "little"), node.value_bytes)
            elif node.flags & _TABLE:
                _require(len(node.value) == _TREE.size, number, "does not describe a table")
                self._walk(*_TREE.unpack(node.value), is_free=False)

    def _nodes(self, number: int, kind: int) -> Sequence[_Node]:
        page = self._page(number, kind)
        _, _, lower, upper = _HEADER.unpack_from(page)
        count = (lower - _HEADER_BYTES) // 2
        _require(_HEADER_BYTES < lower <= upper <= self._page_bytes and lower % 2 == 0, number, "has no such room")
        pointers = struct.unpack_from(f"<{count}H", page, _HEADER_BYTES)
        return [self._node(number, page, pointer, upper, kind) for pointer in pointers]

    def _node(self, number: int, page: bytes, at: int, upper: int, kind: int) -> _Node:
        _require(upper <= at <= self._page_bytes - _NODE.size, number, "leads out of itself")
        low, high, flags, key_bytes = _NODE.unpack_from(page, at)
        value_at, value_bytes = at + _NODE.size + key_bytes, low | high << 16
        here = 0 if kind == _BRANCH else 8 if flags & _BIG else value_bytes
        _require(value_at + here <= self._page_bytes, number, "has an entry that is longer than itself")
        return _Node(value_bytes | flags << 32, flags, page[value_at : value_at + here], value_bytes)

    def _check_free(self, number: int, node: _Node) -> None:
        """The pages that one transaction left: how many, and which, the last one first."""
        value = node.value
        if node.flags & _BIG:
            value = self._overflow(int.from_bytes(value, "little"), node.value_bytes)
        _require(len(value) >= 8 and len(value) % 8 == 0, number, "does not list pages")
        count, *free = struct.unpack(f"<{len(value) // 8}Q", value)
        _require(count <= len(free), number, f"lists {count} free pages in {len(value)} bytes")
        falling = [*free[:count], _FIRST_PAGE - 1]
        _require(all(one > other for one, other in pairwise(falling)), number, "lists no free pages")
        _require(falling[0] <= self._last_page, number, "lists pages behind the end of the file")
        self._free += free[:count]

    def _overflow(self, number: int, value_bytes: int) -> bytes:
        self._overflow_page(number, value_bytes)
        self._content.seek(number * self._page_bytes + _HEADER_BYTES)
        value = self._content.read(value_bytes)
        _require(len(value) == value_bytes, number, "is cut off")
        return value

    def _overflow_page(self, number: int, value_bytes: int) -> None:
        """The first page of a value that is longer than one; the others are all its own."""
        self._page(number, _OVERFLOW)
        following = range(number + 1, number + -(-(_HEADER_BYTES + value_bytes) // self._page_bytes))
        _require(self._seen.isdisjoint(following), number, "is followed by a page of something else")
        self._seen.update(following)

    def _page(self, number: int, kind: int) -> bytes:
        _require(_FIRST_PAGE <= number <= self._last_page, number, "is not in the file")
        self._content.seek(number * self._page_bytes)
        page = self._content.read(self._page_bytes)
        _require(len(page) == self._page_bytes, number, "is cut off")
        _require(number not in self._seen, number, "is led to twice")
        self._seen.add(number)
        own_number, flags, _, _ = _HEADER.unpack_from(page)
        _require(own_number == number, number, f"says it is page {own_number}")
        # All of its bits: with one that means something in memory alone, a page would never be written.
        _require(flags == kind, number, "is of another kind")
        return page


def _require(is_so: bool, number: int, otherwise: str) -> None:
    if not is_so:
        raise _WrongPageError(f"page {number} {otherwise}")
