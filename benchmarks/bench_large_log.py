"""With a million units in the log: how long do the last 100 of a context take, and how long does a restart?

Asked together because both need the same log, which takes half a minute to write.

    python -m benchmarks.bench_large_log [--small]
"""

import json
import random
import resource
import socket
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.harness import machine, percentiles_us, report, scratch, served
from engram_bus import Bus, Draft, UnitType

QUESTION = "with N units in the log: the last 100 of a context (in process, over HTTP), and a restart until ready"
CONTEXTS = 1_000
BULK = 1_000


def main() -> None:
    """Write the log once, then ask it; a clean stop and a kill each have their restart."""
    small = "--small" in sys.argv
    units, reads, restarts = (10_000, 50, 1) if small else (1_000_000, 2_000, 5)
    with scratch() as directory:
        about = machine(directory)
        write_seconds = uvloop.run(_write(directory / "data", units))
        figures: dict[str, Any] = {
            "machine": about,
            "units": units,
            "contexts": CONTEXTS,
            "write_units_per_second": round(units / write_seconds),
            "last_100_in_process_us": percentiles_us(uvloop.run(last_100(directory / "data", reads, CONTEXTS))),
        }
        with served(directory) as (host, port):
            figures["last_100_over_http_us"] = percentiles_us(_last_100_http(host, port, reads))
        # Not closed cleanly: the newest snapshot is then up to 100,000 units old.
        figures["restart_after_kill_seconds"] = [_killed_and_restarted(directory) for _ in range(restarts)]
        figures["restart_after_stop_seconds"] = [_restarted(directory) for _ in range(restarts)]
    figures["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    report(QUESTION, figures, small=small)


async def _write(path: Path, units: int) -> float:
    draw = random.Random(1)
    started = time.perf_counter()
    async with Bus.open(path) as bus:
        for _ in range(units // BULK):
            await bus.append_bulk(
                Draft(
                    context_id=f"context/{draw.randrange(CONTEXTS)}",
                    agent_id=f"agent-{draw.randrange(50)}",
                    type=UnitType.MESSAGE,
                    payload=b"x" * 300,
                )
                for _ in range(BULK)
            )
    return time.perf_counter() - started


async def last_100(path: Path, reads: int, contexts: int) -> list[float]:
    """How long each read of the last 100 of one of `context/0`, `context/1`, ... takes, in seconds."""
    draw = random.Random(2)
    times = []
    async with Bus.open(path) as bus:
        for _ in range(reads):
            context_id = f"context/{draw.randrange(contexts)}"
            started = time.perf_counter()
            page = bus.list(context_id, limit=100, reverse=True)
            times.append(time.perf_counter() - started)
            assert page.entries
    return times


def _last_100_http(host: str, port: int, reads: int) -> list[float]:
    draw = random.Random(3)
    times = []
    with socket.create_connection((host, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(reads):
            path = f"/workunits/context/{draw.randrange(CONTEXTS)}?reverse=true&limit=100"
            started = time.perf_counter()
            connection.sendall(f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
            body = _body(connection)
            times.append(time.perf_counter() - started)
            assert json.loads(body)["work_units"]
    return times


def _body(connection: socket.socket) -> bytes:
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(262_144)
    head, _, body = answer.partition(b"\r\n\r\n")
    size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    parts = [body]
    left = size - len(body)
    while left > 0:
        parts.append(connection.recv(262_144))
        left -= len(parts[-1])
    return b"".join(parts)


def _killed_and_restarted(directory: Path) -> float:
    with served(directory, kill=True) as (host, port):
        # The start before this one left a snapshot at the head; leave this much to fold.
        _post(host, port, 20)
    return _restarted(directory, kill=True)


def _restarted(directory: Path, *, kill: bool = False) -> float:
    started = time.perf_counter()
    with served(directory, kill=kill) as (host, port), socket.create_connection((host, port)) as connection:
        connection.sendall(f"GET /readyz HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        assert json.loads(_body(connection))["ready"]
        return round(time.perf_counter() - started, 3)


def _post(host: str, port: int, bulks: int) -> None:
    unit = {"context_id": "context/0", "agent_id": "load", "payload": "x" * 300}
    body = json.dumps([unit] * BULK).encode()
    head = f"POST /workunits HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    with socket.create_connection((host, port)) as connection:
        for _ in range(bulks):
            connection.sendall(head.encode() + b"\r\n\r\n" + body)
            _body(connection)


if __name__ == "__main__":
    main()
