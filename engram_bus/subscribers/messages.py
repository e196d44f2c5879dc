"""Every message on a WebSocket as a value: what asyncapi.json says, what is read, and what each frame is held to.

Operations are read as these values. The router writes frames by hand (one serves many subscribers), so the events are
their description, not their source.
"""

from typing import Any, get_args

import msgspec
from msgspec import UNSET, UnsetType

from engram_bus.codec import LockIn, LockOut, RefreshIn, UnitIn, UnitOut, UnitPacked

Id = str | int
Names = str | list[str]


class _Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="event"):
    """What the bus sends."""


class _OfSubscription(_Event, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="event"):
    subscription: Id | UnsetType = UNSET
    """The `id` of the subscribe operation; not there for the URL's subscription."""


class _Answer(_Event, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="event"):
    id: Id | UnsetType = UNSET
    """The `id` of the operation it answers."""


class Subscribed(_OfSubscription, frozen=True, kw_only=True, tag="subscribed", forbid_unknown_fields=True):
    """Comes first, before any unit: where the subscription begins, and the newest seq of the log."""

    id: Id | UnsetType = UNSET
    cursor: str
    head: int


class Units(_OfSubscription, frozen=True, kw_only=True, tag="units", forbid_unknown_fields=True):
    """The next units, in order, several where they came together; resume after `cursor`."""

    units: list[UnitOut]
    cursor: str


class Heartbeat(_OfSubscription, frozen=True, kw_only=True, tag="heartbeat", forbid_unknown_fields=True):
    """Nothing for you up to `cursor`: keep it, so that a narrow filter need not read it all again."""

    cursor: str
    head: int


class Gap(
    _OfSubscription,
    frozen=True,
    kw_only=True,
    tag="gap",
    forbid_unknown_fields=True,
    rename={"first": "from", "last": "to"},
):
    """These seqs cannot be given; the stream goes on after them."""

    first: int
    last: int
    reason: str
    cursor: str


class Goaway(_OfSubscription, frozen=True, kw_only=True, tag="goaway", forbid_unknown_fields=True):
    """The connection ends. Come back after a while and resume after `cursor`."""

    reason: str
    retry_after_ms: int
    cursor: str


class Unsubscribed(_Answer, frozen=True, kw_only=True, tag="unsubscribed", forbid_unknown_fields=True):
    """The subscription is over; `cursor` is where it stood."""

    subscription: Id | None
    cursor: str


class Appended(_Answer, frozen=True, kw_only=True, tag="appended", forbid_unknown_fields=True):
    """The unit is recorded, as durably as it says; `replayed` when an idempotency key was given before."""

    unit_id: str
    context_id: str
    seq: int
    version: int
    durability: str
    replayed: bool | UnsetType = UNSET


class Refused(_Answer, frozen=True, kw_only=True, tag="error", forbid_unknown_fields=False):
    """The operation was refused, or (without `id`, before the socket closes) the subscription of the URL.

    Further members tell what to act on: `current_version`, `head`, `epoch`.
    """

    code: str
    message: str
    retryable: bool
    field: str | UnsetType = UNSET
    limit: int | UnsetType = UNSET
    index: int | UnsetType = UNSET


class Pong(_Answer, frozen=True, kw_only=True, tag="pong", forbid_unknown_fields=True):
    """The answer to a ping."""

    head: int


class Locked(_Answer, frozen=True, kw_only=True, tag="locked", forbid_unknown_fields=True):
    """The lock is held: granted now, or (`extended`) held before, with the same lock_id and fencing token."""

    lock_id: str
    fencing_token: int
    expires_at: str
    remaining_seconds: float
    extended: bool
    locks: list[LockOut]
    """One for each resource."""


class Released(_Answer, frozen=True, kw_only=True, tag="released", forbid_unknown_fields=True):
    """The lock is not held any more; `released` says whether it still was."""

    lock_id: str
    released: bool


class Cancelled(_Answer, frozen=True, kw_only=True, tag="cancelled", forbid_unknown_fields=True):
    """Nobody waits under this `acquire` any more; `cancelled` says whether anyone still did: that one was refused with
    WAIT_ENDED."""

    acquire: Id
    cancelled: bool


Event = (
    Subscribed
    | Units
    | Heartbeat
    | Gap
    | Goaway
    | Unsubscribed
    | Appended
    | Refused
    | Locked
    | Released
    | Cancelled
    | Pong
)


class _Operation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="op", gc=False):
    """What a client sends."""

    id: Id | UnsetType = UNSET
    """Echoed in the answer."""


class AppendUnit(_Operation, frozen=True, kw_only=True, tag="append", forbid_unknown_fields=True):
    """Record a unit. Send the next without waiting: answers come in the order of their commits."""

    unit: UnitIn


class AppendPacked(_Operation, frozen=True, kw_only=True, tag="append", forbid_unknown_fields=True):
    """Record a unit, with its payload as bin."""

    unit: UnitPacked


class Subscribe(_Operation, frozen=True, kw_only=True, tag="subscribe", forbid_unknown_fields=True):
    """A further subscription, named by the operation's `id`; the filters are those of the URL."""

    id: Id
    context: Names
    after: str | int | None = None
    type: str | int | list[str | int] | None = None
    kind: Names | None = None
    agent: Names | None = None
    exclude_agent: Names | None = None
    resource: Names | None = None
    meta: dict[str, str] | None = None


class Unsubscribe(_Operation, frozen=True, kw_only=True, tag="unsubscribe", forbid_unknown_fields=True):
    """End a subscription; null ends the one of the URL."""

    subscription: Id | None = None


class Ping(_Operation, frozen=True, kw_only=True, tag="ping", forbid_unknown_fields=True):
    """Ask for the head; answered in turn."""


class AcquireLock(LockIn, frozen=True, kw_only=True, tag_field="op", tag="lock.acquire", forbid_unknown_fields=True):
    """Hold resources, all or none. Answered when they are held, or not to be had; other operations go on meanwhile."""

    id: Id | UnsetType = UNSET
    session: bool = False
    """Release it when this connection ends, after a grace in which the agent may come back and ask for it again."""


class RefreshLock(RefreshIn, frozen=True, kw_only=True, tag_field="op", tag="lock.refresh", forbid_unknown_fields=True):
    """Extend a lease that has not run out."""

    id: Id | UnsetType = UNSET


class ReleaseLock(_Operation, frozen=True, kw_only=True, tag="lock.release", forbid_unknown_fields=True):
    """Give a lock back; again and again, if need be."""

    lock_id: str
    agent_id: str | None = None


class CancelLock(_Operation, frozen=True, kw_only=True, tag="lock.cancel", forbid_unknown_fields=True):
    """Wait no longer for a lock: `acquire` is the `id` of the lock.acquire."""

    acquire: Id


Operation = AppendUnit | Subscribe | Unsubscribe | AcquireLock | RefreshLock | ReleaseLock | CancelLock | Ping
PackedOperation = AppendPacked | Subscribe | Unsubscribe | AcquireLock | RefreshLock | ReleaseLock | CancelLock | Ping

EVENTS: tuple[type[Any], ...] = get_args(Event)
OPERATIONS: tuple[type[Any], ...] = get_args(Operation)
