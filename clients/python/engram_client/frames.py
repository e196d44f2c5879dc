"""What a stream says: the frames of a subscription and the answers to a pipeline, as frozen values."""

import msgspec

from engram_client.errors import BY_CODE, EngramError, ShuttingDown
from engram_client.values import Cursor, Lock, Receipt, WorkUnit


class Subscribed(msgspec.Struct, frozen=True):
    """Where the stream starts: before any unit."""

    cursor: Cursor
    head: int


class Units(msgspec.Struct, frozen=True):
    """Units in order. `cursor` covers all of them, and what the filter left out behind the last."""

    units: list[WorkUnit]
    cursor: Cursor


class Heartbeat(msgspec.Struct, frozen=True):
    """Nothing up to `cursor` is missing."""

    cursor: Cursor
    head: int


class Missing(msgspec.Struct, frozen=True):
    """A `gap`: the units `from_seq` to `to_seq` cannot be had."""

    from_seq: int
    to_seq: int
    reason: str


class Appended(msgspec.Struct, frozen=True):
    """The append of this id is acknowledged."""

    id: int
    receipt: Receipt


class Locked(msgspec.Struct, frozen=True):
    """The lock that the operation of this id asked for (or refreshed) is held."""

    id: int
    lock: Lock


class Released(msgspec.Struct, frozen=True):
    """The lock is not held any more; `released` says whether it still was."""

    id: int
    released: bool


class Pong(msgspec.Struct, frozen=True):
    """A sign of life: the answer to a ping of this id."""

    id: int | str | None = None


class Refused(msgspec.Struct, frozen=True):
    """An `error`: about the operation of this id, or the whole connection."""

    id: int | str | None
    error: EngramError


class Goaway(msgspec.Struct, frozen=True):
    """The bus is stopping, or tired of waiting: come back after a while."""

    reason: str
    retry_after_seconds: float

    @property
    def error(self) -> EngramError:
        """What it means for whoever is connected."""
        error = BY_CODE.get(self.reason, ShuttingDown)
        return error(f"the bus said goodbye: {self.reason}", retry_after_seconds=self.retry_after_seconds)


class Other(msgspec.Struct, frozen=True):
    """An event that a newer bus sends: a sign of life."""

    event: str


StreamFrame = Subscribed | Units | Heartbeat | Missing
"""What moves a subscription on."""

Frame = StreamFrame | Appended | Locked | Released | Pong | Refused | Goaway | Other
