"""What the guard makes of what it is told, without a command to end."""

import os
from concurrent.futures import ThreadPoolExecutor
from io import StringIO

import pytest

from engram_bus.cli.lock.guard import _End, _watch
from engram_client.lease import now


def watched(*words: str, only_warns: bool = False, ends: bool = False) -> _End:
    read_end, write_end = os.pipe()
    os.write(write_end, "".join(f"{word}\n" for word in words).encode())
    if ends:
        os.close(write_end)
    try:
        return _watch(read_end, only_warns)
    finally:
        os.close(read_end)
        if not ends:
            os.close(write_end)


def test_what_is_over_is_let_be() -> None:
    assert watched("until 5.0", "group 7", "over") == _End(None, "over")


def test_what_it_is_asked_to_end_it_ends() -> None:
    assert watched("group 7", "until inf", "end") == _End(7, "asked")


def test_the_end_of_the_pipe_is_the_end_of_who_held_the_lock() -> None:
    assert watched("group 7", f"until {now() + 60}", ends=True) == _End(7, "killed")
    assert watched(ends=True) == _End(None, "killed")


@pytest.mark.parametrize("words", [["until 5.0", "group 7"], ["group 7", "until inf", "until 5.0"]])
def test_a_moment_that_passes_without_news_is_the_end(words: list[str]) -> None:
    assert watched(*words) == _End(7, "late")


def test_what_was_said_in_time_counts_also_where_it_is_heard_late() -> None:
    """However much of it there is: who was stopped itself finds it all in the pipe."""
    said = [f"until {number / 7!r}" for number in range(2_000)]
    assert watched("group 7", *said, "until inf", "over") == _End(None, "over")


def test_who_may_run_on_without_the_lock_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # (What pytest captures may be lost where one thread takes it while another writes.)
    told = StringIO()
    monkeypatch.setattr("sys.stderr", told)
    read_end, write_end = os.pipe()
    os.write(write_end, b"group 7\nuntil 5.0\n")
    with ThreadPoolExecutor() as pool:
        watching = pool.submit(_watch, read_end, True)
        while "runs on without it" not in told.getvalue():
            assert not watching.done()
        os.write(write_end, b"end\n")
        assert watching.result(20) == _End(7, "asked")
    os.close(read_end)
    os.close(write_end)
    assert told.getvalue().count("\n") == 1
