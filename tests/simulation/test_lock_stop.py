"""A holder frozen past its lease wakes up and writes nothing more: the fence keeps it out, not its good will."""

import os
import random
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

from tests.process import BusProcess, environment
from tests.simulation.holder import AGENT, RESOURCE

ROOT = Path(__file__).parents[2]
LEASE_SECONDS = 0.15


@pytest.mark.parametrize("runs", [3, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_a_holder_frozen_past_its_lease_writes_nothing_more(tmp_path: Path, runs: int) -> None:
    seed = random.getrandbits(32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    with (
        BusProcess(tmp_path) as bus,
        holder(bus.url) as process,
        httpx.Client(base_url=bus.url, timeout=60, verify=False) as other,
    ):
        turns = [freeze_and_take_over(process, other, dice) for _ in range(runs)]
        check_log(other, turns)


def freeze_and_take_over(process: subprocess.Popen[str], other: httpx.Client, dice: random.Random) -> tuple[int, int]:
    """The holder's token, and that of the one who held the lock after it and wrote while the first was frozen."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{LEASE_SECONDS}\n")
    process.stdin.flush()
    said, _, token = process.stdout.readline().partition(" ")
    assert said == "held"
    # At any moment of its life: it is as likely to be frozen within a request as between two.
    until = time.perf_counter() + dice.uniform(0, LEASE_SECONDS)
    while time.perf_counter() < until:
        pass
    os.kill(process.pid, signal.SIGSTOP)
    asked = {"resource": RESOURCE, "agent_id": "bob", "wait_seconds": 30}
    lock = other.post("/locks", json=asked).json()
    written = other.post("/workunit", json=unit("bob", lock["fencing_token"]))
    assert written.status_code == 201, written.text
    os.kill(process.pid, signal.SIGCONT)
    assert process.stdout.readline() in ("lost LOCK_LOST 412 FENCE_STALE\n", "lost - 412 FENCE_STALE\n")
    assert other.post("/workunit", json=unit("bob", lock["fencing_token"])).status_code == 201
    named = {"agent_id": "bob", "lock_id": lock["lock_id"]}
    assert other.delete(f"/locks/{RESOURCE}", params=named).json()["released"] is True
    return int(token), lock["fencing_token"]


def check_log(other: httpx.Client, turns: list[tuple[int, int]]) -> None:
    """In the order of the log, each held in turn, and wrote between its own grant and the next one's alone."""
    held = [token for turn in turns for token in turn]
    assert held == sorted(held)
    writers = {token: name for turn in turns for token, name in zip(turn, (AGENT, "bob"), strict=True)}
    for seq, agent_id in written(other):
        assert writers[max(token for token in held if token < seq)] == agent_id, f"{agent_id} wrote {seq}"


def written(other: httpx.Client) -> Iterator[tuple[int, str]]:
    page: str | None = ""
    while page is not None:
        found = other.get("/workunits/plan", params={"limit": 1_000, **({"page": page} if page else {})}).json()
        yield from ((one["seq"], one["agent_id"]) for one in found["work_units"])
        page = found["next_page"]


def unit(agent_id: str, token: int) -> dict[str, Any]:
    return {"context_id": "plan", "agent_id": agent_id, "fence": {"resource": RESOURCE, "token": token}}


@contextmanager
def holder(url: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.simulation.holder", url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT)),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()
