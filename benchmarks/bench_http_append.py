"""How long does one client wait for a durable append over HTTP, beside a bare fdatasync of the same disk?

python -m benchmarks.bench_http_append [--small]
"""

import json
import socket
import sys
import time

from benchmarks.harness import fdatasync_seconds, machine, percentiles_us, report, scratch, served

QUESTION = "one client, one append after the other over HTTP: time to the durable answer, and the disk's own flush"


def main() -> None:
    """Rounds of flushes and appends in turn, so that both meet the machine in the same mood."""
    small = "--small" in sys.argv
    rounds, units = (2, 100) if small else (7, 2_000)
    flushes: list[float] = []
    appends: list[float] = []
    ratios = []
    with scratch() as directory, served(directory) as (host, port):
        about = machine(directory)
        for _ in range(rounds):
            flushed = fdatasync_seconds(directory, count=units // 4)
            appended = _appends(host, port, units)
            ratios.append(percentiles_us(appended)["p50"] / percentiles_us(flushed)["p50"])
            flushes += flushed
            appends += appended
    figures = {
        "machine": about,
        "units": len(appends),
        "fdatasync_us": percentiles_us(flushes),
        "append_us": percentiles_us(appends),
        "append_p50_to_fdatasync_p50": round(sorted(ratios)[len(ratios) // 2], 2),
    }
    report(QUESTION, figures, small=small)


def _appends(host: str, port: int, units: int) -> list[float]:
    body = json.dumps({"context_id": "bench", "agent_id": "load", "payload": "x" * 300}).encode()
    head = f"POST /workunit HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    request = head.encode() + b"\r\n\r\n" + body
    times = []
    with socket.create_connection((host, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(units):
            started = time.perf_counter()
            connection.sendall(request)
            answer = connection.recv(65_536)
            while not answer.endswith(b"}"):
                answer += connection.recv(65_536)
            times.append(time.perf_counter() - started)
            assert answer.startswith(b"HTTP/1.1 201"), answer
    return times


if __name__ == "__main__":
    main()
