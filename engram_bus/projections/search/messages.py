"""What the bus and its search process say to one another: length-prefixed MessagePack over a socket pair."""

from collections.abc import Callable

import msgspec

from engram_bus.projections.search.values import Asked, Found

LENGTH_BYTES = 4


class Ring(msgspec.Struct, frozen=True, tag="ring"):
    """The log has units up to `head`."""

    head: int


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Answer this, over all units up to `reach` at least, unless it is too late for it."""

    id: int
    reach: int
    asked: Asked
    until: float
    """By this machine's monotonic clock, in seconds."""


class Rebuild(msgspec.Struct, frozen=True, tag="rebuild"):
    """Build the index again, and answer from the one there is until then."""


class State(msgspec.Struct, frozen=True, tag="state"):
    """How far the index is: up to `cursor` it outlives a restart, up to `taken` it is searched."""

    cursor: int
    taken: int
    generation: int = 0
    """Grows with each index that took the place of another."""
    rebuilt: int | None = None
    """Up to where the index that is to take its place was built; None while there is none."""
    embedder: str = ""
    """The name of the chosen one."""
    embedder_lag_units: int = 0
    """Units taken in that it has not given a vector."""
    embedder_trouble: str | None = None
    """Why it does not."""


class Answered(msgspec.Struct, frozen=True, tag="answered"):
    """The answer to an ask."""

    id: int
    found: Found


class Behind(msgspec.Struct, frozen=True, tag="behind"):
    """The index is being built, and too far behind for an answer now."""

    id: int
    taken: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The answer failed, by our mistake."""

    id: int
    message: str


ToSearch = Ring | Ask | Rebuild
ToBus = State | Answered | Behind | Failed

_encode = msgspec.msgpack.Encoder().encode
decode_to_search: Callable[[bytes], ToSearch] = msgspec.msgpack.Decoder(ToSearch).decode
decode_to_bus: Callable[[bytes], ToBus] = msgspec.msgpack.Decoder(ToBus).decode


def packed(message: ToSearch | ToBus) -> bytes:
    """A message with its length before it."""
    body = _encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def unpacked(received: bytearray) -> list[bytes]:
    """The whole messages at the start of what was received, which are taken off it."""
    messages = []
    while len(received) >= LENGTH_BYTES:
        end = LENGTH_BYTES + int.from_bytes(received[:LENGTH_BYTES], "big")
        if len(received) < end:
            break
        messages.append(bytes(received[LENGTH_BYTES:end]))
        del received[:end]
    return messages
