"""What Prometheus sees: the bus's own numbers read at scrape time, and counts and times of HTTP operations."""

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
        self._requests = Counter(
            "engram_http_requests", "HTTP requests answered.", ("operation", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "engram_http_request_seconds",
            "Time to answer an HTTP request.",
            ("operation",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._counted: dict[tuple[str, int], Counter] = {}
        self._timed: dict[str, Histogram] = {}

    def answered(self, operation: str, status: int, seconds: float) -> None:
        """Count one answer. The children are kept: looking them up by label costs more than counting."""
        counter = self._counted.get((operation, status))
        if counter is None:
            counter = self._counted[operation, status] = self._requests.labels(operation, str(status))
        counter.inc()
        histogram = self._timed.get(operation)
        if histogram is None:
            histogram = self._timed[operation] = self._seconds.labels(operation)
        histogram.observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)


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
