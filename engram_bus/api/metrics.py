"""What Prometheus sees: the bus's own numbers read at scrape time, and counts and times of requests and calls."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from engram_bus.embedded import Bus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)


class Metrics:
    """One registry for one bus."""

    def __init__(self, bus: Bus) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_BusCollector(bus))
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._http = _Door(
            Counter(
                "engram_http_requests", "HTTP requests answered.", ("operation", "status"), registry=self._registry
            ),
            Histogram(
                "engram_http_request_seconds",
                "Time to answer an HTTP request.",
                ("operation",),
                buckets=_SECONDS,
                registry=self._registry,
            ),
        )
        self._grpc = _Door(
            Counter("engram_grpc_calls", "gRPC calls ended.", ("method", "status"), registry=self._registry),
            Histogram(
                "engram_grpc_call_seconds",
                "Time from a gRPC call's start to its end.",
                ("method",),
                buckets=_SECONDS,
                registry=self._registry,
            ),
        )

    def answered(self, operation: str, status: int, seconds: float) -> None:
        """Count one answer over HTTP."""
        self._http.count(operation, str(status), seconds)

    def called(self, method: str, status: str, seconds: float) -> None:
        """Count one call of gRPC that has ended, a stream too."""
        self._grpc.count(method, status, seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class _Door:
    """What came in at one door. The children are kept: looking them up by label costs more than counting."""

    def __init__(self, count: Counter, seconds: Histogram) -> None:
        self._count = count
        self._seconds = seconds
        self._counted: dict[tuple[str, str], Counter] = {}
        self._timed: dict[str, Histogram] = {}

    def count(self, name: str, status: str, seconds: float) -> None:
        counter = self._counted.get((name, status))
        if counter is None:
            counter = self._counted[name, status] = self._count.labels(name, status)
        counter.inc()
        histogram = self._timed.get(name)
        if histogram is None:
            histogram = self._timed[name] = self._seconds.labels(name)
        histogram.observe(seconds)


class _BusCollector(Collector):
    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def collect(self) -> Iterator[Metric]:
        bus = self._bus
        sizes = bus.log.sizes()
        gauges = {
            "engram_head_seq": ("The newest seq.", bus.head),
            "engram_contexts": ("Contexts that exist.", len(bus.writer.state.contexts)),
            "engram_locks": ("Locks that are held.", bus.writer.state.locks.held_count),
            "engram_lock_waits": ("Waits for locks.", bus.writer.state.locks.waiting_count),
            "engram_subscribers": ("Subscriptions that are open.", len(bus.fanout)),
            "engram_subscription_lag_units": ("Units the furthest subscription is behind.", bus.fanout.furthest_behind),
            "engram_search_lag_units": (
                "Units that search has not taken in; all of them while its process is away.",
                0 if bus.searcher is None else bus.searcher.lag_units,
            ),
            "engram_queue_commands": ("Commands that wait for their commit.", bus.writer.queue_commands),
            "engram_ready": ("1 while appends are taken.", int(bus.writer.refusal is None)),
            "engram_log_bytes": ("Disk space of the log.", sizes.log_bytes),
            "engram_index_bytes": ("Disk space of the index.", sizes.index_bytes),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)
        if sizes.free_bytes is not None:
            yield GaugeMetricFamily("engram_disk_free_bytes", "Free disk space.", value=sizes.free_bytes)
        yield CounterMetricFamily("engram_commits", "Commits of the log since the start.", value=bus.writer.commits)
        yield CounterMetricFamily(
            "engram_delivered_units", "Units handed to subscribers since the start.", value=bus.fanout.delivered_units
        )
