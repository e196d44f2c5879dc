"""When a lease is refreshed, and when it is over, by its holder's own clock. Knows no clock and no dice."""

import msgspec

from engram_client.limits import (
    BACKOFF_SECONDS_MIN,
    LEASE_PAUSE_SECONDS_MAX,
    LEASE_REFRESHED_AT,
    LEASE_SPREAD,
)
from engram_client.values import Lock


class Term(msgspec.Struct, frozen=True):
    """What is left of a lease. It begins before the bus was asked, so that it never ends later than on the bus, where a
    lease is never made shorter, by nobody of the same agent either; it may be longer there."""

    asked_at: float
    ends_at: float

    @classmethod
    def of(cls, lock: Lock, *, asked_at: float) -> "Term":
        """What a lock is good for that was asked for (or refreshed) at that time."""
        return cls(asked_at, asked_at + lock.remaining_seconds)

    def cut(self, ends_at: float | None) -> "Term":
        """The same, if it has to end earlier."""
        return self if ends_at is None or ends_at >= self.ends_at else Term(self.asked_at, ends_at)

    def is_over(self, now: float) -> bool:
        return now >= self.ends_at

    def refresh_in(self, now: float, *, chance: float) -> float:
        """How long the next refresh has time, `chance` being random in [0, 1): many leases of one moment spread."""
        share = LEASE_REFRESHED_AT * (1 - LEASE_SPREAD * chance)
        return max(0.0, self.asked_at + share * (self.ends_at - self.asked_at) - now)

    def try_seconds(self, now: float) -> float:
        """How long one try may take: half of what is left, so that there is always time for another one."""
        return max(0.0, self.ends_at - now) / 2

    def pause_seconds(self, now: float, *, failures: int, asked_seconds: float | None, chance: float) -> float:
        """The wait after so many failures in a row, and at least what the bus asked for, if the lease has the time."""
        grown = chance * min(LEASE_PAUSE_SECONDS_MAX, BACKOFF_SECONDS_MIN * 2.0 ** min(failures, 30))
        return min((asked_seconds or 0.0) + grown, max(0.0, self.ends_at - now) / 4)
