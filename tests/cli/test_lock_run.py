"""`engram lock run`: the command has the lock for as long as it runs, and runs no longer than it has the lock."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.process import ENGRAM, BusProcess, engram, environment, running

HELD, DEADLOCK, LOST = 75, 76, 77

READY = "import os, signal, sys, time; print('ready', os.getpid(), flush=True); "
"""The beginning of a command that says when it runs; as Python, because it starts no further processes."""
FOR_EVER = READY + "signal.pause()"
STUBBORN = READY.replace("print", "signal.signal(signal.SIGTERM, signal.SIG_IGN); print", 1) + "signal.pause()"
LEAVES_AT_SIGTERM = (
    READY.replace("print", "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); print", 1)
    + "signal.sigwait([signal.SIGTERM])"
)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def state(served: BusProcess, resource: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{served.url}/locks", params={"resource": resource}).json()
    return found


def hold(served: BusProcess, resource: str, agent: str = "ann", **asked: Any) -> None:
    body = {"resource": resource, "agent_id": agent, "ttl_seconds": 60, **asked}
    httpx.post(f"{served.url}/locks", json=body).raise_for_status()


def take_away(served: BusProcess, resource: str) -> None:
    query = {"resource": resource, "agent_id": "op", "break": "true", "reason": "a test"}
    httpx.delete(f"{served.url}/locks", params=query).raise_for_status()


def read_ready(process: "subprocess.Popen[str]") -> int:
    """Wait until the command runs; its pid."""
    assert process.stdout is not None
    word, pid = process.stdout.readline().split()
    assert word == "ready"
    return int(pid)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def guard_of(runner: int, command: int) -> int:
    (guard,) = (child for child in children(runner) if child != command)
    return guard


def status(pid: int) -> str:
    """One letter, as in ps."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def has_ended(pid: int) -> bool:
    """Also where nobody has taken note of it yet: who it fell to need not hurry."""
    try:
        return status(pid) == "Z"
    except FileNotFoundError:
        return True


def until_ended(pid: int) -> None:
    deadline = time.monotonic() + 20
    while not has_ended(pid):
        assert time.monotonic() < deadline, f"process {pid} runs on"


@contextmanager
def run(served: BusProcess, resource: str, *arguments: str, code: str) -> Iterator["subprocess.Popen[str]"]:
    with running("lock", "run", resource, "--url", served.url, *arguments, "--", *python(code)) as process:
        yield process


# --- It has the lock -------------------------------------------------------------------------------------------------


def test_the_command_has_the_lock_and_is_told_about_it(served: BusProcess, context: str) -> None:
    shows = (
        "import json, os, urllib.parse, urllib.request;"
        "url = os.environ['ENGRAM_URL'] + '/locks?resource=' + urllib.parse.quote(os.environ['ENGRAM_LOCK_RESOURCE']);"
        "print(json.dumps([dict(os.environ), json.load(urllib.request.urlopen(url))]))"
    )
    ended = engram("lock", "run", context, f"{context}2", "--url", served.url, "--", *python(shows))
    assert (ended.returncode, ended.stderr) == (0, "")
    variables, seen = json.loads(ended.stdout)
    (lock,) = seen["holders"]
    assert variables["ENGRAM_LOCK_ID"] == lock["lock_id"]
    assert variables["ENGRAM_FENCING_TOKEN"] == str(lock["fencing_token"])
    assert variables["ENGRAM_AGENT"] == lock["holder_agent"]
    assert variables["ENGRAM_LOCK_RESOURCE"] == lock["resource"] == context
    assert lock["reason"] == Path(sys.executable).name  # and not its arguments
    for resource in (context, f"{context}2"):
        assert state(served, resource)["holders"] == []


