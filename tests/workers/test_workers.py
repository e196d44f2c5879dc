"""A bus of several processes is one bus: whichever worker one speaks to, and whichever of them dies."""

import asyncio
import contextlib
import itertools
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from engram_bus import Bus
from engram_bus.limits import META_VALUE_BYTES_MAX, MIB, WORKER_LINE_BYTES
from engram_bus.log.lmdb.environments import opened_beside
from engram_bus.verify import verify
from engram_client import Client, WorkUnit
from tests.process import engram, environment
from tests.workers.bus import (
    SECONDS,
    WorkersBus,
    append,
    frozen,
    hear,
    heard_seqs,
    heard_units,
    is_gone,
    kill,
    say,
    until,
)

SMALL_BYTES = 1 * MIB
"""The map of a log that gets more room later."""


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkersBus]:
    with WorkersBus(tmp_path_factory.mktemp("workers") / "data", "--grpc-port", "0") as bus:
        yield bus


@pytest.fixture
def context(request: pytest.FixtureRequest) -> str:
    """A context, or a resource, that no other test uses."""
    return f"of/{request.node.name}"


@pytest.fixture
def clients(bus: WorkersBus) -> Iterator[list[httpx.Client]]:
    """One connected to each worker."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(bus.connect(number)) for number in bus.workers]


# --- One bus ---------------------------------------------------------------------------------------------------------


def test_every_worker_takes_connections_and_says_which_it_is(bus: WorkersBus, clients: list[httpx.Client]) -> None:
    for number, client in zip(bus.workers, clients, strict=True):
        assert client.get("/status").json()["worker"] == number
        assert f'engram_http_requests_total{{operation="status",status="200",worker="{number}"}}' in (
            client.get("/metrics").text
        )


def test_a_subscription_hears_what_is_appended_through_another_worker(
    bus: WorkersBus, clients: list[httpx.Client], context: str
) -> None:
    query = f"?context={context}"
    with bus.stream(1, query) as one, bus.stream(2, query) as other:
        seqs = [append(client, context)["seq"] for _ in range(10) for client in clients]
        assert [heard_seqs(stream, seqs[-1]) for stream in (one, other)] == [seqs, seqs]


def test_what_one_worker_answered_another_one_reads_at_once(clients: list[httpx.Client], context: str) -> None:
    one, other = clients
    for _ in range(100):
        one, other = other, one
        unit = append(one, context)
        assert other.get(f"/workunit/{unit['id']}").json() == unit
        assert other.get(f"/workunits/{context}", params={"reverse": True, "limit": 1}).json()["work_units"] == [unit]
        assert other.get(f"/contexts/{context}").json()["version"] == unit["version"]


def test_of_many_with_one_expected_version_exactly_one_appends(clients: list[httpx.Client], context: str) -> None:
    def append_at(version: int, client: httpx.Client) -> int:
        asked = {"context_id": context, "payload": "mine", "expected_version": version}
        return client.post("/workunit", json=asked).status_code

    with ThreadPoolExecutor(len(clients)) as pool:
        for version in range(40):
            outcomes = list(pool.map(append_at, [version] * len(clients), clients))
            assert sorted(outcomes) == [201, 412]


def test_an_idempotency_key_is_one_over_all_workers(clients: list[httpx.Client], context: str) -> None:
    def append_once(client: httpx.Client, key: str) -> str:
        asked = {"context_id": context, "payload": "once", "idempotency_key": key}
        return str(client.post("/workunit", json=asked).json()["id"])

    with ThreadPoolExecutor(len(clients)) as pool:
        for key in range(20):
            assert len(set(pool.map(append_once, clients, [f"{context}-{key}"] * len(clients)))) == 1
    # Much later, from the log.
    assert append_once(clients[0], f"{context}-0") == append_once(clients[1], f"{context}-0")


def test_a_lock_is_held_once_and_handed_over_between_workers(clients: list[httpx.Client], context: str) -> None:
    one, other = clients
    held = one.post("/locks", json={"resource": context, "agent_id": "ann"}).json()
    refused = other.post("/locks", json={"resource": context, "agent_id": "bob"})
    assert (refused.status_code, refused.json()["holder_agent"]) == (409, "ann")
    assert other.get(f"/locks/{context}").json()["holders"][0]["lock_id"] == held["lock_id"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(other.post, "/locks", json={"resource": context, "agent_id": "bob", "wait_seconds": 30})
        until(lambda: one.get(f"/locks/{context}").json()["queue_length"] == 1)
        one.delete(f"/locks/{context}", params={"agent_id": "ann", "lock_id": held["lock_id"]})
        granted = waiting.result(SECONDS).json()
    assert granted["fencing_token"] > held["fencing_token"]
    stale = {"context_id": context, "payload": "late", "fence": {"resource": context, "token": held["fencing_token"]}}
    assert [client.post("/workunit", json=stale).json()["code"] for client in clients] == ["FENCE_STALE"] * 2


def test_numbers_are_of_the_whole_bus(bus: WorkersBus, clients: list[httpx.Client], context: str) -> None:
    before = clients[0].get("/status").json()["subscribers"]
    with bus.stream(1, f"?context={context}"), bus.stream(2, f"?context={context}"):
        for client in clients:
            until(lambda: client.get("/status").json()["subscribers"] == before + 2)  # noqa: B023 (called at once)


def test_a_search_is_answered_through_any_worker(clients: list[httpx.Client], context: str) -> None:
    for number, client in enumerate(clients):
        append(client, context, payload=f"the zebra of worker {number}")
    for client in clients:
        found = client.post("/search", json={"query": "zebra", "context_id": context}).json()
        assert found["total"] == 2


def test_the_protocol_is_kept(bus: WorkersBus) -> None:
    """A part of it: what needs several connections most."""
    chosen = ("--transport", "websocket-json", "--transport", "grpc", "--exchange", "line")
    played = engram("conformance", "--url", bus.url, *chosen, timeout=100)
    assert played.returncode == 0, played.stdout


@pytest.mark.long
def test_the_whole_protocol_is_kept(tmp_path: Path) -> None:
    with WorkersBus(tmp_path / "data", "--grpc-port", "0", "--search") as bus:
        played = engram("conformance", "--url", bus.url, timeout=1_500)
        assert played.returncode == 0, played.stdout


# --- Ends ------------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_costs_its_own_clients_a_resume(
    bus: WorkersBus, clients: list[httpx.Client], context: str
) -> None:
    _, other = clients
    with bus.stream(1, f"?context={context}") as stream, bus.stream(2, f"?context={context}") as unaffected:
        say(stream, op="lock.acquire", resource=context, agent_id="ann", session=True, ttl_seconds=3_600, id=1)
        hear(stream, "locked")
        first = append(other, context)["seq"]
        cursor = hear(stream, "units")["cursor"]
        pid = bus.worker(1)
        kill(pid)
        with pytest.raises(ConnectionClosed):
            hear(stream, "never")
        seqs = [append(other, context)["seq"] for _ in range(5)]
        assert heard_seqs(unaffected, seqs[-1]) == [first, *seqs]
        with bus.stream(1, f"?context={context}&after={cursor}") as resumed:
            assert heard_seqs(resumed, seqs[-1]) == seqs
        # What was tied to its connections is free after a grace.
        asked = {"resource": context, "agent_id": "bob", "wait_seconds": 30}
        assert other.post("/locks", json=asked).status_code == 201
    assert bus.worker(1) != pid


def test_whatever_is_killed_no_process_is_left_and_nothing_acknowledged_is_lost(tmp_path: Path, context: str) -> None:
    with WorkersBus(tmp_path / "data") as bus:
        children, seqs = bus.children(), []
        assert len(children) == 3
        with bus.connect(1) as client:
            seqs += [append(client, context)["seq"] for _ in range(20)]
            bus.kill()
        until(lambda: all(map(is_gone, children)))
        bus.start()
        children = bus.children()
        with bus.connect(2) as client:
            seqs += [append(client, context)["seq"] for _ in range(20)]
            kill(bus.log_process)
            assert bus.wait() == 1
        until(lambda: all(map(is_gone, children)))
        assert verify(tmp_path / "data").damage == ()
        # And in order, as it is stopped every day.
        bus.start()
        children = bus.children()
        with bus.connect(2) as client, bus.stream(1, f"?context={context}&after=0") as stream:
            units = client.get(f"/workunits/{context}").json()["work_units"]
            assert [unit["seq"] for unit in units] == heard_seqs(stream, seqs[-1]) == seqs
            assert bus.stop() == 0
            assert hear(stream, "goaway")["cursor"].endswith(f".{seqs[-1]}")
        assert all(map(is_gone, children))


@pytest.mark.parametrize("victim", ["log process", "supervisor"])
def test_what_is_acknowledged_when_all_ends_is_there_once_and_in_order(tmp_path: Path, victim: str) -> None:
    acknowledged: dict[str, list[int]] = {f"agent-{number}": [] for number in range(8)}

    def append_on(agent_id: str) -> None:
        ended = contextlib.suppress(httpx.TransportError)  # What is under way then is not known.
        with ended, httpx.Client(base_url=bus.url, timeout=SECONDS, headers={"x-agent-id": agent_id}) as client:
            while True:
                answer = client.post("/workunit", json={"context_id": "plan", "payload": agent_id})
                if answer.status_code == 503:  # Its worker noticed first.
                    return
                acknowledged[agent_id].append(answer.raise_for_status().json()["seq"])

    with WorkersBus(tmp_path / "data") as bus:
        children = bus.children()
        with ThreadPoolExecutor(len(acknowledged)) as pool:
            agents = [pool.submit(append_on, agent_id) for agent_id in acknowledged]
            until(lambda: all(len(seqs) > 20 for seqs in acknowledged.values()))
            kill(bus.log_process if victim == "log process" else bus.supervisor)
            for agent in agents:
                agent.result()
        bus.wait()
        until(lambda: all(map(is_gone, children)))
        assert verify(tmp_path / "data").damage == ()
        bus.start()
        with bus.connect(1) as client, bus.stream(2, "?context=plan&after=0") as stream:
            recorded = int(client.get("/status").headers["engram-applied-seq"])
            heard = heard_units(stream, recorded)
    assert [unit["seq"] for unit in heard] == [*range(1, recorded + 1)]
    for agent_id, seqs in acknowledged.items():
        theirs = [unit["seq"] for unit in heard if unit["agent_id"] == agent_id]
        assert theirs[: len(seqs)] == seqs
        assert len(theirs) <= len(seqs) + 1, "one may have been recorded that nobody was told of"


@pytest.mark.long
@pytest.mark.anyio
@pytest.mark.timeout(600)
async def test_workers_killed_again_and_again_cost_no_unit_and_repeat_none(tmp_path: Path, context: str) -> None:
    """Clients that know nothing of it append and listen on, through whichever worker takes them in."""
    seed = random.getrandbits(32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    heard: list[WorkUnit] = []

    async def listen(agent: Client) -> None:
        async for unit in agent.subscribe(context, after=0):
            heard.append(unit)
            if unit.text == "the end":
                return

    async def append_and_kill(agent: Client, bus: WorkersBus) -> None:
        for number in range(400):
            if number % 40 == 20:
                kill(await asyncio.to_thread(bus.worker, dice.choice(bus.workers)))
            await agent.append(context, str(number))
        await agent.append(context, "the end")

    with WorkersBus(tmp_path / "data", workers=3) as bus:
        async with Client(bus.url, agent_id="ann") as ann, Client(bus.url, agent_id="bob") as bob:
            await asyncio.gather(listen(bob), append_and_kill(ann, bus))
    assert [unit.text for unit in heard] == [*map(str, range(400)), "the end"]
    assert [unit.version for unit in heard] == list(range(1, 402))


@pytest.mark.long
def test_a_worker_that_does_nothing_is_cut_off_and_started_again(tmp_path: Path, context: str) -> None:
    with WorkersBus(tmp_path / "data") as bus, bus.connect(1) as one:
        pid = bus.worker(2)
        with frozen(pid):
            seqs = [append(one, context, payload="x" * 1_000_000)["seq"] for _ in range(30)]
            until(lambda: is_gone(pid))
        with bus.connect(2) as two:
            assert append(two, context)["seq"] == seqs[-1] + 1


READER = """
import sys
from pathlib import Path
from engram_bus.log.lmdb.environments import opened_beside

