import itertools
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from asymcir_common import ImageError, Preprocessing
from asymcir_training.batches.feeds import Feed
from asymcir_training.batches.loader import iterate_batches
from asymcir_training.batches.views import Augmentation, batch_at
from asymcir_training.batches.workers import run_jobs
from asymcir_training.engine.execution import Execution
from asymcir_training.engine.precision import Precision
from asymcir_training.engine.processes import Processes
from asymcir_training.errors import DataError
from asymcir_training.pictures.sets import open_pictures

SPEC = Preprocessing(size=24, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
LIVELY = Augmentation(contrast=0.3, saturation=0.3, hue_degrees=20.0, blur=0.5, noise=0.1, grey=0.2)
COUNT = 22


@pytest.fixture(scope="module")
def pictures(write, picture, tmp_path_factory: pytest.TempPathFactory):
    place = tmp_path_factory.mktemp("loader")
    files = {f"{number:02}.png": picture(number) for number in range(COUNT)}
    return open_pictures([write("tar", place, files), write("zip", place, {"x.png": picture(99)})])


KEPT = np.array([number for number in range(COUNT) if number not in (3, 8)])


def _take(pictures, *, augmentation=LIVELY, seed=5, batch=8, first=0, steps=5, kept=KEPT, **options):
    return list(
        iterate_batches(
            pictures, kept, spec=SPEC, augmentation=augmentation, seed=seed, batch=batch, first=first, steps=steps,
            **options,
        )
    )  # fmt: skip


def _pixels(batches) -> torch.Tensor:
    return torch.stack([batch.pixels for batch in batches])


def test_batches_are_the_pictures_of_their_step(pictures) -> None:
    for batch in _take(pictures, augmentation=None):
        assert batch.pixels.dtype == torch.uint8 and batch.pixels.shape == (8, 3, 24, 24) and batch.waited_s > 0.0
        assert (batch.whole == batch_at(len(KEPT), 8, seed=5, number=batch.number)).all()
        assert (batch.index == batch.whole).all()
        expected = np.stack([pictures.decode(int(KEPT[row]), SPEC) for row in batch.index])
        assert (batch.pixels.permute(0, 2, 3, 1).numpy() == expected).all()


def test_workers_change_nothing(pictures) -> None:
    alone = _pixels(_take(pictures))
    assert (_pixels(_take(pictures, workers=2)) == alone).all()
    assert (alone.float() - _pixels(_take(pictures, augmentation=None)).float()).abs().max() > 20.0


def test_two_processes_together_see_what_one_sees(pictures) -> None:
    alone = _take(pictures, steps=3)
    ranks = [_take(pictures, steps=3, rank=rank, world=2) for rank in range(2)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert (torch.cat([part.pixels for part in parts]) == whole.pixels).all()
        assert (np.concatenate([part.index for part in parts]) == whole.index).all()
        assert all((part.whole == whole.whole).all() for part in parts)


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(pictures) -> None:
    whole = _take(pictures)
    resumed = _take(pictures, first=3)
    assert [batch.number for batch in resumed] == [3, 4]
    assert (_pixels(resumed) == _pixels(whole[3:])).all()
    assert _take(pictures, first=5) == []


def test_a_view_follows_from_seed_step_and_picture_alone(pictures) -> None:
    one, again, other = (_pixels(_take(pictures, seed=seed, batch=20, steps=2)) for seed in (5, 5, 6))
    assert (one == again).all() and (one != other).any()
    # The same picture at two steps, and the same picture in a batch of another size.
    orders = [batch_at(20, 20, seed=5, number=number) for number in range(2)]
    sorted_views = [views[np.argsort(order)] for views, order in zip(one, orders, strict=True)]
    assert (sorted_views[0] != sorted_views[1]).any()
    small = _take(pictures, batch=10, steps=1)[0]
    place = {int(row): i for i, row in enumerate(orders[0])}
    assert all((view == one[0][place[int(row)]]).all() for view, row in zip(small.pixels, small.index, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_trainers_own_draws_and_threads_are_left_alone(pictures, workers: int) -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - it is the global one that must not move
    before = torch.get_rng_state(), np.random.get_state()[2], torch.get_num_threads()  # noqa: NPY002
    _take(pictures, steps=2, workers=workers)
    assert (torch.get_rng_state() == before[0]).all()
    assert (np.random.get_state()[2], torch.get_num_threads()) == before[1:]  # noqa: NPY002


def test_batches_that_cannot_be_are_refused(pictures) -> None:
    for options, reason in (
        ({"batch": 7, "world": 2}, "multiple of 2"),
        ({"batch": 64, "world": 3}, "there are 20 pictures"),
        ({"batch": 0}, "batch of 1 or more"),
        ({"kept": KEPT[:0]}, "1 picture or more"),
        ({"rank": 2, "world": 2}, "rank from 0 to 1"),
    ):
        with pytest.raises(DataError, match=reason):
            _take(pictures, **options)
    assert _take(pictures, batch=64, steps=1)[0].pixels.shape[0] == len(KEPT)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_broke_after_the_scan_is_named(workers: int, write, picture, tmp_path: Path) -> None:
    files = {f"{number}.png": picture(number) for number in range(4)}
    folder = write("folder", tmp_path, files)
    pictures = open_pictures([folder])
    (folder / "2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2\.png could be decoded before") as caught:
        _take(pictures, batch=4, steps=1, kept=np.arange(4), workers=workers)
    assert "Traceback" not in str(caught.value)


def test_jobs_come_in_order_and_their_errors_as_they_are() -> None:
    assert list(run_jobs(_square, range(3, 9), workers=2)) == [9, 16, 25, 36, 49, 64]
    assert list(itertools.islice(run_jobs(_square, range(10**9), workers=0), 3)) == [0, 1, 4]
    for workers in (0, 1):
        with pytest.raises(ImageError, match=r"^job 2$"):
            list(run_jobs(_fail, range(4), workers=workers))


def test_a_worker_that_is_killed_is_an_error() -> None:
    with pytest.raises(DataError, match="fewer than 1"):
        list(run_jobs(_die, range(4), workers=1))


def _square(number: int) -> int:
    return number * number


def _fail(number: int) -> int:
    if number == 2:
        raise ImageError("job 2")
    return number


def _die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_pixels_are_pinned_where_cuda_is_used(pictures, device: str) -> None:
    where = torch.device(device)
    execution = Execution(processes=Processes(device=where), precision=Precision("fp32", where))
    feed = Feed(pictures, KEPT, spec=SPEC, augmentation=LIVELY, seed=5, batch=8, steps=5, execution=execution)
    pixels = feed.take(0).pixels
    assert pixels.is_pinned() == (device == "cuda") and pixels.device.type == "cpu"
    assert torch.equal(pixels.to(where, non_blocking=True).cpu(), _take(pictures, steps=1)[0].pixels)
