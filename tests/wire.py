"""Bytes to a bus and answers back, for tests that say what no client library would."""

import json
import select
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        said: dict[str, Any] = json.loads(self.body)
        assert said["status"] == self.status
        return said


class Wire:
    """A connection that sends what it is told and reads answers one by one."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, timeout=10)
        self._reader = self._socket.makefile("rb")

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._socket.close()

    def send(self, data: bytes) -> "Wire":
        self._socket.sendall(data)
        return self

    def answer(self) -> Answer:
        """The next answer (one with a length)."""
        status_line = self._reader.readline()
        assert status_line, "the connection was closed without an answer"
        headers = dict(self._headers())
        body = self._reader.read(int(headers["content-length"]))
        return Answer(int(status_line.split()[1]), headers, body)

    def status_line(self) -> str:
        """The first line of the next answer, and nothing more of it."""
        return self._reader.readline().decode()

    def rest(self) -> bytes:
        """All that comes until the bus closes."""
        return self._reader.read()

    def leave(self) -> None:
        """As a process that is killed leaves: with a reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def drip(self, data: bytes, *, every_seconds: float) -> Answer:
        """Send this over and over, slowly, until there is an answer."""
        while not select.select([self._socket], [], [], every_seconds)[0]:
            self.send(data)
        return self.answer()

    def is_cut_off_from(self, data: bytes) -> bool:
        """Send this over and over until the bus has had enough."""
        while True:
            try:
                self.send(data)
            except OSError:
                return True

    def _headers(self) -> Iterator[tuple[str, str]]:
        while (line := self._reader.readline().decode().rstrip("\r\n")) != "":
            name, _, value = line.partition(":")
            yield name.lower(), value.strip()


def request(method: str, target: str, body: bytes = b"", *headers: str) -> bytes:
    """A request as bytes; its length is told unless a header tells otherwise."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *headers]
    if body and not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body
