"""What a replay showed: how fast, and whether the subscriber got every unit, once, in order. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from engram_bus.cli.replay.player import Played
from engram_bus.cli.replay.recording import Recording
from engram_bus.cli.replay.watcher import Seen, Watched


class Percentiles(msgspec.Struct, frozen=True):
    """Of some durations, in milliseconds."""

    p50: float
    p99: float
    max: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome. `lost`, `repeated` and `out_of_order` are of the independent subscriber, and 0 when all is well."""

    run: str
    recorded_units: int
    """Steps of the recording; all of them acknowledged."""
    appended_units: int
    """Those that this play added to the log."""
    replayed_units: int
    """Those that an earlier play under the same run had added."""
    agents: int
    contexts: int
    seconds: float
    units_per_second: float
    delivery_ms: Percentiles | None
    """From sending a unit to its receipt by the subscriber."""
    acknowledgement_ms: Percentiles | None
    lost: int
    repeated: int
    out_of_order: int

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.repeated or self.out_of_order)


def summarise(recording: Recording, played: Sequence[Played], watched: Watched, *, after_seq: int) -> Summary:
    """The outcome of a play whose subscriber began after `after_seq`."""
    appended = [one for one in played if one.receipt.seq > after_seq]
    received_ns = {seen.unit_id: seen.received_ns for seen in reversed(watched.seen)}
    seconds = (max(one.acknowledged_ns for one in played) - min(one.sent_ns for one in played)) / 1e9 if played else 0.0
    return Summary(
        run=recording.run,
        recorded_units=len(recording.steps),
        appended_units=len(appended),
        replayed_units=len(played) - len(appended),
        agents=recording.agents,
        contexts=recording.contexts,
        seconds=round(seconds, 3),
        units_per_second=round(len(appended) / seconds, 1) if seconds else 0.0,
        delivery_ms=percentiles(
            received_ns[one.receipt.unit_id] - one.sent_ns for one in appended if one.receipt.unit_id in received_ns
        ),
        acknowledgement_ms=percentiles(one.acknowledged_ns - one.sent_ns for one in appended),
        lost=sum(one.receipt.unit_id not in received_ns for one in appended),
        repeated=watched.repeats + sum(times - 1 for times in Counter(seen.unit_id for seen in watched.seen).values()),
        out_of_order=_out_of_order(recording, watched.seen),
    )


def _out_of_order(recording: Recording, seen: Iterable[Seen]) -> int:
    """Units after one of a later seq; in their context, after one of a later place or not the next version."""
    places = {step.draft.id: step.place for step in recording.steps}
    count, last_seq = 0, 0
    last_in: dict[str, tuple[int, int]] = {}
    for unit in seen:
        place = places.get(unit.unit_id, -1)
        last_version, last_place = last_in.get(unit.context_id, (unit.version - 1, -1))
        count += unit.seq <= last_seq or unit.version != last_version + 1 or 0 <= place < last_place
        last_seq = unit.seq
        last_in[unit.context_id] = (unit.version, max(place, last_place))
    return count


def percentiles(durations_ns: Iterable[int]) -> Percentiles | None:
    """None of nothing."""
    ordered = sorted(durations_ns)
    if not ordered:
        return None

    def at(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6, 2)

    return Percentiles(at(0.50), at(0.99), at(1.0))
