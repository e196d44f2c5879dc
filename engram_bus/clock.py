"""The only reader of time: a wall clock that never goes back and is not moved by jumps."""

import time
from collections.abc import Callable

SLEW_DIVISOR = 200
"""Drift is taken back at most 1/200 (0.5 %) of the time that passes, as adjtime(3) does."""


def _boot_us() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000


def _wall_us() -> int:
    return time.time_ns() // 1_000


class Clock:
    """Microseconds since 1970, starting at the later of the wall clock and `not_before_us`.

    It advances with CLOCK_BOOTTIME (which counts suspension and is never set) and slews slowly toward the wall clock,
    so a clock set back or forward an hour neither repeats nor skips time for what depends on it.
    """

    def __init__(
        self, not_before_us: int = 0, *, boot_us: Callable[[], int] = _boot_us, wall_us: Callable[[], int] = _wall_us
    ) -> None:
        self._boot_us = boot_us
        self._wall_us = wall_us
        self._last_boot_us = boot_us()
        self._now_us = max(wall_us(), not_before_us)
        self._given_us = self._now_us
        self._unslewed_us = 0

    def now_us(self) -> int:
        """The time, never less than any time it gave before."""
        boot_us = self._boot_us()
        passed_us = max(0, boot_us - self._last_boot_us)
        if passed_us == 0:
            return self._given_us
        self._last_boot_us = boot_us
        self._now_us += passed_us
        self._unslewed_us += passed_us
        self._slew()
        # A slew back may spend credit of earlier calls: what was given is not taken back.
        self._given_us = max(self._given_us, self._now_us)
        return self._given_us

    def _slew(self) -> None:
        """Spend what may be slewed since the last call; calls come faster than one microsecond of slew is earned."""
        earned_us = self._unslewed_us // SLEW_DIVISOR
        if earned_us == 0:
            return
        self._unslewed_us -= earned_us * SLEW_DIVISOR
        ahead_us = self._now_us - self._wall_us()
        if ahead_us > 0:
            self._now_us -= min(ahead_us, earned_us)
        else:
            self._now_us += min(-ahead_us, earned_us)


def boot_us() -> int:
    """Microseconds since the machine started, for all its processes alike."""
    return _boot_us()


def monotonic_seconds() -> float:
    """For waits and rates only: never recorded."""
    return time.monotonic()


def wall_us() -> int:
    """The machine's own clock, for places without a log (demo files, reports)."""
    return _wall_us()
