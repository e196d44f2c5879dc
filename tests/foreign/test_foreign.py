"""Clients nobody here wrote read the streams as they are, and resume after the bus was killed."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google.rpc
import httpx
import jsonschema
import pytest

from engram_bus.api import asyncapi
from tests.foreign.conversation import TOLD
from tests.live import LiveBus
from tests.process import BusProcess

pytestmark = pytest.mark.foreign

HERE = Path(__file__).parent
UNITS = 300
READERS = {
    "EventSource in Chromium": ["node", "browser.mjs", "{url}", "{profile}"],
    "npm eventsource": ["node", "eventsource.mjs", "{url}"],
    "httpx-sse": [sys.executable, "httpx_sse_reader.py", "{url}"],
    "websockets, JSON": [sys.executable, "websockets_reader.py", "{url}", "engram.v1.json"],
    "websockets, MessagePack": [sys.executable, "websockets_reader.py", "{url}", "engram.v1.msgpack"],
    "npm ws, JSON": ["node", "ws.mjs", "{url}", "engram.v1.json"],
    "npm ws, MessagePack": ["node", "ws.mjs", "{url}", "engram.v1.msgpack"],
    "npm grpc-js": ["node", "grpc_reader.mjs", "{grpc}"],
}


@contextmanager
def reader(command: list[str], **places: object) -> Iterator[Iterator[int]]:
    """The seqs a client prints as it receives them."""
    filled = [part.format(**places) for part in command]
    process = subprocess.Popen(filled, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        try:
            yield map(int, process.stdout)
        finally:
            process.terminate()


def append(bus: BusProcess, units: int) -> None:
    """A bulk of units; each is durable when this returns."""
    drafts = [{"context_id": "plan", "agent_id": "ann", "payload": f"line {n}\nand more"} for n in range(units)]
    assert httpx.post(f"{bus.url}/workunits", json=drafts).status_code == 201


@pytest.mark.parametrize("client", READERS)
def test_reads_everything_once_in_order_across_a_kill(client: str, tmp_path: Path) -> None:
    port = _free_port()
    with BusProcess(tmp_path / "data", "--grpc-port", str(port)) as bus:
        append(bus, UNITS)
        places = {"url": bus.url, "grpc": f"127.0.0.1:{port}", "profile": tmp_path / "profile"}
        with reader(READERS[client], **places) as seqs:
            assert [next(seqs) for _ in range(UNITS)] == list(range(1, UNITS + 1))
            bus.kill()
            bus.start()
            append(bus, UNITS)
            assert [next(seqs) for _ in range(UNITS)] == list(range(UNITS + 1, 2 * UNITS + 1))
            bus.stop()
            bus.start()
            append(bus, 1)
            assert next(seqs) == 2 * UNITS + 1


def test_a_client_that_npm_makes_of_the_proto_files_is_told_everything() -> None:
    well_known = Path(google.rpc.__path__[0]).parents[1]  # google/rpc/status.proto
    with LiveBus() as bus:
        assert _told("grpc_talk.mjs", bus.grpc_address, str(well_known)) == TOLD


def test_the_documentation_page_needs_no_network(tmp_path: Path) -> None:
    with BusProcess(tmp_path / "data") as bus:
        page = _told("docs.mjs", bus.url, str(tmp_path / "profile"))
    assert page["foreign"] == []
    assert page["errors"] == []
    for path in ("/workunit", "/workunits/{context_id}", "/contexts/{context_id}", "/stream-sse"):
        assert path in page["text"]
    assert page["answer"].startswith("201")
    assert page["live"].split() == ["1", "plan", "ann", "MESSAGE", "The", "tests", "pass."]


def test_a_browser_lets_only_pages_of_this_machine_at_the_bus(tmp_path: Path) -> None:
    with BusProcess(tmp_path / "data") as bus:
        tried = _told("origins.mjs", bus.url, str(tmp_path / "profile"))
        assert httpx.get(f"{bus.url}/status").json()["head"] == 2
    everything = ("read", "write", "simpleWrite", "stream", "socket")
    assert tried["here"] == dict(zip(everything, ("200", "201", "201", "subscribed", "subscribed"), strict=True))
    assert tried["elsewhere"] == dict.fromkeys(everything, "refused")
    assert tried["rebound"] == 403


def test_the_asyncapi_document_is_valid() -> None:
    schema = json.loads((HERE / "node_modules/@asyncapi/specs/schemas/3.0.0-without-$id.json").read_text())
    jsonschema.Draft7Validator(schema).validate(asyncapi.document("1.2.3"))


def _free_port() -> int:
    """One that a bus can take again after each of its starts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _told(program: str, *arguments: str) -> dict[str, Any]:
    """What one of the programs here says when it is done."""
    ended = subprocess.run(
        ["node", program, *arguments], cwd=HERE, capture_output=True, text=True, timeout=60, check=True
    )
    said: dict[str, Any] = json.loads(ended.stdout)
    return said