env, _ = opened_beside(Path(sys.argv[1]), ())
reading = env.begin()
print(flush=True)
sys.stdin.read()
"""


def test_who_died_in_the_middle_of_a_read_holds_no_pages_once_a_worker_begins_again(bus: WorkersBus) -> None:
    log = bus.data_dir / "tenants" / "default" / "log"
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as reader:
        assert reader.stdout is not None
        reader.stdout.readline()
        reader.kill()
    assert reader.pid in readers(log)
    pid = bus.worker(1)
    kill(pid)
    until(lambda: is_gone(pid))
    with bus.connect(1):
        assert reader.pid not in readers(log)


def readers(path: Path) -> set[int]:
    """The processes that have a place among those who read an environment."""
    env, _ = opened_beside(path, ())
    with env:
        return {int(line.split()[0]) for line in env.readers().splitlines()[1:]}


# --- The log process -------------------------------------------------------------------------------------------------


def test_while_the_log_process_stands_still_no_worker_is_ready(tmp_path: Path, context: str) -> None:
    with WorkersBus(tmp_path / "data", "--no-search") as bus, bus.connect(1) as one, bus.connect(2) as two:
        seq = append(one, context)["seq"]
        until(lambda: two.get(f"/workunits/{context}").is_success)  # Which takes in what was answered to the other.
        with frozen(bus.log_process):
            for client in (one, two):
                until(lambda client=client: client.get("/readyz").status_code == 503)
                assert client.get("/readyz").json()["reason"] == "LOG_SILENT"
                refused = client.post("/workunit", json={"context_id": context, "payload": "x"})
                assert (refused.status_code, refused.json()["code"]) == (503, "LOG_SILENT")
                assert refused.headers["retry-after"] == "1"
                assert client.get(f"/workunits/{context}").json()["work_units"][-1]["seq"] == seq
        for client in (one, two):
            until(lambda client=client: client.get("/readyz").json()["ready"])
        assert [append(client, context)["seq"] for client in (one, two)] == [seq + 1, seq + 2]


async def test_a_log_that_was_given_more_room_is_read_by_every_worker_wherever_it_grows(tmp_path: Path) -> None:
    """A map's new size is only in its file when something was written; the index is written long after workers came."""
    async with Bus.open(tmp_path / "data", size_bytes_max=SMALL_BYTES) as small:
        first = await small.append("a", "x", agent_id="ann")
    with WorkersBus(tmp_path / "data", "--no-search", "--log-size-gib", "1") as bus, bus.connect(1) as one:
        index = bus.data_dir / "tenants" / "default" / "index" / "data.mdb"
        names = (f"{'c' * 200}/{number}" for number in itertools.count())
        while index.stat().st_size <= 2 * SMALL_BYTES:
            many = [{"context_id": next(names), "payload": "x"} for _ in range(1_000)]
            assert one.post("/workunits", json=many).is_success
        for number in bus.workers:
            with bus.connect(number) as client:
                assert client.get(f"/workunit/{first.id}").json()["id"] == first.id
                assert client.get("/contexts", params={"limit": 1}).json()["contexts"]
                assert client.get(f"/workunits/{first.context_id}").json()["work_units"]


