"""The load generator: arrivals, what counts as latency, what is reported."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.load.generator import SEARCH, draw_arrivals, run_closed_loop, run_open_loop
from asymcir_benchmarks.load.report import BUCKETS_PER_DOUBLING, LoadReport, Outcome, bucket_latencies, draw_latencies


@contextmanager
def serving(answer: Callable[[bytes, grpc.ServicerContext], bytes], threads: int = 8) -> Iterator[str]:
    """A gRPC server that answers every call, whatever it is, with a function."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
            return grpc.unary_unary_rpc_method_handler(answer) if details.method == SEARCH else None

    server = grpc.server(ThreadPoolExecutor(threads))
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_arrivals_are_those_of_a_poisson_process() -> None:
    times = draw_arrivals(200.0, 50.0, seed=3)
    assert abs(len(times) - 10_000) < 400  # four standard deviations
    assert (np.diff(times) >= 0).all() and times[0] >= 0 and times[-1] <= 50.0
    gaps = np.diff(times)
    assert np.std(gaps) == pytest.approx(np.mean(gaps), rel=0.1)  # exponential, not even
    np.testing.assert_array_equal(times, draw_arrivals(200.0, 50.0, seed=3))
    assert len(draw_arrivals(200.0, 50.0, seed=4)) != len(times)


@pytest.mark.parametrize(("rate", "duration"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0), (1e6, 1e6)])
def test_rates_that_cannot_be_are_refused(rate: float, duration: float) -> None:
    with pytest.raises(BenchmarkError, match="expected"):
        draw_arrivals(rate, duration)


def test_requests_that_fall_due_while_a_server_stalls_count_their_wait() -> None:
    """A closed loop would report one slow answer; here every request of the pause is one."""
    lock, began = threading.Lock(), time.monotonic()

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        with lock:  # one at a time, and the first one takes long
            if request == b"first" and not stalled.is_set():
                stalled.set()
                time.sleep(0.8)
        return b"answer"

    stalled = threading.Event()
    with serving(answer, threads=64) as address:
        report = run_open_loop(address, [b"first"], rate_per_s=60.0, duration_s=1.5, timeout_s=10.0, seed=1)
    assert time.monotonic() - began > 1.0
    assert report.counts == {"OK": len(report.outcomes)} and report.response_bytes == len(b"answer")
    due = draw_arrivals(60.0, 1.5, seed=1)
    # Whatever fell due in the first half of the pause waited for at least as long as its second half.
    waited = int(((due - due[0]) < 0.4).sum())
    assert waited > 10
    assert (report.latencies_ms() > 350.0).sum() >= waited


def test_every_status_is_counted_with_its_own_latency() -> None:
    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        if request == b"full":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        if request == b"slow":
            time.sleep(0.5)
        return request

    with serving(answer, threads=64) as address:
        report = run_open_loop(
            address, [b"good", b"full", b"slow"], rate_per_s=60.0, duration_s=1.0, timeout_s=0.25, seed=2
        )
    counts = report.counts
    assert set(counts) == {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    assert max(counts.values()) - min(counts.values()) <= 1  # sent in turn
    assert report.latencies_ms("DEADLINE_EXCEEDED").min() >= 240.0
    figures = report.figures()
    assert figures["answered, requests/s"] == pytest.approx(counts["OK"])
    assert figures["requests"] == sum(counts.values())
    assert figures["RESOURCE_EXHAUSTED, requests"] == counts["RESOURCE_EXHAUSTED"]


def test_a_closed_loop_asks_again_when_it_is_answered() -> None:
    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        time.sleep(0.05)
        return request

    with serving(answer) as address:
        report = run_closed_loop(address, [b"x"], callers=3, duration_s=1.0, timeout_s=5.0)
    assert 3 <= len(report.outcomes) <= 3 * 21
    assert report.latencies_ms().min() >= 50.0


def test_no_server_and_no_requests_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asymcir_benchmarks.load.generator._CONNECT_S", 0.3)
    with pytest.raises(ConnectionError, match=r"no server answers at 127\.0\.0\.1:1 "):
        run_open_loop("127.0.0.1:1", [b"x"], rate_per_s=1.0, duration_s=1.0, timeout_s=1.0)
    with pytest.raises(BenchmarkError, match="at least one request"):
        run_open_loop("127.0.0.1:1", [], rate_per_s=1.0, duration_s=1.0, timeout_s=1.0)


def test_buckets_hold_every_latency_and_are_as_wide_as_they_say() -> None:
    values = np.random.default_rng(5).lognormal(2.0, 1.5, 5000)
    buckets = bucket_latencies(values)
    assert sum(count for _, _, count in buckets) == 5000
    for low, high, count in buckets[1:]:
        assert high / low == pytest.approx(2 ** (1 / BUCKETS_PER_DOUBLING))
        assert count == ((values >= low * (1 - 1e-12)) & (values < high * (1 - 1e-12))).sum()
    assert bucket_latencies(np.empty(0)) == []


def test_the_picture_is_drawn_and_no_other_kind_of_file(tmp_path: Path) -> None:
    outcomes = [Outcome(status="OK", latency_ms=float(ms), lateness_ms=0.0) for ms in range(1, 400)]
    report = LoadReport(rate_per_s=1.0, duration_s=1.0, outcomes=outcomes)
    none = LoadReport(rate_per_s=1.0, duration_s=1.0, outcomes=[])
    draw_latencies({"50/s": report, "nothing": none}, tmp_path / "load.svg")
    text = (tmp_path / "load.svg").read_text()
    assert text.count("<path") > 20 and "nothing" not in text
    with pytest.raises(BenchmarkError, match=r"\.svg or \.png"):
        draw_latencies({"50/s": report}, tmp_path / "load.pdf")
