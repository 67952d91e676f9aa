"""Requests at the times of a Poisson process, sent whether or not the earlier ones were answered.

A closed loop, whose callers wait for an answer before they ask again, asks less of a slow server and then measures how
well it does (coordinated omission). Here the load does not depend on the server: every request has its time, and its
latency counts from that time, also where the generator itself was late.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence

import grpc
import numpy as np
from asymcir_edge.remote.channels import options_for
from numpy.typing import NDArray

from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.load.report import ANSWERED, LoadReport, Outcome

SEARCH = "/asymcir.v1.Retrieval/Search"
MAX_REQUESTS = 10_000_000
_CONNECT_S = 10.0


def draw_arrivals(rate_per_s: float, duration_s: float, *, seed: int = 0) -> NDArray[np.float64]:
    """Draw the times of a Poisson process: [n], seconds from the start, ascending.

    Raises:
        BenchmarkError: rate or duration is not above 0, or there would be more than MAX_REQUESTS.
    """
    if not (rate_per_s > 0 and duration_s > 0):
        raise BenchmarkError(f"expected a rate and a duration above 0, got {rate_per_s:g}/s and {duration_s:g} s")
    if rate_per_s * duration_s > MAX_REQUESTS:
        raise BenchmarkError(f"expected at most {MAX_REQUESTS:,} requests, got {rate_per_s * duration_s:,.0f}")
    generator = np.random.default_rng(seed)
    count = generator.poisson(rate_per_s * duration_s)
    return np.sort(generator.uniform(0.0, duration_s, count))


def run_open_loop(
    address: str,
    requests: Sequence[bytes],
    *,
    rate_per_s: float,
    duration_s: float,
    timeout_s: float,
    connections: int = 4,
    seed: int = 0,
    method: str = SEARCH,
    metadata: Sequence[tuple[str, str]] = (),
    credentials: grpc.ChannelCredentials | None = None,
) -> LoadReport:
    """Send requests to a server at the times of a Poisson process, without retries.

    Args:
        address: of the server.
        requests: serialised messages, sent in turn.
        rate_per_s, duration_s: of the arrivals.
        timeout_s: deadline of each request.
        connections: HTTP/2 connections, which take requests in turn.
        seed: of the arrivals.
        method: that is called.
        metadata: sent with each request.
        credentials: of TLS; None for plain text.

    Raises:
        BenchmarkError: no requests, or a rate that cannot be.
        ConnectionError: no server answers.
    """
    times = draw_arrivals(rate_per_s, duration_s, seed=seed)
    return asyncio.run(
        _run(address, requests, times, rate_per_s, duration_s, timeout_s, connections, method, metadata, credentials)
    )


def run_closed_loop(
    address: str,
    requests: Sequence[bytes],
    *,
    callers: int,
    duration_s: float,
    timeout_s: float,
    method: str = SEARCH,
    metadata: Sequence[tuple[str, str]] = (),
    credentials: grpc.ChannelCredentials | None = None,
) -> LoadReport:
    """Let callers ask again as soon as they are answered: finds the most that a server answers, not its latencies.

    Arguments and errors are those of `run_open_loop`.
    """

    async def run() -> LoadReport:
        outcomes: list[Outcome] = []
        async with _connect(address, credentials) as channel:
            await _wait_ready(channel, address)
            call = channel.unary_unary(method, bytes, bytes)
            end_s = time.perf_counter() + duration_s
            turn = itertools.cycle(requests)

            async def ask() -> None:
                while (started_s := time.perf_counter()) < end_s:
                    status = await _call(call, next(turn), timeout_s, metadata)
                    outcomes.append(_outcome(status[0], started_s, started_s))

            await asyncio.gather(*(ask() for _ in range(callers)))
        return LoadReport(rate_per_s=0.0, duration_s=duration_s, outcomes=outcomes)

    _check(requests)
    return asyncio.run(run())


async def _run(
    address: str,
    requests: Sequence[bytes],
    times: NDArray[np.float64],
    rate_per_s: float,
    duration_s: float,
    timeout_s: float,
    connections: int,
    method: str,
    metadata: Sequence[tuple[str, str]],
    credentials: grpc.ChannelCredentials | None,
) -> LoadReport:
    _check(requests)
    outcomes: list[Outcome] = []
    sizes: list[int] = []
    channels = [_connect(address, credentials, number) for number in range(connections)]
    try:
        for channel in channels:
            await _wait_ready(channel, address)
        calls = [channel.unary_unary(method, bytes, bytes) for channel in channels]
        began_s = time.perf_counter()

        async def send(number: int, due_s: float) -> None:
            sent_s = time.perf_counter()
            request = requests[number % len(requests)]
            status, size = await _call(calls[number % len(calls)], request, timeout_s, metadata)
            outcomes.append(_outcome(status, due_s, sent_s))
            if status == ANSWERED and not sizes:
                sizes.append(size)

        async with asyncio.TaskGroup() as group:
            for number, at_s in enumerate(times.tolist()):
                due_s = began_s + at_s
                wait_s = due_s - time.perf_counter()
                # Also where it is late: without a pause the loop would never read an answer.
                await asyncio.sleep(max(0.0, wait_s))
                group.create_task(send(number, due_s))
    finally:
        for channel in channels:
            await channel.close(None)
    return LoadReport(
        rate_per_s=rate_per_s, duration_s=duration_s, outcomes=outcomes, response_bytes=sizes[0] if sizes else 0
    )


def _check(requests: Sequence[bytes]) -> None:
    if not requests:
        raise BenchmarkError("expected at least one request to send, got none")


def _connect(address: str, credentials: grpc.ChannelCredentials | None, number: int = 0) -> grpc.aio.Channel:
    kept = [option for option in options_for(address) if option[0] != "grpc.service_config"]
    # A channel with options of its own does not share the connection of another one.
    options: list[tuple[str, str | int]] = [*kept, ("grpc.enable_retries", 0), ("asymcir.connection", number)]
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


async def _wait_ready(channel: grpc.aio.Channel, address: str) -> None:
    try:
        await asyncio.wait_for(channel.channel_ready(), _CONNECT_S)
    except TimeoutError as exc:
        raise ConnectionError(f"no server answers at {address} within {_CONNECT_S:g} s") from exc


async def _call(
    call: Callable[..., grpc.aio.UnaryUnaryCall[bytes, bytes]],
    request: bytes,
    timeout_s: float,
    metadata: Sequence[tuple[str, str]],
) -> tuple[str, int]:
    """Return the name of the status, and the bytes of the answer."""
    try:
        answer = await call(request, timeout=timeout_s, metadata=tuple(metadata))
    except grpc.aio.AioRpcError as exc:
        return exc.code().name, 0
    return ANSWERED, len(answer)


def _outcome(status: str, due_s: float, sent_s: float) -> Outcome:
    return Outcome(
        status=status, latency_ms=(time.perf_counter() - due_s) * 1000.0, lateness_ms=(sent_s - due_s) * 1000.0
    )
