"""`engram lock acquire`, `release`, `list` and `break`: what they print, and the exit code a script goes by."""

import json
import re
from typing import Any

import httpx
import pytest

from tests.process import BusProcess, engram, engram_here, running

HELD, DEADLOCK, LOST = 75, 76, 77


@pytest.fixture
def bus(served: BusProcess) -> dict[str, str]:
    return {"ENGRAM_URL": served.url}


def acquired(bus: dict[str, str], *arguments: str) -> dict[str, Any]:
    """By the command line."""
    ended = engram("lock", "acquire", *arguments, "--json", **bus)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def held(bus: dict[str, str], resource: str, agent: str, **asked: Any) -> dict[str, Any]:
    """Behind the command line's back."""
    answer = httpx.post(
        f"{bus['ENGRAM_URL']}/locks", json={"resource": resource, "agent_id": agent, "ttl_seconds": 60, **asked}
    )
    assert answer.status_code == 201, answer.text
    lock: dict[str, Any] = answer.json()
    return lock


def until_waiting(bus: dict[str, str], resource: str, count: int) -> None:
    while httpx.get(f"{bus['ENGRAM_URL']}/locks", params={"resource": resource}).json()["queue_length"] < count:
        pass


def listed(bus: dict[str, str], *arguments: str) -> Any:
    return json.loads(engram("lock", "list", *arguments, "--json", **bus).stdout)


def test_an_acquired_lock_is_told_and_given_back(bus: dict[str, str], context: str) -> None:
    shown = engram("lock", "acquire", context, "--agent", "ann", **bus)
    assert shown.returncode == 0
    told = re.fullmatch(r"lock_id (\S+), token (\d+), until (\S+Z)\n", shown.stdout)
    assert told is not None
    (lock,) = listed(bus, "--prefix", context)
    assert (lock["lock_id"], lock["fencing_token"], lock["holder_agent"]) == (told[1], int(told[2]), "ann")
    assert 0 < lock["remaining_seconds"] <= 30
    for said in (f"released {context}\n", f"{context} was not held any more under {told[1]}\n"):
        ended = engram("lock", "release", context, told[1], "--agent", "ann", **bus)
        assert (ended.returncode, ended.stdout) == (0, said)
    assert listed(bus, "--prefix", context) == []


def test_asking_again_extends_and_says_so(bus: dict[str, str], context: str) -> None:
    first = acquired(bus, context, "--agent", "ann", "--ttl", "5")
    again = acquired(bus, context, "--agent", "ann", "--ttl", "50")
    assert (again["lock_id"], again["fencing_token"]) == (first["lock_id"], first["fencing_token"])
    assert (first["extended"], again["extended"]) == (False, True)
    shown = engram("lock", "acquire", context, "--agent", "ann", **bus).stdout
    assert shown.endswith(", held before and extended\n")


def test_several_resources_are_held_all_or_none(bus: dict[str, str], context: str) -> None:
    lock = acquired(bus, f"{context}/b", f"{context}/a", "--agent", "ann")
    assert lock["resources"] == [f"{context}/a", f"{context}/b"]
    refused = engram("lock", "acquire", f"{context}/c", f"{context}/b", "--agent", "bob", **bus)
    assert refused.returncode == HELD
    assert [lock["resources"] for lock in listed(bus, "--prefix", context)] == [[f"{context}/a"], [f"{context}/b"]]


def test_a_refusal_has_its_code_and_names_holder_since_until_and_reason(bus: dict[str, str], context: str) -> None:
    lock = held(bus, context, "ann", reason="rewrite")
    refused = engram("lock", "acquire", f"{context}/below", "--agent", "bob", **bus)
    assert (refused.returncode, refused.stdout) == (HELD, "")
    since, until = lock["granted_at"], lock["expires_at"]
    assert refused.stderr.startswith(f"engram: 'ann' holds '{context}' since {since} until {until} (rewrite); ")
    assert refused.stderr.count("\n") == 1


