"""What Prometheus sees: the bus's own numbers read at scrape time, and counts and times of requests and calls."""

import contextlib
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from engram_bus.embedded import Bus
from engram_bus.errors import LogDamaged, StorageFailed

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)
_BOUNDS = (*map(str, _SECONDS), "+Inf")
_HTTP_COUNT = ("engram_http_requests", "HTTP requests answered.")
_HTTP_SECONDS = ("engram_http_request_seconds", "Time to answer an HTTP request.")
_GRPC_COUNT = ("engram_grpc_calls", "gRPC calls ended.")
_GRPC_SECONDS = ("engram_grpc_call_seconds", "Time from a gRPC call's start to its end.")


class Metrics:
    """One registry for one bus. What is told of the process, where there are several, names it: `worker`."""

    def __init__(self, bus: Bus, *, worker: int | None = None) -> None:
        self._registry = CollectorRegistry()
        self._of_process = self._registry if worker is None else _OfWorker(worker)
        self._registry.register(_BusCollector(bus))
        if isinstance(self._of_process, _OfWorker):
            self._registry.register(self._of_process)
        ProcessCollector(registry=self._of_process)
        GCCollector(registry=self._of_process)
        self._http = _Door("operation", _HTTP_COUNT, _HTTP_SECONDS)
        self._grpc = _Door("method", _GRPC_COUNT, _GRPC_SECONDS)
        self._of_process.register(self._http)
        self._of_process.register(self._grpc)

    def answered(self, operation: str, status: int, seconds: float) -> None:
        """Count one answer over HTTP."""
        self._http.count(operation, status, seconds)

    def called(self, method: str, status: str, seconds: float) -> None:
        """Count one call of gRPC that has ended, a stream too."""
        self._grpc.count(method, status, seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class _OfWorker(CollectorRegistry, Collector):
    """What one of several processes counts, each sample with its number: whoever asks the port is answered by any."""

    def __init__(self, worker: int) -> None:
        super().__init__()
        self._worker = str(worker)

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            metric.samples = [
                sample._replace(labels={**sample.labels, "worker": self._worker}) for sample in metric.samples
            ]
            yield metric


class _Door(Collector):
    """What came in at one door. Numbers of ours, told when they are asked for: the library's own counters are made for
    threads, and count ten times slower."""

    def __init__(self, label: str, count: tuple[str, str], seconds: tuple[str, str]) -> None:
        self._label = label
        self._count = count
        self._seconds = seconds
        self._counted: dict[tuple[str, int | str], int] = {}
        self._timed: dict[str, _Times] = {}

    def count(self, name: str, status: int | str, seconds: float) -> None:
        """One more, which took so long."""
        key = (name, status)
        self._counted[key] = self._counted.get(key, 0) + 1
        times = self._timed.get(name)
        if times is None:
            times = self._timed[name] = _Times([0] * (len(_SECONDS) + 1))
        times.buckets[bisect_left(_SECONDS, seconds)] += 1
        times.sum_seconds += seconds

    def collect(self) -> Iterator[Metric]:
        counter = CounterMetricFamily(*self._count, labels=(self._label, "status"))
        for (name, status), count in self._counted.items():
            counter.add_metric((name, str(status)), count)
        yield counter
        histogram = HistogramMetricFamily(*self._seconds, labels=(self._label,))
        for name, times in self._timed.items():
            buckets = list(zip(_BOUNDS, accumulate(times.buckets), strict=True))
            histogram.add_metric((name,), buckets, times.sum_seconds)
        yield histogram


class _Times(msgspec.Struct, gc=False):
    """How long calls of one name took: those between two bounds, and all together."""

    buckets: list[int]
    sum_seconds: float = 0.0


class _BusCollector(Collector):
    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def collect(self) -> Iterator[Metric]:
        bus, counts = self._bus, self._bus.counts
        sizes = bus.log.sizes()
        gauges = {
            "engram_head_seq": ("The newest seq.", bus.head),
            "engram_subscribers": ("Subscriptions that are open.", counts.subscribers),
            "engram_subscription_lag_units": ("Units the furthest subscription is behind.", counts.lag_units),
            "engram_search_lag_units": (
                "Units that search has not taken in; all of them while its process is away.",
                0 if bus.searcher is None else bus.searcher.lag_units,
            ),
            "engram_queue_commands": ("Commands that wait for their commit.", counts.queue_commands),
            "engram_ready": ("1 while appends are taken.", int(bus.writer.refusal is None)),
            "engram_log_bytes": ("Disk space of the log.", sizes.log_bytes),
            "engram_index_bytes": ("Disk space of the index.", sizes.index_bytes),
        }
        with contextlib.suppress(LogDamaged, StorageFailed):  # What is not known is left out.
            state = bus.writer.state
            gauges |= {
                "engram_contexts": ("Contexts that exist.", len(state.contexts)),
                "engram_locks": ("Locks that are held.", state.locks.held_count),
                "engram_lock_waits": ("Waits for locks.", state.locks.waiting_count),
            }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        if sizes.free_bytes is not None:
            yield GaugeMetricFamily("engram_disk_free_bytes", "Free disk space.", value=sizes.free_bytes)
        yield CounterMetricFamily("engram_commits", "Commits of the log since the start.", value=bus.writer.commits)
        yield CounterMetricFamily(
            "engram_delivered_units", "Units handed to subscribers since the start.", value=counts.delivered_units
        )