def test_over_grpc_it_is_the_same_and_grpc_says_nothing(context: str, tmp_path: Path) -> None:
    with BusProcess(tmp_path / "data", "--grpc-port", "0") as bus:
        url = f"grpc://127.0.0.1:{httpx.get(f'{bus.url}/readyz').json()['grpc_port']}"
        for _ in range(3):
            ended = engram("lock", "run", context, "--url", url, "--", "echo", "hi")
            assert (ended.returncode, ended.stdout, ended.stderr) == (0, "hi\n", "")
        assert state(bus, context)["holders"] == []


def test_the_command_has_no_files_and_no_signals_of_ours(served: BusProcess, context: str) -> None:
    shows = ["sh", "-c", "grep -E 'Sig(Blk|Ign)' /proc/self/status; ls /proc/$$/fd"]
    with (Path("/") / os.devnull).open() as inherited:
        ended = subprocess.run(
            [*ENGRAM, "lock", "run", context, "--url", served.url, "--", *shows],
            env=environment(),
            stdout=subprocess.PIPE,
            pass_fds=[inherited.fileno()],
            check=True,
        )
    without_us = subprocess.run([*shows[:2], shows[2].split(";")[0]], stdout=subprocess.PIPE, check=True)
    assert ended.stdout.decode().split() == [*without_us.stdout.decode().split(), "0", "1", "2"]


def test_while_it_waits_for_the_lock_nothing_outlives_it(served: BusProcess, context: str) -> None:
    hold(served, context)
    with run(served, context, code=FOR_EVER) as process:
        while state(served, context)["queue_length"] == 0:
            assert process.poll() is None
        started = children(process.pid)
        process.kill()
        for pid in started:
            until_ended(pid)


def test_what_the_command_posts_is_its_holders_and_passes_the_fence(served: BusProcess, context: str) -> None:
    httpx.patch(f"{served.url}/contexts/{context}", json={"fences": ["*"], "agent_id": "ann"}).raise_for_status()
    posts = [*ENGRAM, "post", context, "x", "--resource", f"{context}/a.py"]
    assert "FENCE_REQUIRED" in engram(*posts[3:], "--url", served.url).stderr
    assert engram("lock", "run", context, "--url", served.url, "--", *posts).returncode == 0


def test_it_is_kept_for_longer_than_its_time_to_live(served: BusProcess, context: str) -> None:
    with run(served, context, "--ttl", "2.5", "--agent", "ann", code=FOR_EVER) as process:
        read_ready(process)
        wait = engram("lock", "acquire", context, "--agent", "bob", "--wait", "5", "--url", served.url)
        assert wait.returncode == HELD
        process.send_signal(signal.SIGTERM)


def test_two_runs_of_one_user_exclude_each_other(served: BusProcess, context: str) -> None:
    with run(served, context, code=FOR_EVER) as first:
        read_ready(first)
        refused = engram("lock", "run", context, "--wait", "0", "--url", served.url, "--", "true")
        assert (refused.returncode, refused.stdout) == (HELD, "")
        assert f"holds '{context}' since" in refused.stderr
        with run(served, context, code="print('mine', flush=True)") as second:
            while state(served, context)["queue_length"] == 0:
                assert second.poll() is None
            first.send_signal(signal.SIGTERM)
            said, _ = second.communicate(timeout=20)
        assert (second.returncode, said) == (0, "mine\n")


def test_a_lock_its_agent_held_before_is_released_too_and_that_is_said(served: BusProcess, context: str) -> None:
    hold(served, context, "ann")
    ended = engram("lock", "run", context, "--agent", "ann", "--url", served.url, "--", "true")
    assert (ended.returncode, ended.stderr.count("\n")) == (0, 1)
    assert "ann held the lock already; it is released when this command has ended" in ended.stderr
    assert state(served, context)["holders"] == []


def test_runs_may_share(served: BusProcess, context: str) -> None:
    with run(served, context, "--shared", code=FOR_EVER) as first:
        read_ready(first)
        assert engram("lock", "run", context, "--shared", "--url", served.url, "--", "true").returncode == 0
        first.send_signal(signal.SIGTERM)


