"""Metrics for Prometheus. Labels have values from fixed sets and of the operator's, never a client's text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from sd2rt.runtime.server.generation import ModelInfo
from sd2rt.runtime.server.worker_stats import WorkerStats

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


@dataclass(slots=True)
class WorkerFacts:
    """State of the workers when metrics are read."""

    stats: WorkerStats
    models: Mapping[str, ModelInfo] = field(default_factory=dict)


class Metrics:
    """The server's metrics, in a registry of its own.

    Args:
        facts: called whenever metrics are read.
    """

    def __init__(self, facts: Callable[[], WorkerFacts]) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter(
            "sd2rt_requests_total",
            "Requests answered and jobs ended, by outcome: ok, cancelled or an error's code.",
            ("endpoint", "model", "outcome"),
            registry=registry,
        )
        self.running = Gauge(
            "sd2rt_requests_running", "Requests for images of which steps are made.", registry=registry
        )
        self.waiting = Gauge(
            "sd2rt_requests_waiting", "Requests for images that wait for their first step.", registry=registry
        )
        self.rejected = Counter(
            "sd2rt_rejected_total",
            "Requests that were refused before any work, by the error's code.",
            ("reason",),
            registry=registry,
        )
        self.request_seconds = Histogram(
            "sd2rt_request_duration_seconds",
            "Time from a request's headers to the end of its answer.",
            ("endpoint",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "sd2rt_queue_duration_seconds",
            "Time that requests for images waited for their first step.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "sd2rt_stage_duration_seconds",
            "Time of a request's stages: prepare, step, decode and finish.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.cancelled = Counter(
            "sd2rt_cancelled_total",
            "Requests for images that were given up, by reason: disconnected, deleted or shutdown.",
            ("reason",),
            registry=registry,
        )
        registry.register(_WorkerCollector(facts))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(_WithoutCreated(self._registry))


class _WithoutCreated(CollectorRegistry):
    """A registry's metrics without the times of their creation, which the text format shows as further gauges."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._source = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._source.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class _WorkerCollector(Collector):
    """Numbers that the workers count themselves."""

    def __init__(self, facts: Callable[[], WorkerFacts]) -> None:
        self._facts = facts

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        facts = self._facts()
        stats = facts.stats
        yield CounterMetricFamily(
            "sd2rt_image_steps_total", "Steps made, counted for each image.", value=stats.image_steps
        )
        yield CounterMetricFamily("sd2rt_images_total", "Images finished.", value=stats.images)
        yield _counter(
            "sd2rt_nonfinite_total", "Images that were not finite, by stage.", "stage", stats.nonfinite
        )
        yield _counter(
            "sd2rt_worker_restarts_total",
            "Workers that were started again, by reason.",
            "reason",
            stats.restarts,
        )
        yield CounterMetricFamily(
            "sd2rt_out_of_memory_total", "Requests that did not fit in memory.", value=stats.out_of_memory
        )
        yield _gauge("sd2rt_worker_up", "1 if a device's worker takes requests, else 0.", "device", stats.up)
        yield _gauge(
            "sd2rt_step_cost_seconds",
            "Measured time of a denoiser call, by the number of images in it.",
            "batch",
            stats.step_seconds,
        )
        yield _gauge(
            "sd2rt_device_memory_bytes",
            "Memory in use by a device's worker; resident memory for a CPU.",
            "device",
            stats.device_memory_bytes,
        )
        yield _batches(stats.batches)
        build = GaugeMetricFamily("sd2rt_build_info", "Version of the server.", labels=("version",))
        build.add_metric((version("sd2rt"),), 1)
        yield build
        bundles = GaugeMetricFamily(
            "sd2rt_bundle_info", "Bundles that are served.", labels=("model", "kind", "precision", "identity")
        )
        for info in facts.models.values():
            bundles.add_metric((info.id, info.kind, info.precision, info.identity[:12]), 1)
        yield bundles


def _counter(name: str, text: str, label: str, values: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _gauge(
    name: str, text: str, label: str, values: Mapping[str, float] | Mapping[int, float]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for key, value in values.items():
        family.add_metric((str(key),), float(value))
    return family


def _batches(calls: Mapping[int, int]) -> HistogramMetricFamily:
    """Denoiser calls by size as a histogram, with buckets at powers of two."""
    bounds = [1, 2, 4, 8, 16, 32, 64]
    buckets = [(str(bound), sum(n for size, n in calls.items() if size <= bound)) for bound in bounds]
    family = HistogramMetricFamily("sd2rt_batch_size", "Images in a denoiser call.")
    family.add_metric(
        (),
        [*buckets, ("+Inf", sum(calls.values()))],
        sum_value=sum(size * n for size, n in calls.items()),
    )
    return family
