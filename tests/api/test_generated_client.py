"""The proto files are all that a Python client needs: stubs made of them on the spot, in a process that knows nothing
else of ours."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import httpx
import pytest

from tests.foreign.conversation import TOLD
from tests.live import LiveBus
from tests.process import BusProcess

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "tests/foreign/generated_client.py"
UNITS = 300


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What protoc makes of proto/, gRPC's stubs too."""
    target = tmp_path_factory.mktemp("stubs")
    paths = [f"--proto_path={ROOT / 'proto'}", f"--proto_path={resources.files('grpc_tools') / '_proto'}"]
    files = [str(path) for path in (ROOT / "proto/engram/v1").glob("*.proto")]
    outs = [f"--python_out={target}", f"--grpc_python_out={target}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *paths, *outs, *files], check=True)
    return target


@contextmanager
def generated(stubs: Path, what: str, address: str) -> Iterator[subprocess.Popen[str]]:
    """The client, killed by its pid where the test leaves it running."""
    process = subprocess.Popen(
        [sys.executable, str(CLIENT), what, address],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(stubs)},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_is_told_everything(stubs: Path) -> None:
    with LiveBus() as bus, generated(stubs, "talk", bus.grpc_address) as client:
        told, _ = client.communicate(timeout=60)
    assert json.loads(told) == TOLD


def test_reads_everything_once_in_order_across_a_kill(stubs: Path, tmp_path: Path) -> None:
    port = free_port()
    with (
        BusProcess(tmp_path / "data", "--grpc-port", str(port)) as bus,
        generated(stubs, "read", f"127.0.0.1:{port}") as client,
    ):
        assert client.stdout is not None
        seqs = map(int, client.stdout)
        append(bus, UNITS)
        assert [next(seqs) for _ in range(UNITS)] == list(range(1, UNITS + 1))
        bus.kill()
        bus.start()
        append(bus, UNITS)
        assert [next(seqs) for _ in range(UNITS)] == list(range(UNITS + 1, 2 * UNITS + 1))
        bus.stop()
        bus.start()
        append(bus, 1)
        assert next(seqs) == 2 * UNITS + 1


def append(bus: BusProcess, units: int) -> None:
    """A bulk of units; each is durable when this returns."""
    drafts = [{"context_id": "plan", "agent_id": "ann", "payload": f"line {n}"} for n in range(units)]
    assert httpx.post(f"{bus.url}/workunits", json=drafts).status_code == 201


def free_port() -> int:
    """One that a bus can take again after each of its starts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