# --- Exit codes and signals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "kill -9 $$"], 128 + 9),
        (["engram-no-such-command"], 127),
        (["/etc/passwd"], 126),
        (["printf", "%s", "--", "--json"], 0),
    ],
)
def test_the_exit_code_is_the_commands(served: BusProcess, context: str, command: list[str], code: int) -> None:
    ended = engram("lock", "run", context, "--url", served.url, "--", *command)
    assert ended.returncode == code
    assert state(served, context)["holders"] == []


def test_a_wait_that_would_never_end_has_its_code(served: BusProcess, context: str) -> None:
    hold(served, f"{context}/a", "ann")
    with run(served, f"{context}/b", "--agent", "bob", code=FOR_EVER) as bob:
        read_ready(bob)
        with running("lock", "acquire", f"{context}/b", "--agent", "ann", "--wait", "30", "--url", served.url) as ann:
            while state(served, f"{context}/b")["queue_length"] == 0:
                assert ann.poll() is None
            refused = engram("lock", "run", f"{context}/a", "--agent", "bob", "--url", served.url, "--", "true")
            assert refused.returncode == DEADLOCK
            bob.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command_and_the_lock_is_given_back(
    served: BusProcess, context: str, number: signal.Signals
) -> None:
    with run(
        served,
        context,
        code=READY + f"signal.signal({number:d}, lambda *_: sys.exit(9)); print('set', flush=True); signal.pause()",
    ) as process:
        read_ready(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "set\n"
        process.send_signal(number)
        _, told = process.communicate(timeout=20)
    assert (process.returncode, told) == (9, "")
    assert state(served, context)["holders"] == []


def test_a_signal_ends_the_wait_for_the_lock_and_leaves_the_line(served: BusProcess, context: str) -> None:
    hold(served, context)
    with run(served, context, code=FOR_EVER) as process:
        while state(served, context)["queue_length"] == 0:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said, told = process.communicate(timeout=20)
    assert (process.returncode, said, told) == (130, "", f"engram: no longer waiting for {context}\n")
    while state(served, context)["queue_length"]:
        pass


# --- Loss ------------------------------------------------------------------------------------------------------------


def test_when_the_lock_is_lost_the_command_is_ended(served: BusProcess, context: str) -> None:
    with run(served, context, "--ttl", "0.6", code=FOR_EVER) as process:
        pid = read_ready(process)
        take_away(served, context)
        _, told = process.communicate(timeout=20)
    assert process.returncode == LOST
    assert told == f"engram: the lock was lost, so the command is ended: op broke {context}: a test\n"
    assert has_ended(pid)


def test_what_the_command_started_is_ended_with_it(served: BusProcess, context: str) -> None:
    """Also where the command itself goes at once: its group has the time it needs."""
    child = LEAVES_AT_SIGTERM + "; print('tidied up', flush=True)"
    parent = f"import subprocess; subprocess.run({python(child)!r})"
    with run(served, context, "--ttl", "0.6", code=parent) as process:
        pid = read_ready(process)
        take_away(served, context)
        said, _ = process.communicate(timeout=20)
    assert (process.returncode, said) == (LOST, "tidied up\n")
    assert has_ended(pid)


def test_a_command_that_does_not_listen_is_killed(served: BusProcess, context: str) -> None:
    with run(served, context, "--ttl", "0.6", code=STUBBORN) as process:
        pid = read_ready(process)
        take_away(served, context)
        process.communicate(timeout=20)
    assert process.returncode == LOST
    assert has_ended(pid)


def test_a_command_may_run_on_without_its_lock_if_so_asked(served: BusProcess, context: str) -> None:
    goes_on = READY + "sys.stdin.readline(); sys.exit(4)"
    command = (*ENGRAM, "lock", "run", context, "--ttl", "0.6", "--on-lost", "warn", "--url", served.url, "--")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*command, *python(goes_on)], text=True, env=environment(), **pipes) as process:  # type: ignore[call-overload]
        read_ready(process)
        take_away(served, context)
        while "runs on without it" not in process.stderr.readline():
            assert process.poll() is None
        _, told = process.communicate("\n", timeout=20)
    assert (process.returncode, told) == (4, "")


