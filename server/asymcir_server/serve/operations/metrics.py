"""Metrics in the format of Prometheus.

| name | labels | what |
|---|---|---|
| asymcir_requests_total | face, method, code | calls that ended, by status: refusals by their reason |
| asymcir_request_seconds | face, method | from a call's begin to its end |
| asymcir_stage_seconds | stage | of an answered search: queue (its wait), encode (the text encoder's run), search |
| asymcir_text_batch_size | | queries that the text encoder ran together, as each of them saw it |
| asymcir_text_queue_depth | | queries that wait for the text encoder now |
| asymcir_in_flight | | searches computed or waiting now |
| asymcir_draining | | 1 while the server stops |
| asymcir_gallery_pictures | gallery | pictures, changes included |
| asymcir_gallery_info | gallery, version, target, index | 1 |

and those of the process that prometheus_client gives: process_resident_memory_bytes, process_cpu_seconds_total, ...
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from asymcir_server.errors import ListenError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(slots=True)
class Call:
    """A call that is under way; its code is set before it ends.

    Attributes:
        code: the name of its status.
    """

    code: str = "OK"


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryState:
    """What the metrics say of a gallery.

    Attributes:
        version: the snapshot's number and that of the last change.
        target: target type.
        index_kind: how it is searched.
        size: pictures.
    """

    version: str
    target: str
    index_kind: str
    size: int


class ServerMetrics:
    """Counts what a server does. Safe to share between threads.

    Attributes:
        registry: of this server; a process may have several.
    """

    def __init__(self) -> None:
        """Count from zero."""
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._requests = Counter(
            "asymcir_requests", "Calls that ended, by status.", ["face", "method", "code"], registry=self.registry
        )
        self._request_s = Histogram(
            "asymcir_request_seconds",
            "From a call's begin to its end.",
            ["face", "method"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._stage_s = Histogram(
            "asymcir_stage_seconds",
            "Of an answered search: queue, encode, search.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batch = Histogram(
            "asymcir_text_batch_size",
            "Queries that the text encoder ran together, as each of them saw it.",
            buckets=_BATCHES,
            registry=self.registry,
        )

    @contextmanager
    def observe(self, face: str, method: str) -> Iterator[Call]:
        """Count a call from here to the end of the block."""
        started_s, call = perf_counter(), Call()
        try:
            yield call
        finally:
            self._requests.labels(face, method, call.code).inc()
            self._request_s.labels(face, method).observe(perf_counter() - started_s)

    def count_search(self, *, queue_ms: float, encode_ms: float, search_ms: float, batch: int) -> None:
        """Count the stages of a search that is answered."""
        for stage, value_ms in (("queue", queue_ms), ("encode", encode_ms), ("search", search_ms)):
            self._stage_s.labels(stage).observe(value_ms / 1000.0)
        if batch:  # a search that starts from a picture of the gallery may have nothing to encode
            self._batch.observe(batch)

    def watch(
        self,
        *,
        in_flight: Callable[[], float],
        queue_depth: Callable[[], float],
        draining: Callable[[], float],
        galleries: Callable[[], Mapping[str, GalleryState]],
    ) -> None:
        """Say where the values are that are read when somebody asks."""
        for name, text, read in (
            ("asymcir_in_flight", "Searches computed or waiting now.", in_flight),
            ("asymcir_text_queue_depth", "Queries that wait for the text encoder now.", queue_depth),
            ("asymcir_draining", "1 while the server stops.", draining),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)
        self.registry.register(_GalleryCollector(galleries))

    def render(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return generate_latest(self.registry)

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Answer `/metrics` on a port of its own; returns what ends that.

        Raises:
            ListenError: the address is in use or not ours.
        """
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as exc:
            raise ListenError(f"cannot listen on {host}:{port} for metrics: {exc.strerror}") from exc

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop


class _GalleryCollector(Collector):
    def __init__(self, read: Callable[[], Mapping[str, GalleryState]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        pictures = GaugeMetricFamily("asymcir_gallery_pictures", "Pictures, changes included.", labels=["gallery"])
        labels = ["gallery", "version", "target", "index"]
        info = GaugeMetricFamily("asymcir_gallery_info", "What answers now.", labels=labels)
        for name, state in self._read().items():
            pictures.add_metric([name], state.size)
            info.add_metric([name, state.version, state.target, state.index_kind], 1)
        return [pictures, info]
