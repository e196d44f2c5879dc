"""Calls are cut at any moment, by the network, the client, a deadline or a killed bus: each unit once and in order."""

import random
import threading
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from engram_bus.pb import append_pb2
from tests.api.calls import Calls, Refused, calls
from tests.process import BusProcess
from tests.simulation.links import Link

UNITS = 1_500
READERS: list[dict[str, Any]] = [
    {"context": ["*"]},
    {"context": ["c1"]},
    {"context": ["*"], "agent": ["bob"], "kind": ["n.odd"]},
]


class Bus:
    """A bus process that can be killed, behind a link that can be cut."""

    def __init__(self, path: Path) -> None:
        self.process = BusProcess(path, "--grpc-port", "0", "--heartbeat-seconds", "1")
        self._grpc = ("127.0.0.1", 1)

    def start(self) -> None:
        self.process.start()
        self._grpc = ("127.0.0.1", httpx.get(f"{self.process.url}/readyz").json()["grpc_port"])

    def address(self) -> tuple[str, int]:
        return self._grpc


class Publisher:
    """Appends over AppendStream; what was not answered is sent again, under its key."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.receipts: dict[int, append_pb2.Receipt] = {}

    def run(self) -> None:
        while len(self.receipts) < UNITS:
            missing = [number for number in range(UNITS) if number not in self.receipts]
            with calls(self._link.address) as ann:
                try:
                    for answer in ann.stream(self._messages(missing)):
                        for one in answer.results:
                            assert one.WhichOneof("outcome") == "receipt" or one.error.retryable, one
                            if one.HasField("receipt"):
                                self.receipts[one.id] = one.receipt
                except grpc.RpcError as exc:
                    check_passing(exc)

    def _messages(self, numbers: list[int]) -> Any:
        while numbers:
            some, numbers = numbers[:10], numbers[10:]
            yield append_pb2.AppendStreamRequest(
                items=[append_pb2.AppendStreamItem(id=number, append=unit(number)) for number in some]
            )


def unit(number: int) -> append_pb2.AppendRequest:
    return append_pb2.AppendRequest(
        context_id=f"c{number % 3}",
        agent_id="bob" if number % 2 else "ann",
        kind="n.odd" if number % 2 else "n.even",
        payload=b"%d" % number,
        idempotency_key=f"key-{number}",
    )


class Reader:
    """Reads until it has seen the last unit, over as many calls as that takes."""

    def __init__(self, link: Link, dice: random.Random, wanted: dict[str, Any]) -> None:
        self._link = link
        self._dice = dice
        self._wanted = wanted
        self.heard: list[tuple[int, str, int]] = []
        self.after = "0"
        self.calls = 0
        self._channel: grpc.Channel | None = None

    def run(self, is_over: threading.Event, head: list[int]) -> None:
        while not (is_over.is_set() and int(self.after.rpartition(".")[2]) >= head[0]):
            self.calls += 1
            with calls(self._link.address) as eve:
                self._channel = eve.channel
                try:
                    self._read(eve)
                except grpc.RpcError as exc:
                    check_passing(exc)
                except ValueError as exc:
                    if "closed channel" not in str(exc):
                        raise

    def hang_up(self) -> None:
        """End the call that is under way, if there is one, with its channel: gRPC's client now and then forgets the
        deadline of one whose connection was cut while it was made, and even that it was cancelled."""
        if self._channel is not None:
            self._channel.close()

    def _read(self, eve: Calls) -> None:
        call = eve.subscribe(**self._wanted, after=self.after, timeout=self._dice.uniform(0.05, 1.5))
        messages_max = self._dice.choice([1, 5, 50, 5_000])
        for count, message in enumerate(call):
            if count == 0:
                assert message.WhichOneof("event") == "subscribed"
                assert self.after in ("0", message.cursor)
            self.heard += [(one.seq, one.context_id, one.version) for one in message.work_units]
            self.after = message.cursor
            if count >= messages_max:
                call.cancel()
                return


def check_passing(error: grpc.RpcError) -> None:
    """It is what a client may meet when a call is cut, and comes back after."""
    passing = error.code().name in ("UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED") or Refused(error).error.retryable
    assert passing, error


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=[pytest.mark.long, pytest.mark.timeout(1_800)])])
def test_each_unit_comes_once_and_in_order_however_calls_are_cut(tmp_path: Path, kills: int) -> None:
    seed = random.getrandbits(32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    bus, is_over, head = Bus(tmp_path / "data"), threading.Event(), [0]
    bus.start()
    with Link(bus.address) as link:
        publisher = Publisher(link)
        readers = [Reader(link, random.Random(dice.random()), wanted) for wanted in READERS]
        threads = [threading.Thread(target=publisher.run, daemon=True)]
        threads += [threading.Thread(target=one.run, args=(is_over, head), daemon=True) for one in readers]
        for thread in threads:
            thread.start()
        for _ in range(kills):
            for _ in range(dice.randint(1, 3)):
                threads[0].join(dice.uniform(0, 0.3))
                link.cut()
            (bus.process.kill if dice.random() < 0.6 else bus.process.stop)()
            bus.start()
        threads[0].join(60)
        assert len(publisher.receipts) == UNITS
        head[0] = max(one.seq for one in publisher.receipts.values())
        is_over.set()
        for thread, reader in zip(threads[1:], readers, strict=True):
            for _ in range(30):
                thread.join(2)
                if not thread.is_alive():
                    break
                reader.hang_up()
            assert not thread.is_alive()
    check(bus, publisher, readers)
    bus.process.stop()


def check(bus: Bus, publisher: Publisher, readers: list[Reader]) -> None:
    with calls("{}:{}".format(*bus.address())) as ann:
        units = [one for n in range(3) for one in ann.call("List", context_id=f"c{n}", limit=1_000).work_units]
    assert sorted(one.payload for one in units) == sorted(b"%d" % number for number in range(UNITS))
    by_seq = {one.seq: one for one in units}
    assert all(by_seq[one.seq].id == one.unit_id for one in publisher.receipts.values())
    for reader in readers:
        wanted = [
            (one.seq, one.context_id, one.version)
            for _, one in sorted(by_seq.items())
            if reader._wanted["context"] in (["*"], [one.context_id])
            and one.agent_id in reader._wanted.get("agent", [one.agent_id])
        ]
        assert reader.heard == wanted
        assert reader.calls > 1