def test_a_bus_that_goes_away_takes_the_lock_with_it(context: str, tmp_path: Path) -> None:
    with BusProcess(tmp_path / "data") as bus, run(bus, context, "--ttl", "1", code=FOR_EVER) as process:
        read_ready(process)
        bus.kill()
        _, told = process.communicate(timeout=30)
        assert process.returncode == LOST
        assert "was not refreshed for 1 s" in told
        bus.start()


# --- Standing still --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [FOR_EVER, STUBBORN], ids=["leaves", "stays"])
def test_while_it_stands_still_the_command_runs_no_longer_than_the_lease(
    served: BusProcess, context: str, code: str
) -> None:
    with run(served, context, "--ttl", "1", code=code) as process:
        pid = read_ready(process)
        process.send_signal(signal.SIGSTOP)
        next_one = engram("lock", "acquire", context, "--wait", "20", "--agent", "bob", "--url", served.url)
        assert next_one.returncode == 0
        until_ended(pid)
        assert process.stderr is not None
        told = process.stderr.readline()
        assert told == "engram: lock run stood still until its lock ran out, so its command was ended\n"
        assert status(process.pid) == "T"
        process.send_signal(signal.SIGCONT)
        assert process.wait(20) == LOST


def test_a_command_that_may_run_on_without_its_lock_does_so_while_it_stands_still(
    served: BusProcess, context: str
) -> None:
    code = LEAVES_AT_SIGTERM + "; sys.exit(4)"
    with run(served, context, "--ttl", "0.6", "--on-lost", "warn", code=code) as process:
        pid = read_ready(process)
        process.send_signal(signal.SIGSTOP)
        assert process.stderr is not None
        told = process.stderr.readline()
        assert told == "engram: lock run stands still, its lock has run out, and the command runs on without it\n"
        assert not has_ended(pid)
        process.send_signal(signal.SIGCONT)
        while "the lock was lost, and the command runs on without it" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 4


# --- Killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [FOR_EVER, STUBBORN], ids=["leaves", "stays"])
def test_when_it_is_killed_the_command_is_ended_and_the_lock_runs_out(
    served: BusProcess, context: str, code: str
) -> None:
    with run(served, context, "--ttl", "3", code=code) as process:
        pid = read_ready(process)
        process.kill()
        _, told = process.communicate(timeout=20)  # its guard has stderr, and closes it last
    assert told == "engram: lock run was killed, so its command was ended\n"
    next_one = engram("lock", "acquire", context, "--wait", "10", "--agent", "bob", "--url", served.url)
    assert next_one.returncode == 0
    assert has_ended(pid)


def test_what_the_command_leaves_in_the_background_is_its_own_affair(served: BusProcess, context: str) -> None:
    leaves = f"import subprocess; subprocess.Popen({python(LEAVES_AT_SIGTERM)!r})"
    with run(served, context, code=leaves) as process:
        pid = read_ready(process)
        assert process.wait(20) == 0
        os.kill(pid, signal.SIGTERM)
        until_ended(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_without_its_guard_it_works_all_the_same(served: BusProcess, context: str, number: signal.Signals) -> None:
    with run(served, context, code=LEAVES_AT_SIGTERM + "; sys.exit(5)") as process:
        pid = read_ready(process)
        os.kill(guard_of(process.pid, pid), number)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=20)
    assert (process.returncode, told) == (5, "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_without_its_guard_a_lost_lock_ends_the_command_all_the_same(
    served: BusProcess, context: str, number: signal.Signals
) -> None:
    with run(served, context, "--ttl", "1", code=FOR_EVER) as process:
        pid = read_ready(process)
        os.kill(guard_of(process.pid, pid), number)
        take_away(served, context)
        process.communicate(timeout=20)
    assert process.returncode == LOST
    assert has_ended(pid)


