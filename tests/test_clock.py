"""The clock: never back, not moved by jumps of the wall clock, and at the wall clock's time in the end."""

import time

from hypothesis import given
from hypothesis import strategies as st

from engram_bus import clock
from engram_bus.clock import SLEW_DIVISOR, Clock

HOUR_US = 3_600_000_000
SECOND_US = 1_000_000


class Machine:
    """A machine's two clocks: its wall clock may be set, the other only advances."""

    def __init__(self, wall_us: int = HOUR_US, boot_us: int = 0) -> None:
        self.wall_us = wall_us
        self.boot_us = boot_us

    def clock(self, not_before_us: int = 0) -> Clock:
        return Clock(not_before_us, boot_us=lambda: self.boot_us, wall_us=lambda: self.wall_us)

    def pass_us(self, passed_us: int) -> None:
        self.wall_us += passed_us
        self.boot_us += passed_us


def test_it_starts_at_the_later_of_the_wall_and_the_last_stamp() -> None:
    machine = Machine(wall_us=1_000)
    assert machine.clock().now_us() == 1_000
    assert machine.clock(5_000).now_us() == 5_000
    assert machine.clock(500).now_us() == 1_000


def test_it_advances_with_time() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.pass_us(7)
    assert clock.now_us() == HOUR_US + 7
    assert clock.now_us() == HOUR_US + 7


def test_a_wall_clock_set_back_an_hour_neither_stops_nor_repeats_it() -> None:
    machine = Machine(wall_us=5 * HOUR_US)
    clock = machine.clock()
    machine.wall_us -= HOUR_US
    before_us = clock.now_us()
    for _ in range(1_000):
        machine.pass_us(SECOND_US)
        now_us = clock.now_us()
        assert now_us - before_us == SECOND_US - SECOND_US // SLEW_DIVISOR
        before_us = now_us


def test_a_wall_clock_set_forward_an_hour_is_followed_slowly() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.wall_us += HOUR_US
    machine.pass_us(SECOND_US)
    assert clock.now_us() == HOUR_US + SECOND_US + SECOND_US // SLEW_DIVISOR


def test_it_comes_to_the_wall_clock_in_the_end_however_often_it_is_asked() -> None:
    """Calls come faster than a microsecond of slew is earned; none of it may be lost."""
    machine = Machine()
    clock = machine.clock(HOUR_US + 300)
    for _ in range(300 * SLEW_DIVISOR):
        machine.pass_us(1)
        clock.now_us()
    assert clock.now_us() == machine.wall_us
    machine.wall_us += 300
    for _ in range(300 * SLEW_DIVISOR):
        machine.pass_us(1)
        clock.now_us()
    assert clock.now_us() == machine.wall_us


def test_a_boot_clock_that_stands_or_goes_back_gives_the_same_time() -> None:
    machine = Machine(boot_us=100)
    clock = machine.clock()
    machine.boot_us = 50
    assert clock.now_us() == HOUR_US
    machine.boot_us = 101
    assert clock.now_us() == HOUR_US + 1


STEPS = st.lists(st.tuples(st.integers(0, 10**7), st.integers(-HOUR_US, HOUR_US) | st.just(0)), max_size=40)


@given(STEPS, st.integers(0, 3 * HOUR_US))
def test_it_never_goes_back_and_never_runs_away(steps: list[tuple[int, int]], not_before_us: int) -> None:
    machine = Machine(wall_us=2 * HOUR_US)
    clock = machine.clock(not_before_us)
    last_us = clock.now_us()
    assert last_us == max(2 * HOUR_US, not_before_us)
    for passed_us, set_us in steps:
        machine.pass_us(passed_us)
        machine.wall_us = max(0, machine.wall_us + set_us)
        now_us = clock.now_us()
        assert last_us <= now_us <= last_us + passed_us + passed_us // SLEW_DIVISOR + 1
        last_us = now_us


def test_the_machines_own_clocks_are_read() -> None:
    before_us = time.time_ns() // 1_000
    assert before_us <= Clock().now_us()
    assert before_us <= clock.wall_us() <= time.time_ns() // 1_000
    assert clock.monotonic_seconds() <= time.monotonic()
