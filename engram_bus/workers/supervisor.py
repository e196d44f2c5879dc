"""The process the user started, of a bus of several: it opens the ports, starts the others and looks after them.

A worker that dies is started again; who connects meanwhile is another one's. When the log process dies everything ends.
All die with the supervisor.
"""

import asyncio
import contextlib
import logging
import mmap
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from functools import partial

from engram_bus import process
from engram_bus.errors import DataDirectoryError
from engram_bus.limits import (
    PROCESS_END_SECONDS_MAX,
    WORKER_RESTART_SECONDS,
    WORKER_RESTART_SECONDS_MAX,
)
from engram_bus.ports import PortTaken, address_of, hold, share, url_of
from engram_bus.projections.search.choice import check as check_embedder
from engram_bus.settings import GRPC_PORT, Settings, SettingsError
from engram_bus.workers.choice import chosen_workers
from engram_bus.workers.line import pair
from engram_bus.workers.orders import (
    Answering,
    Cut,
    Failed,
    LogOrder,
    Opened,
    Told,
    WorkerOrder,
    control_pair,
    encode_order,
    give,
    heard,
)

log = logging.getLogger("engram_bus")


class LogProcessDied(Exception):
    """It ended without being told to, and the bus with it. What was acknowledged is in the log."""


def run(settings: Settings, *, ready: Callable[[str], None] = lambda url: None) -> None:
    """Serve until SIGINT or SIGTERM, in as many processes as it takes; `ready` is told the address.

    Raises DataDirectoryError, PortTaken, SettingsError, LogProcessDied.
    """
    try:
        check_embedder(settings.embedder)
    except ValueError as exc:
        raise SettingsError(f"embedder: {exc}") from exc
    workers, why = chosen_workers(settings)
    if workers:
        process.set_up_logging(settings.log_level)
        supervise(settings, workers, ready=ready, why=why)
    else:
        # All that speaks to clients is loaded by who does.
        from engram_bus.serve import run as run_in_one  # noqa: PLC0415

        run_in_one(settings, ready=ready, why=why)


def supervise(
    settings: Settings, workers: int, *, ready: Callable[[str], None] = lambda url: None, why: str = "as it was told"
) -> None:
    """Serve with a log process and this many workers. Raises DataDirectoryError, PortTaken, LogProcessDied."""
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(hold(settings.host, settings.port))
        grpc_port, no_grpc = None, "gRPC is off"
        if settings.grpc:
            grpc_port, no_grpc = _grpc_port(settings, stack)
        asyncio.run(Supervisor(settings, workers, held, grpc_port, no_grpc, ready, why).run())


def _grpc_port(settings: Settings, stack: contextlib.ExitStack) -> tuple[int | None, str]:
    """The port of gRPC, held by a socket that never listens, or why there is none. Raises PortTaken where one was asked
    for."""
    port = GRPC_PORT if settings.grpc_port is None else settings.grpc_port
    try:
        held = hold(settings.host, port, "--grpc-port")
    except PortTaken:
        if settings.grpc_port is not None:
            raise
        log.warning("no gRPC: port %d is taken; choose another with --grpc-port", port)
        return None, f"port {port} is taken"
    stack.enter_context(held)
    port = held.getsockname()[1]
    log.info("gRPC is at %s", address_of(settings.host, port))
    return port, ""


class _Child:
    """A process that was started; `take` is given what it tells."""

    def __init__(
        self,
        module: str,
        order: LogOrder | WorkerOrder,
        fds: Sequence[int],
        control: socket.socket,
        take: Callable[[Told], None],
    ) -> None:
        self.control = control
        self._take = take
        self._loop = asyncio.get_running_loop()
        self.started_at = self._loop.time()
        # In a session of its own: a Ctrl-C is the supervisor's, who ends the others in order.
        self.popen = subprocess.Popen(  # noqa: S603 (our own program)
            process.python(module, encode_order(order)),
            pass_fds=fds,
            env=process.path_variables(),
            start_new_session=True,
        )
        self._pidfd = os.pidfd_open(self.popen.pid)
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._reap)
        self._loop.add_reader(control.fileno(), self._hear)

    def _hear(self) -> None:
        for told in heard(self.control):
            if told is None:
                self._loop.remove_reader(self.control.fileno())
                return
            self._take(told)

    def _reap(self) -> None:
        self._hear()  # What it told last.
        self._loop.remove_reader(self.control.fileno())
        self.control.close()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.ended.set_result(self.popen.wait())

    def signal(self, how: signal.Signals) -> None:
        if not self.ended.done():
            self.popen.send_signal(how)


