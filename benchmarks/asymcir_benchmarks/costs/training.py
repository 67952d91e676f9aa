"""What training costs: distillation with and without the teacher cache, the wait for pictures, and UNION.

`python -m asymcir_benchmarks.costs.training` runs the product's own trainers on real pictures. Weights are random:
time does not depend on them. The foundation is of ViT-L/14's size (open_clip's ViT-L-14, 224 px, random). Cached and
uncached distillation take the same steps of the same batch in the same run; uncached, the large visual encoder looks
at every batch's pictures before the step, as it would without a cache.

Notation: b batch, E joint-embedding width.
"""

import argparse
import logging
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from asymcir_common.arguments import MAX_BATCH_SIZE, MAX_REPEATS, MAX_THREADS, ArgumentParser, whole_number
from asymcir_common.places import find_pictures
from asymcir_training import Foundation, LightEncoder, UnionHead
from asymcir_training.engine.execution import Execution
from asymcir_training.engine.precision import Precision
from asymcir_training.engine.processes import start_processes
from asymcir_training.foundation.preprocessing import imagenet_preprocessing
from asymcir_training.pictures.files import PictureFiles
from asymcir_training.pictures.sets import PictureSet
from asymcir_training.runs.log import LOG_FILE, WAIT_SHARE, read_log
from asymcir_training.runs.settings import LoopConfig
from asymcir_training.teacher.cache import build_teacher_cache
from asymcir_training.trainers.distil import DistilConfig, distil
from asymcir_training.trainers.union import UnionConfig, train_union_head
from numpy.typing import NDArray

from asymcir_benchmarks.results import write_result

