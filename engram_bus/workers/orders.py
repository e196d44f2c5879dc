"""What the supervisor gives the processes it starts, and what they tell it."""

import contextlib
import socket
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from engram_bus.limits import KIB
from engram_bus.settings import Settings

_MESSAGE_BYTES = 64 * KIB


class LogOrder(msgspec.Struct, frozen=True):
    """To the log process."""

    settings: Settings
    parent_pid: int
    control_fd: int
    head_fd: int


class WorkerOrder(msgspec.Struct, frozen=True):
    """To a worker."""

    settings: Settings
    parent_pid: int
    number: int
    serial: int
    """Of this start of it."""
    control_fd: int
    head_fd: int
    line_fd: int
    listener_fd: int
    grpc_port: int | None
    no_grpc: str


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The log is open."""

    head: int
    epoch: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It cannot be started, in one line."""

    why: str


class Cut(msgspec.Struct, frozen=True, tag=True):
    """The log process has no line to this start of a worker any more: whatever it does, it is to be started again."""

    serial: int
    why: str


class Answering(msgspec.Struct, frozen=True, tag=True):
    """This start of a worker takes connections."""

    serial: int


Told = Opened | Failed | Cut | Answering
Order = TypeVar("Order", LogOrder, WorkerOrder)

_decode_told = msgspec.json.Decoder(Told).decode


def encode_order(order: LogOrder | WorkerOrder) -> str:
    """One argument of a command line."""
    return msgspec.json.encode(order).decode()


def decode_order(argument: str, kind: type[Order]) -> Order:
    return msgspec.json.decode(argument, type=kind)


def control_pair() -> tuple[socket.socket, socket.socket]:
    """The supervisor's end and the other's: a message is a packet."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ends[0].setblocking(False)
    return ends


def control_of(fd: int) -> socket.socket:
    """The end that a process was given."""
    control = socket.socket(fileno=fd)
    control.setblocking(False)
    return control


def told(control: socket.socket, message: Told) -> None:
    """Tell the supervisor, who reads at once or is gone."""
    with contextlib.suppress(OSError):
        control.send(msgspec.json.encode(message))


def heard(control: socket.socket) -> Iterator[Told | None]:
    """What a process told; None when it is gone."""
    while True:
        try:
            packet = control.recv(_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            yield None
            return
        yield _decode_told(packet)


def give(control: socket.socket, serial: int, end: socket.socket) -> None:
    """Hand the log process its end of the line to a start of a worker. Raises OSError."""
    socket.send_fds(control, [b"%d" % serial], [end.fileno()])


def taken(control: socket.socket) -> Iterator[tuple[int, socket.socket | None]]:
    """Starts of workers whose lines were handed over; without one when the supervisor is gone."""
    while True:
        try:
            packet, fds, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 1)
        except BlockingIOError:
            return
        except OSError:
            packet, fds = b"", []
        if not packet:
            yield 0, None
            return
        yield int(packet), socket.socket(fileno=fds[0])
