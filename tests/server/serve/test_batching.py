"""Prompts of many requests in few runs of the text encoder."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from asymcir_server import ServerBundle, TextEncoder
from asymcir_server.errors import DeadlineError, RequestError, UnavailableError
from asymcir_server.serve.batching import Encoded, TextBatcher
from numpy.typing import NDArray
from tiny_server_bundle import TinyModel, write_tiny_bundle

Prompts = list[NDArray[np.float32]]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    """A run takes some tens of milliseconds."""
    folder = tmp_path_factory.mktemp("slow") / "bundle"
    return TextEncoder(ServerBundle.load(write_tiny_bundle(folder, TinyModel(slow_steps=12)), threads=1))


@pytest.fixture(scope="module")
def prompts(slow: TextEncoder) -> Prompts:
    """Sixteen of different lengths."""
    rng = np.random.default_rng(0)
    width = slow.composer.compose_null().shape[1]
    words = ("", "red", "red blue", "red blue red")
    return [
        slow.composer.compose_query(rng.normal(size=(3, width)).astype(np.float32), words[number % len(words)])
        for number in range(16)
    ]


@pytest.fixture
def batcher(slow: TextEncoder) -> Iterator[TextBatcher]:
    made = TextBatcher(slow, target_run_s=60.0)
    yield made
    made.close()


def _occupy(batcher: TextBatcher, prompts: Prompts, pool: ThreadPoolExecutor) -> "Future[Encoded]":
    """Start a run, and come back when it is under way."""
    first = pool.submit(batcher.encode, prompts[0])
    while not first.done() and (batcher._queue or not first.running()):
        pass
    return first


def test_together_they_come_out_as_alone(batcher: TextBatcher, slow: TextEncoder, prompts: Prompts) -> None:
    with ThreadPoolExecutor(len(prompts)) as pool:
        found = list(pool.map(batcher.encode, prompts))
    for prompt, encoded in zip(prompts, found, strict=True):
        features = slow.encode_prompts([prompt])[0]
        np.testing.assert_allclose(encoded.embedding, features / np.linalg.norm(features), atol=1e-5)
        assert encoded.queue_ms >= 0.0 and encoded.run_ms > 0.0


def test_what_arrives_during_a_run_shares_the_next(batcher: TextBatcher, prompts: Prompts) -> None:
    with ThreadPoolExecutor(len(prompts)) as pool:
        first = _occupy(batcher, prompts, pool)
        others = [pool.submit(batcher.encode, prompt) for prompt in prompts[1:]]
        sizes = [other.result().batch for other in others]
    assert first.result().batch == 1
    assert max(sizes) > 1
    assert sum(1.0 / size for size in sizes) < len(others)  # fewer runs than prompts


def test_a_run_is_no_longer_than_asked_for(slow: TextEncoder, prompts: Prompts) -> None:
    batcher = TextBatcher(slow, target_run_s=1e-6)
    with ThreadPoolExecutor(len(prompts)) as pool:
        first = _occupy(batcher, prompts, pool)
        first.result()
        assert {encoded.batch for encoded in pool.map(batcher.encode, prompts)} == {1}
    batcher.close()


def test_a_run_has_no_more_prompts_than_allowed(slow: TextEncoder, prompts: Prompts) -> None:
    batcher = TextBatcher(slow, max_items=3, target_run_s=60.0)
    with ThreadPoolExecutor(len(prompts)) as pool:
        sizes = {encoded.batch for encoded in pool.map(batcher.encode, prompts)}
    assert max(sizes) <= 3
    batcher.close()


@pytest.mark.parametrize("why", ["expired", "gone"])
def test_who_does_not_wait_any_more_is_not_computed(batcher: TextBatcher, prompts: Prompts, why: str) -> None:
    left = threading.Event()
    with ThreadPoolExecutor(3) as pool:
        _occupy(batcher, prompts, pool)
        if why == "expired":
            lost = pool.submit(batcher.encode, prompts[1], timeout_s=0.001)
        else:
            lost = pool.submit(batcher.encode, prompts[1], gone=left.is_set)
        left.set()
        with pytest.raises(DeadlineError, match="the deadline passed"):
            lost.result()
        assert not batcher._queue
        assert pool.submit(batcher.encode, prompts[2]).result().batch == 1


def test_a_prompt_that_cannot_be_used_fails_alone(batcher: TextBatcher, prompts: Prompts) -> None:
    spoilt = np.full_like(prompts[1], np.nan)
    with ThreadPoolExecutor(3) as pool:
        _occupy(batcher, prompts, pool)
        wrong, right = pool.submit(batcher.encode, spoilt), pool.submit(batcher.encode, prompts[2])
        assert np.isfinite(right.result().embedding).all()
        with pytest.raises(RequestError, match="no usable query embedding"):
            wrong.result()


def test_a_prompt_that_fails_the_run_fails_alone(batcher: TextBatcher, prompts: Prompts) -> None:
    with ThreadPoolExecutor(3) as pool:
        _occupy(batcher, prompts, pool)
        wrong = pool.submit(batcher.encode, prompts[1][:, :-1])  # no row of this width belongs to the table
        right = pool.submit(batcher.encode, prompts[2])
        assert right.result().batch == 1
        with pytest.raises(ValueError, match="broadcast"):
            wrong.result()


def test_closing_turns_away_what_waits(slow: TextEncoder, prompts: Prompts) -> None:
    batcher = TextBatcher(slow)
    with ThreadPoolExecutor(9) as pool:
        first = _occupy(batcher, prompts, pool)
        others = [pool.submit(batcher.encode, prompt) for prompt in prompts[1:9]]
        batcher.close()
        assert first.result().batch == 1
        errors = [other.exception() for other in others]
    assert {type(error) for error in errors} <= {type(None), UnavailableError}
    assert any(isinstance(error, UnavailableError) for error in errors)
    with pytest.raises(UnavailableError, match="shutting down"):
        batcher.encode(prompts[0])
