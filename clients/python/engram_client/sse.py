"""Bytes of a text/event-stream to events, cut anywhere, as the HTML standard reads them."""

from collections.abc import Iterator
from typing import NamedTuple

from engram_client.errors import EngramConnectionError
from engram_client.limits import SSE_EVENT_BYTES_MAX


class Event(NamedTuple):
    """`name` is "" for a plain message; `last_id` is the newest id of the stream, this event's or an earlier one's."""

    name: str
    data: str
    last_id: str


class EventParser:
    """Feed it chunks; it gives the events that are complete."""

    def __init__(self) -> None:
        self._started = False
        self._rest = b""
        self._name = ""
        self._data: list[str] = []
        self._data_bytes = 0
        self._last_id = ""

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that end in `chunk`. Raises EngramConnectionError where one grows beyond all bounds."""
        for line in self._lines(chunk):
            if line:
                self._field(line)
            elif (event := self._dispatch()) is not None:
                yield event
        if len(self._rest) + self._data_bytes > SSE_EVENT_BYTES_MAX:
            raise EngramConnectionError(f"an event of more than {SSE_EVENT_BYTES_MAX} bytes", retryable=False)

    def _lines(self, chunk: bytes) -> list[bytes]:
        text = self._rest + chunk
        if not self._started and len(text) >= 3:
            self._started = True
            text = text.removeprefix(b"\xef\xbb\xbf")
        # A CR at the end may be the first half of a CRLF: it waits. bytes.splitlines knows CR, LF, CRLF and no others.
        held = text[-1:] == b"\r"
        lines = text[: -1 if held else None].splitlines(keepends=True)
        self._rest = lines.pop() if lines and lines[-1][-1:] not in (b"\n", b"\r") else b""
        if held:
            self._rest += b"\r"
        return [line.rstrip(b"\r\n") for line in lines]

    def _field(self, line: bytes) -> None:
        name, _, raw = line.partition(b":")
        value = raw.removeprefix(b" ").decode("utf-8", "replace")
        match name:
            case b"data":
                self._data.append(value)
                self._data_bytes += len(raw)
            case b"event":
                self._name = value
            case b"id" if "\0" not in value:
                self._last_id = value
            case _:  # a comment, `retry` (the pauses are ours), or nothing known
                pass

    def _dispatch(self) -> Event | None:
        data, name = self._data, self._name
        self._data, self._data_bytes, self._name = [], 0, ""
        return Event(name, "\n".join(data), self._last_id) if data else None