async def test_a_bus_whose_state_is_larger_than_what_may_wait_for_a_worker_is_one_as_any(tmp_path: Path) -> None:
    """A worker begins with the state, and is behind until it has taken it."""
    meta: dict[str, str | None] = {str(key): "x" * META_VALUE_BYTES_MAX for key in range(7)}
    async with Bus.open(tmp_path / "data") as large:
        for number in range(WORKER_LINE_BYTES // META_VALUE_BYTES_MAX // len(meta) + 1):
            await large.update_context(f"large/{number}", meta=meta)
        head = large.head
    with WorkersBus(tmp_path / "data") as bus, bus.connect(1) as one, bus.connect(2) as two:
        with bus.stream(2, "?context=plan") as stream:
            assert [append(client, "plan")["seq"] for client in (one, two)] == heard_seqs(stream, head + 2)
        assert one.get("/contexts/large/0").json()["meta"] == meta


def test_a_log_process_that_cannot_start_says_so_in_one_line(bus: WorkersBus) -> None:
    refused = engram("serve", "--workers", "2", "--port", "0", "--no-grpc", "--data-dir", str(bus.data_dir))
    assert refused.returncode == 2
    assert "is in use by process" in refused.stderr.splitlines()[-1]


def test_a_port_that_has_a_bus_of_this_kind_is_refused(bus: WorkersBus, tmp_path: Path) -> None:
    port = bus.url.rpartition(":")[2]
    refused = engram("serve", "--workers", "2", "--port", port, "--no-grpc", "--data-dir", str(tmp_path))
    assert (refused.returncode, "Address already in use" in refused.stderr) == (2, True)


@pytest.mark.long
def test_an_interrupt_at_the_terminal_ends_it_in_order(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "engram_bus.cli", "serve", "--workers", "2", "--port", "0", "--no-grpc"]
    with subprocess.Popen(
        [*program, "--data-dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as serving:
        assert serving.stdout is not None
        assert serving.stdout.readline().startswith("The bus is at http://127.0.0.1:")
        serving.send_signal(signal.SIGINT)
        _, told = serving.communicate(timeout=SECONDS)
        assert serving.returncode == 0
    assert "the bus has stopped at head 0" in told