# --- On a terminal ---------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def read_until(ours: int, text: str) -> str:
    said = ""
    while text not in said:
        readable, _, _ = select.select([ours], [], [], 20)
        assert readable, f"only {said!r} was said"
        said += os.read(ours, 1024).decode()
    return said


@contextmanager
def on_terminal(theirs: int, *command: str) -> Iterator["subprocess.Popen[bytes]"]:
    """In a session of its own, in front of a terminal."""
    starts = (
        "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [*python(starts), *command], stdin=theirs, stdout=theirs, stderr=theirs, env=environment()
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_on_a_terminal_the_command_is_in_front(served: BusProcess, context: str, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    asks = "print('name?', input(), flush=True); input()"
    with on_terminal(theirs, *ENGRAM, "lock", "run", context, "--url", served.url, "--", *python(asks)) as process:
        os.write(ours, b"ann\n")
        read_until(ours, "name? ann")
        os.write(ours, b"\x03")  # Ctrl-C goes to the command alone
        assert process.wait(20) == 130
    assert "KeyboardInterrupt" in read_until(ours, "KeyboardInterrupt")
    assert state(served, context)["holders"] == []


def test_ctrl_z_stops_both_and_both_go_on(served: BusProcess, context: str, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    # A shell with job control: it takes the terminal back when its job stops, and gives it to the job with fg.
    asks = "print('here', flush=True); print('name?', input(), flush=True)"
    job = " ".join(f"'{word}'" for word in (*ENGRAM, "lock", "run", context, "--url", served.url, "--"))
    with on_terminal(theirs, "/bin/bash", "--norc", "--noprofile", "-i") as shell:
        os.write(ours, f'{job} {sys.executable} -c "{asks}"\n'.encode())
        read_until(ours, "here\r\n")
        os.write(ours, b"\x1a")
        read_until(ours, "Stopped")
        os.write(ours, b"fg\nann\n")
        read_until(ours, "name? ann")
        os.write(ours, b"exit\n")
        assert shell.wait(20) == 0
    assert state(served, context)["holders"] == []


@pytest.mark.parametrize("guarded", [True, False])
def test_ctrl_z_for_longer_than_the_lease_ends_the_command_before_it_goes_on(
    served: BusProcess, context: str, terminal: tuple[int, int], guarded: bool
) -> None:
    ours, theirs = terminal
    handler = "signal.signal(signal.SIGCONT, lambda *_: print('goes', 'on', flush=True))"
    tells = f"{READY}{handler}; print('set', 'up', flush=True)\nwhile True: signal.pause()"
    job = " ".join(f"'{word}'" for word in (*ENGRAM, "lock", "run", context, "--ttl", "1", "--url", served.url, "--"))
    with on_terminal(theirs, "/bin/bash", "--norc", "--noprofile", "-i") as shell:
        os.write(ours, f'{job} {sys.executable} -c "{tells}"\n'.encode())
        said = read_until(ours, "set up\r\n")
        ready = re.search(r"ready (\d+)\r\n", said)
        assert ready is not None
        if not guarded:
            (runner,) = children(shell.pid)
            os.kill(guard_of(runner, int(ready[1])), signal.SIGKILL)
        os.write(ours, b"\x1a")
        read_until(ours, "Stopped")
        while state(served, context)["holders"]:
            assert shell.poll() is None
        os.write(ours, b"fg\n")
        told = read_until(ours, "the lock was lost")
        os.write(ours, b"echo code $?; exit\n")
        told += read_until(ours, f"code {LOST}\r\n")
        assert shell.wait(20) == 0
    assert "goes on" not in told