def test_a_wait_in_vain_has_the_same_code_and_a_wait_that_is_served_has_the_lock(
    bus: dict[str, str], context: str
) -> None:
    first = held(bus, context, "ann")
    vain = engram("lock", "acquire", context, "--agent", "bob", "--wait", "0.2", **bus)
    assert (vain.returncode, vain.stdout) == (HELD, "")
    assert "'ann' holds" in vain.stderr
    with running("lock", "acquire", context, "--agent", "eve", "--wait", "30", "--json", **bus) as waiting:
        until_waiting(bus, context, 1)
        engram("lock", "release", context, first["lock_id"], "--agent", "ann", **bus)
        granted, _ = waiting.communicate(timeout=20)
    assert json.loads(granted)["holder_agent"] == "eve"
    assert json.loads(granted)["fencing_token"] > first["fencing_token"]


def test_shared_locks_stand_beside_each_other(bus: dict[str, str], context: str) -> None:
    for agent in ("ann", "bob"):
        assert acquired(bus, context, "--shared", "--agent", agent)["mode"] == "shared"
    assert engram("lock", "acquire", context, "--agent", "eve", **bus).returncode == HELD


def test_a_wait_that_would_never_end_has_a_code_of_its_own(bus: dict[str, str], context: str) -> None:
    for agent, name in (("ann", "a"), ("bob", "b")):
        held(bus, f"{context}/{name}", agent)
    with running("lock", "acquire", f"{context}/b", "--agent", "ann", "--wait", "30", **bus):
        until_waiting(bus, f"{context}/b", 1)
        refused = engram("lock", "acquire", f"{context}/a", "--agent", "bob", "--wait", "30", **bus)
    assert (refused.returncode, refused.stdout) == (DEADLOCK, "")
    assert f"bob waits for ann ({context}/a), ann waits for bob ({context}/b)" in refused.stderr


def test_only_its_holder_gives_a_lock_back(bus: dict[str, str], context: str) -> None:
    lock = held(bus, context, "ann")
    refused = engram("lock", "release", context, lock["lock_id"], "--agent", "bob", **bus)
    assert (refused.returncode, refused.stdout) == (LOST, "")
    assert "is held by 'ann', not by 'bob'" in refused.stderr


def test_what_was_lost_is_given_back_without_a_fuss_also_when_another_holds_it_by_now(
    bus: dict[str, str], context: str
) -> None:
    lost = held(bus, context, "ann")
    engram("lock", "break", context, "--reason", "gone home", **bus)
    for _ in range(2):
        ended = engram("lock", "release", context, lost["lock_id"], "--agent", "ann", **bus)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout == f"{context} was not held any more under {lost['lock_id']}\n"
        acquired(bus, context, "--agent", "bob")
    assert [lock["holder_agent"] for lock in listed(bus, "--prefix", context)] == ["bob"]


def test_a_break_is_on_the_record_and_the_old_token_no_longer_writes(bus: dict[str, str], context: str) -> None:
    lock = held(bus, context, "ann")
    broken = engram("lock", "break", context, "--reason", "gone home", "--agent", "op", **bus)
    assert broken.stdout == f"broke {context}, lock_id {lock['lock_id']}\n"
    again = engram("lock", "break", context, "--reason", "gone home", **bus)
    assert (again.returncode, again.stderr) == (LOST, f"engram: nobody holds '{context}'\n")
    unit = engram("tail", "locks", "--after", "0", "--kind", "lock.broken", "--resource", context, "-n", "1", **bus)
    assert re.search(rf" op +. lock.broken +{context} of ann: gone home$", unit.stdout.rstrip())


def test_one_of_several_holders_can_be_broken(bus: dict[str, str], context: str) -> None:
    locks = [held(bus, context, agent, mode="shared")["lock_id"] for agent in ("ann", "bob", "eve")]
    one = engram("lock", "break", context, "--reason", "x", "--lock-id", locks[1], "--json", **bus)
    assert json.loads(one.stdout) == [locks[1]]
    rest = engram("lock", "break", context, "--reason", "x", "--json", **bus)
    assert sorted(json.loads(rest.stdout)) == sorted([locks[0], locks[2]])