ARCHITECTURE = "ViT-L-14"
UNION_TRIPLETS, UNION_EPOCHS, UNION_WIDTH = 5000, 2, 768
GOALS = {
    "cached / uncached distillation steps, times faster": (3.0, True),
    "waiting for pictures, share of step time": (0.05, False),
    "UNION, 5,000 triplets x 2 epochs, width 768, s": (120.0, False),
}
"""Figure -> (goal, whether more is better)."""
_LOG = logging.getLogger(__name__)


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_benchmarks.costs.training", description=__doc__)
    parser.add_argument(
        "--pictures", type=Path, default=Path("demo/assets/queries.zip"), help="folder or zip of pictures"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--backbone", default="mobilenetv4_conv_small_050")
    parser.add_argument("--batch", type=whole_number(1, MAX_BATCH_SIZE), default=8)
    parser.add_argument(
        "--steps", type=whole_number(1, MAX_REPEATS), default=4, help="timed steps of each kind, after one to warm up"
    )
    parser.add_argument("--workers", type=whole_number(0, MAX_THREADS), default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    return parser


def main() -> None:
    """Measure and write."""
    args = build_parser().parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger(__name__).setLevel(logging.INFO)
    figures = measure_union() | measure_distillation(args)
    for name, (goal, more) in GOALS.items():
        reached = figures[name] >= goal if more else figures[name] <= goal
        verdict = "reached" if reached else "NOT reached"
        _LOG.info("%s: %.3g (goal at %s %g: %s)", name, figures[name], "least" if more else "most", goal, verdict)
    command = shlex.join(["python", "-m", "asymcir_benchmarks.costs.training", *sys.argv[1:]])
    write_result(args.out, figures=figures, command=command)


class TimedTeacher:
    """Rows of the teacher, [n, E], from the cache or from the large encoder, and when each batch was asked for.

    Attributes:
        asked_s: the moments at which a step began.
    """

    def __init__(
        self, cached: NDArray[np.float32], foundation: Foundation | None, pictures: PictureSet, *, batch: int
    ) -> None:
        """Take the cache's rows; with a foundation, compute them again whenever a batch is asked for."""
        self._cached, self._foundation, self._pictures, self._batch = cached, foundation, pictures, batch
        self.shape = cached.shape
        self.asked_s: list[float] = []

    def __len__(self) -> int:
        """Return n."""
        return len(self._cached)

    @torch.no_grad()
    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        """Return rows; a step asks once, for a batch, and what comes before the first step asks for more at a time."""
        if len(index) != self._batch:
            return np.asarray(self._cached[index])
        self.asked_s.append(time.monotonic())
        if self._foundation is None:
            return np.asarray(self._cached[index])
        spec = self._foundation.preprocessing
        pixels = torch.from_numpy(np.stack([self._pictures.decode(int(i), spec) for i in index]))
        device = self._foundation.word_embedding_table().device
        features = self._foundation.encode_pixels(self._foundation.normalise_pixels(pixels.to(device)))
        return np.asarray(features.float().cpu())


def build_foundation() -> Foundation:
    """Build a foundation of ViT-L/14's size, with random weights."""
    torch.manual_seed(0)
    model = open_clip.create_model(ARCHITECTURE)
    return Foundation(f"{ARCHITECTURE}, random weights", model, open_clip.get_tokenizer(ARCHITECTURE))


def measure_distillation(args: argparse.Namespace) -> dict[str, float]:
    """Time distillation's steps with and without the cache, in turn."""
    processes = start_processes(args.device)
    foundation = build_foundation().to(processes.device)
    pictures = PictureFiles(find_pictures(args.pictures)[: 4 * args.batch])
    seconds: dict[str, list[float]] = {"cached": [], "uncached": []}
    waits: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started_s = time.monotonic()
        cache = build_teacher_cache(folder, foundation, pictures, patches=False, device=processes.device)
        cache_s = time.monotonic() - started_s
        execution = Execution(
            processes=processes, precision=Precision(args.precision, processes.device), workers=args.workers
        )
        for number, kind in enumerate(("cached", "uncached", "cached", "uncached")):
            tower = foundation if kind == "uncached" else None
            teacher = TimedTeacher(np.asarray(cache.embedding), tower, pictures, batch=args.batch)
            loop = LoopConfig(
                folder=folder / str(number),
                steps=args.steps + 2,
                save_every=10**9,
                log_every=1,
                curves=False,
            )
            _distil(args, foundation, pictures, teacher, loop, execution)
            seconds[kind] += np.diff(teacher.asked_s)[1:].tolist()  # the first warms up
            if kind == "cached":
                lines = read_log(loop.folder / LOG_FILE)
                waits += [line[WAIT_SHARE] for line in lines[2:] if WAIT_SHARE in line]
            _LOG.info("%s: median %.2f s a step", kind, statistics.median(seconds[kind]))
    figures = {
        f"{kind} distillation, batch {args.batch}, {what}, s a step": value
        for kind, values in seconds.items()
        for what, value in (("median", statistics.median(values)), ("p95", float(np.percentile(values, 95))))
    }
    cached, uncached = (statistics.median(seconds[kind]) for kind in ("cached", "uncached"))
    figures |= {
        "cached / uncached distillation steps, times faster": uncached / cached,
        "waiting for pictures, share of step time": statistics.mean(waits),
        "cached distillation, pictures/s": args.batch / cached,
        "teacher cache, pictures/s": len(pictures) / cache_s,
    }
    return {name: round(value, 4) for name, value in figures.items()}


def measure_union() -> dict[str, float]:
    """Time UNION's whole recipe on cached features."""
    torch.manual_seed(0)
    count, width = UNION_TRIPLETS, UNION_WIDTH
    steps = UNION_EPOCHS * (count // UnionConfig().batch)
    with tempfile.TemporaryDirectory() as name:
        summary = train_union_head(
            UnionHead(width),
            queries=torch.randn(count, width),
            image_features=torch.randn(count, width),
            null_features=torch.randn(1, width),
            targets=torch.arange(count),
            answers=torch.arange(count),
            config=UnionConfig(),
            loop=LoopConfig(folder=Path(name), steps=steps, save_every=10**9, curves=False),
        )
    _LOG.info("UNION: %.1f s", summary.seconds)
    name = f"UNION, {count:,} triplets x {UNION_EPOCHS} epochs, width {width}"
    return {f"{name}, s": round(summary.seconds, 1), f"{name}, threads": float(torch.get_num_threads())}


def _distil(
    args: argparse.Namespace,
    foundation: Foundation,
    pictures: PictureSet,
    teacher: TimedTeacher,
    loop: LoopConfig,
    execution: Execution,
) -> None:
    torch.manual_seed(0)
    spec = imagenet_preprocessing(224)
    student = LightEncoder(args.backbone, word_width=foundation.word_width, width=256, preprocessing=spec)
    student.token_learner.anchor_to_words(foundation.word_embedding_table())
    distil(
        student,
        foundation,
        pictures=pictures,
        kept=np.arange(len(pictures)),
        teacher=teacher,  # type: ignore[arg-type]  # it picks rows as an array does
        phrases=["a red heart", "a smiling cat", "a flag", "a clock"],
        modifiers=["is blue", "is crying", "has light skin tone"],
        config=DistilConfig(batch=args.batch),
        loop=loop,
        execution=execution,
    )


if __name__ == "__main__":
    main()