class _Worker:
    """One worker, over all its starts."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.serial = 0
        self.child: _Child | None = None
        self.restart_seconds = WORKER_RESTART_SECONDS
        self.restart: asyncio.TimerHandle | None = None
        self.is_answering = False


class Supervisor:
    """Starts, restarts, ends. All of it runs in the loop's thread."""

    def __init__(
        self,
        settings: Settings,
        workers: int,
        held: socket.socket,
        grpc_port: int | None,
        no_grpc: str,
        ready: Callable[[str], None],
        why: str,
    ) -> None:
        """`why` there are so many workers is logged."""
        self._settings = settings
        self._why = why
        self._workers = [_Worker(number) for number in range(1, workers + 1)]
        self._held = held
        self._grpc_port = grpc_port
        self._no_grpc = no_grpc
        self._ready = ready
        self._url = url_of(held)
        self._serials = 0
        self._opened: Opened | None = None
        self._failed: str | None = None
        self._is_ready = False
        self._is_ending = False
        self._head_fd = os.memfd_create("engram-head", os.MFD_CLOEXEC)
        os.ftruncate(self._head_fd, mmap.PAGESIZE)

    async def run(self) -> None:
        """Until it is told to stop, or cannot go on."""
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        for how in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(how, self._stop.set)
        self._log_process = self._start_log_process()
        for worker in self._workers:
            self._start_worker(worker)
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait((stopping, self._log_process.ended), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        died = self._log_process.ended.done()
        await self._end()
        os.close(self._head_fd)
        if self._failed is not None:
            raise DataDirectoryError(self._failed)
        if died:
            raise LogProcessDied(f"the log process ended ({_ending(self._log_process)}), and the bus with it")

    # --- Starting ----------------------------------------------------------------------------------------------------

    def _start_log_process(self) -> _Child:
        ours, theirs = control_pair()
        with theirs:
            order = LogOrder(self._settings, os.getpid(), theirs.fileno(), self._head_fd)
            fds = (theirs.fileno(), self._head_fd)
            return _Child("engram_bus.workers.log_process", order, fds, ours, self._hear_log_process)

    def _start_worker(self, worker: _Worker) -> None:
        worker.restart = None
        self._serials += 1
        worker.serial = self._serials
        ours, theirs = control_pair()
        line, far_end = pair()
        with share(self._held) as listener, theirs, line, far_end:
            try:
                give(self._log_process.control, worker.serial, far_end)
            except OSError as exc:
                ours.close()
                self._start_again(worker, f"has no line to the log process ({exc})")
                return
            order = WorkerOrder(
                self._settings,
                os.getpid(),
                worker.number,
                worker.serial,
                theirs.fileno(),
                self._head_fd,
                line.fileno(),
                listener.fileno(),
                self._grpc_port,
                self._no_grpc,
            )
            fds = (theirs.fileno(), self._head_fd, line.fileno(), listener.fileno())
            take = partial(self._hear_worker, worker)
            child = worker.child = _Child("engram_bus.workers.worker", order, fds, ours, take)
        child.ended.add_done_callback(lambda _: self._worker_ended(worker, child))

    def _worker_ended(self, worker: _Worker, child: _Child) -> None:
        worker.child = None
        if self._is_ending or self._log_process.ended.done():
            return
        if self._loop.time() - child.started_at > 2 * WORKER_RESTART_SECONDS_MAX:
            worker.restart_seconds = WORKER_RESTART_SECONDS
        self._start_again(worker, f"ended ({_ending(child)})")

    def _start_again(self, worker: _Worker, why: str) -> None:
        """In a while, a longer one each time."""
        log.warning("worker %d %s; it is started again in %g seconds", worker.number, why, worker.restart_seconds)
        worker.restart = self._loop.call_later(worker.restart_seconds, self._start_worker, worker)
        worker.restart_seconds = min(2 * worker.restart_seconds, WORKER_RESTART_SECONDS_MAX)

    # --- What they tell ----------------------------------------------------------------------------------------------

    def _hear_log_process(self, told: Told) -> None:
        match told:
            case Opened():
                self._opened = told
                self._tell_ready()
            case Failed(why=why):
                self._failed = why
            case Cut(serial=serial, why=why):
                self._cut(serial, why)
            case Answering():
                raise AssertionError("a worker tells that")

    def _hear_worker(self, worker: _Worker, told: Told) -> None:
        if isinstance(told, Answering) and worker.serial == told.serial:
            worker.is_answering = True
            self._tell_ready()

    def _cut(self, serial: int, why: str) -> None:
        for worker in self._workers:
            if worker.serial == serial and worker.child is not None and not self._is_ending:
                log.warning("worker %d was cut off: %s", worker.number, why)
                worker.child.signal(signal.SIGKILL)

    def _tell_ready(self) -> None:
        if self._is_ready or self._opened is None or not all(worker.is_answering for worker in self._workers):
            return
        self._is_ready = True
        opened, data = self._opened, self._settings.data_dir
        log.info("the bus is at %s: head %d, epoch %s, data in %s", self._url, opened.head, opened.epoch, data)
        log.info("a log process and %d worker%s: %s", len(self._workers), "s"[: len(self._workers) - 1], self._why)
        self._ready(self._url)

    # --- Ending ------------------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        """The workers first, which need the log process for what they have under way."""
        self._is_ending = True
        for worker in self._workers:
            if worker.restart is not None:
                worker.restart.cancel()
        await _end_all([worker.child for worker in self._workers if worker.child is not None])
        await _end_all([self._log_process])


async def _end_all(children: Sequence[_Child]) -> None:
    """Told to stop; killed where they do not."""
    if not children:
        return
    for how, seconds in ((signal.SIGTERM, PROCESS_END_SECONDS_MAX), (signal.SIGKILL, None)):
        for child in children:
            child.signal(how)
        _, running = await asyncio.wait([child.ended for child in children], timeout=seconds)
        if not running:
            return


def _ending(child: _Child) -> str:
    code = child.ended.result()
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
