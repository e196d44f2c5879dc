"""The disk of the power-loss simulation: what it keeps, what it may lose, and that it does not invent anything."""

from collections.abc import Sequence
from random import Random

from tests.simulation.power_disk import PAGE_BYTES, SECTOR_BYTES, Begun, Disk
from tests.simulation.power_trace import Kind, Step

ROOT, A, B, BELOW = 10, 11, 12, 13
BEGUN = Begun("/disk", {".": (ROOT, None), "a": (A, b"old")})
MANY = 300


def write(inode: int, offset: int, data: bytes) -> Step:
    return Step(Kind.WRITE, 1, inode, offset, "", data)


def create(name: str, inode: int) -> Step:
    return Step(Kind.CREATE, 1, inode, 0, f"/disk/{name}", b"")


def begin(inode: int, flush: int) -> Step:
    return Step(Kind.SYNC_BEGIN, 1, inode, flush, "", b"")


def end(inode: int, flush: int) -> Step:
    return Step(Kind.SYNC_END, 1, inode, flush, "", b"")


def flush(inode: int, number: int = 1) -> list[Step]:
    return [begin(inode, number), end(inode, number)]


def rename(old: str, new: str) -> Step:
    return Step(Kind.RENAME, 1, 0, 0, f"/disk/{old}", f"/disk/{new}".encode())


def link(old: str, new: str) -> Step:
    return Step(Kind.LINK, 1, 0, 0, f"/disk/{old}", f"/disk/{new}".encode())


def mkdir(name: str, inode: int) -> Step:
    return Step(Kind.MKDIR, 1, inode, 0, f"/disk/{name}", b"")


def remove(name: str) -> Step:
    return Step(Kind.REMOVE, 1, 0, 0, f"/disk/{name}", b"")


def after(*steps: Step) -> Disk:
    disk = Disk(BEGUN)
    for step in steps:
        disk.take(step)
    return disk


def images(*steps: Step, strict: bool = True) -> Sequence[dict[str, bytes | None]]:
    disk = after(*steps)
    return [disk.left(Random(number), strict=strict) for number in range(MANY)]


def contents(name: str, found: Sequence[dict[str, bytes | None]]) -> set[bytes | None]:
    return {image.get(name) for image in found}


def test_what_was_flushed_is_kept() -> None:
    assert contents("a", images(write(A, 0, b"new"), *flush(A))) == {b"new"}


def test_what_was_not_flushed_is_there_or_not() -> None:
    assert contents("a", images(write(A, 0, b"new"))) == {b"old", b"new"}


def test_a_flush_keeps_what_came_before_it_began() -> None:
    assert contents("a", images(begin(A, 1), write(A, 0, b"new"), end(A, 1))) == {b"old", b"new"}
    assert contents("a", images(write(A, 0, b"new"), begin(A, 1))) == {b"old", b"new"}


def test_a_flush_of_another_file_keeps_nothing_of_this_one() -> None:
    assert contents("a", images(write(A, 0, b"new"), create("b", B), *flush(B))) == {b"old", b"new"}


def test_a_size_may_come_without_its_data_and_data_without_its_size() -> None:
    found = contents("a", images(write(A, 3, b"er")))
    assert found == {b"old", b"older", b"old\0\0"}


def test_writes_come_in_any_order() -> None:
    found = contents("a", images(write(A, 0, b"1"), write(A, 0, b"2")))
    assert found == {b"old", b"1ld", b"2ld"}
    apart = contents("a", images(write(A, 0, b"1"), write(A, 2, b"2")))
    assert apart == {b"old", b"1ld", b"ol2", b"1l2"}


def test_a_write_is_torn_at_sectors_and_nowhere_else() -> None:
    steps = [write(A, 0, b"a" * PAGE_BYTES), *flush(A), write(A, 0, b"b" * PAGE_BYTES)]
    found = contents("a", images(*steps))
    assert len(found) > 20
    for content in found:
        assert content is not None
        sectors = [content[at : at + SECTOR_BYTES] for at in range(0, PAGE_BYTES, SECTOR_BYTES)]
        assert all(len(set(sector)) == 1 for sector in sectors)


def test_a_file_that_was_cut_is_cut_or_not() -> None:
    cut = Step(Kind.RESIZE, 1, A, 1, "", b"")
    assert contents("a", images(cut)) == {b"old", b"o", b"o\0\0"}
    assert contents("a", images(cut, *flush(A))) == {b"o"}


def test_a_name_is_kept_when_its_directory_was_flushed() -> None:
    new = [create("b", B), write(B, 0, b"b"), *flush(B)]
    assert contents("b", images(*new)) == {None, b"b"}
    assert contents("b", images(*new, *flush(ROOT, 2))) == {b"b"}


def test_as_usual_a_new_file_that_was_flushed_keeps_its_name_and_all_names_before_it() -> None:
    made = Step(Kind.MKDIR, 1, BELOW, 0, "/disk/below", b"")
    found = images(made, create("below/b", B), write(B, 0, b"b"), *flush(B), strict=False)
    assert contents("below/b", found) == {b"b"}


def test_a_rename_is_whole_and_may_be_lost() -> None:
    new = [create("a.new", B), write(B, 0, b"new"), *flush(B), *flush(ROOT, 2), rename("a.new", "a")]
    for strict in (True, False):
        found = images(*new, strict=strict)
        assert {tuple(sorted(image.items())) for image in found} == {
            (("a", b"new"),),
            (("a", b"old"), ("a.new", b"new")),
        }
    assert contents("a", images(*new, *flush(ROOT, 3))) == {b"new"}


def test_as_usual_names_come_in_their_order_and_strictly_in_any() -> None:
    steps = [create("b", B), create("c", BELOW)]
    names = [{frozenset(image) for image in images(*steps, strict=strict)} for strict in (False, True)]
    assert frozenset({"a", "c"}) not in names[0]
    assert frozenset({"a", "c"}) in names[1]


def test_what_was_removed_comes_back_as_what_it_was_though_its_inode_is_used_again() -> None:
    found = images(remove("a"), create("b", A), write(A, 0, b"b"), *flush(A))
    assert contents("a", found) == {None, b"old"}
    assert contents("b", found) == {None, b"b"}


def test_the_same_dice_give_the_same_image() -> None:
    disk = after(write(A, 0, b"x" * 100_000), create("b", B), write(B, 0, b"y" * 100_000))
    for strict in (True, False):
        assert disk.left(Random(7), strict=strict) == disk.left(Random(7), strict=strict)


def test_what_a_process_sees_is_all_of_it() -> None:
    disk = after(write(A, 1, b"ther"), create("b", B), rename("b", "c"))
    assert disk.seen() == {"a": b"other", "c": b""}


def test_a_second_name_is_kept_with_the_directory_it_is_in() -> None:
    begun = [mkdir("d", BELOW), *flush(ROOT)]
    unflushed = images(*begun, link("a", "d/b"), remove("a"))
    assert {(image.get("a"), image.get("d/b")) for image in unflushed} == {
        (b"old", None),
        (b"old", b"old"),
        (None, b"old"),
        (None, None),
    }
    assert contents("d/b", images(*begun, link("a", "d/b"), *flush(BELOW), remove("a"))) == {b"old"}
    assert contents("d/b", images(*begun, link("a", "d/b"), *flush(BELOW), write(A, 0, b"new"))) == {b"old", b"new"}
