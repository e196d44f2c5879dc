"""One process that speaks to clients: `python -m engram_bus.workers.worker ORDER`."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Sequence

import uvloop

from engram_bus import process
from engram_bus.embedded import Bus
from engram_bus.limits import WORKER_TALLY_SECONDS
from engram_bus.serve import GrpcAddress, edge_of, is_reflecting, origins_of
from engram_bus.workers.line import HeadWord, Line
from engram_bus.workers.messages import Hello, decode_to_worker
from engram_bus.workers.orders import Answering, WorkerOrder, control_of, decode_order, told
from engram_bus.workers.remote import Remote

log = logging.getLogger("engram_bus")


class LineLost(Exception):
    """The log process is not there, or does not want this worker any more."""


def main(arguments: Sequence[str]) -> None:
    """Serve until the supervisor says so, or the line to the log process ends."""
    order = decode_order(arguments[0], WorkerOrder)
    process.die_with(order.parent_pid)
    process.set_up(order.settings.log_level, name=f"worker {order.number}")
    try:
        uvloop.run(_serve(order))
    except LineLost as exc:
        raise SystemExit(1) from exc  # Why, the supervisor was told.


async def _serve(order: WorkerOrder) -> None:
    settings = order.settings
    bus, remote = await _joined(order)
    if settings.search:
        bus.start_search()
    grpc = (
        None
        if order.grpc_port is None
        else GrpcAddress(settings.host, order.grpc_port, is_reflecting(settings), is_shared=True)
    )
    control = control_of(order.control_fd)
    edge = edge_of(
        bus,
        started=lambda: told(control, Answering(order.serial)),
        origins=origins_of(settings),
        grpc=grpc,
        no_grpc=order.no_grpc,
        worker=order.number,
    )
    tallying = asyncio.ensure_future(_tally(remote))
    try:
        await edge.serve(sockets=[socket.socket(fileno=order.listener_fd)])
    finally:
        tallying.cancel()
        await bus.stop("shutdown")
        remote.line.close()


async def _joined(order: WorkerOrder) -> tuple[Bus, Remote]:
    """A bus on what the log process says first, and follows up with. Raises LineLost."""
    early: list[memoryview] = []
    heard = asyncio.Event()
    lost: list[str] = []
    remote: Remote | None = None

    def received(body: memoryview) -> None:
        if remote is not None:
            remote.take(decode_to_worker(body))
        else:
            early.append(body)
            heard.set()

    def ended(why: str) -> None:
        lost.append(f"the line to the log process {why}")
        heard.set()
        if remote is not None:
            _end(lost[0])

    line = Line(socket.socket(fileno=order.line_fd), received=received, ended=ended)
    await heard.wait()
    if not early:
        raise LineLost(lost[0])
    hello = decode_to_worker(early.pop(0))
    assert isinstance(hello, Hello), "it is said first"
    remote = Remote(hello, HeadWord(order.head_fd), lost=_end)
    remote.line = line
    bus = remote.bus = Bus(
        remote.log,
        heartbeat_seconds=order.settings.heartbeat_seconds,
        stall_seconds=order.settings.stall_seconds,
        decider=remote.begin_writer,
        search=remote.begin_search,
    )
    bus.started_at = hello.started_at
    bus.elsewhere = hello.totals.elsewhere
    if hello.search is not None:
        bus.searcher = remote.begin_search(is_started=True)
    for body in early:
        remote.take(decode_to_worker(body))
    return bus, remote


def _end(why: str) -> None:
    """At once, as a process that dies: what was asked for and not answered may have been recorded or not, and nobody is
    to be told either."""
    log.error("this worker ends: %s", why)
    logging.shutdown()
    os._exit(1)


async def _tally(remote: Remote) -> None:
    while True:
        remote.tally()
        await asyncio.sleep(WORKER_TALLY_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1:])