def test_the_table_of_locks(bus: dict[str, str], context: str) -> None:
    for agent, name in (("ann[b]", "a"), ("bob", "b")):
        held(bus, f"{context}/{name}", agent, reason=f"of {agent}")
    shown = engram("lock", "list", "--prefix", context, **bus).stdout.splitlines()
    assert shown[0].split() == ["resource", "mode", "holder", "token", "remaining", "reason"]
    assert re.fullmatch(rf"{re.escape(context)}/a +exclusive +ann\[b\] +\d+ +\d+\.\d s +of ann\[b\] *", shown[1])
    assert len(shown) == 3
    assert [lock["holder_agent"] for lock in listed(bus, "--holder", "bob", "--prefix", context)] == ["bob"]


def test_one_resource_with_who_waits_in_order(bus: dict[str, str], context: str) -> None:
    assert engram("lock", "list", context, **bus).stdout == f"{context} is free\n"
    held(bus, context, "ann")
    wait = ("lock", "acquire", f"{context}/x", "--wait", "30")
    with running(*wait, "--agent", "bob", "--reason", "next", **bus):
        until_waiting(bus, f"{context}/x", 1)
        with running(*wait, "--agent", "eve", "--shared", **bus):
            until_waiting(bus, f"{context}/x", 2)
            shown = engram("lock", "list", f"{context}/x", **bus).stdout.splitlines()
            state = listed(bus, f"{context}/x")
    assert re.match(rf"{re.escape(context)} +exclusive +ann ", shown[1])
    assert shown[3].split() == ["waits", "mode", "since", "until", "reason"]
    assert re.match(r"bob +exclusive +\S+Z +\S+Z +next", shown[4])
    assert re.match(r"eve +shared ", shown[5])
    assert ([wait["agent_id"] for wait in state["queue"]], state["queue_length"]) == (["bob", "eve"], 2)


def test_a_long_name_moves_its_own_line_alone(bus: dict[str, str], context: str) -> None:
    held(bus, f"{context}/{'x' * 900}", "ann")
    held(bus, f"{context}/b", "bob", reason="rewrite")
    head, bob, ann = engram("lock", "list", "--prefix", context, **bus).stdout.splitlines()
    assert head.split() == ["resource", "mode", "holder", "token", "remaining", "reason"]
    assert (bob.endswith("rewrite"), len(bob) < 150) == (True, True)
    assert (ann.split()[0], ann == ann.rstrip()) == (f"{context}/{'x' * 900}", True)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["acquire", "x", "--ttl", "0"], 2, "ttl_seconds 0.0 is not 0.1 to 86400"),
        (["acquire", "x", "--wait", "3601"], 2, "wait_seconds 3601.0 is not 0 to 3600"),
        (["acquire"], 2, "Missing argument 'RESOURCE'"),
        (["release", "x", "nonsense"], 2, "lock_id 'nonsense' is not the id of a lock"),
        (["break", "x"], 2, "Missing option '--reason'"),
        (["list", "x", "--holder", "ann"], 2, "--holder and --prefix choose among all resources"),
        (["run", "x"], 2, "name the command to run after --"),
        (["run", "x", "--agent", "", "--", "true"], 2, "--agent names nobody"),
        (["run", "--", "true"], 2, "Missing argument 'RESOURCE'"),
        (["run", "x", "--on-lost", "cry", "--", "true"], 2, "'cry' is not one of 'kill', 'warn'"),
    ],
)
def test_what_is_asked_wrongly_is_told(bus: dict[str, str], arguments: list[str], code: int, told: str) -> None:
    refused = engram("lock", *arguments, **bus)
    assert (refused.returncode, refused.stdout) == (code, "")
    assert told in refused.stderr


def test_the_help_says_the_exit_codes() -> None:
    told = engram_here("lock", "--help").stdout
    assert "75 held by another, 76 waiting would never end" in told
    assert "77 lost (run), another's (release) or nobody's (break)" in told
    for command in ("acquire", "release", "list", "break", "run"):
        assert f"│ {command} " in told
        assert f"Usage: engram lock {command}" in engram_here("lock", command, "-h").stdout
