"""What building a gallery costs, beside what its encoder and its decoding allow, and beside the usual way.

    python -m asymcir_benchmarks.costs.gallery_build --work FOLDER --out benchmarks/results/gallery-build.json

The bundle is a ViT-B/32 of random weights: its size and its speed do not need trained ones. The pictures are JPEGs of
640 x 480 and 1600 x 1200 pixels, made here. In each round, one after another:

- decoding alone: every picture read and prepared by the build's threads, nothing encoded;
- encoding alone: the same pictures, prepared before, through the encoder and the UNION head in batches;
- the build, from the folder to a published snapshot, and once more with nothing new;
- the usual way: one process that decodes a batch and encodes it in turn, then saves the array.

On a CPU decoding and encoding share the cores, so what they allow is the sum of their times; with `--separate` (an
encoder on a GPU) it is the longer of the two. Published are medians over the rounds.
"""

import logging
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from asymcir_common import AsymcirError, decode_image, preprocess
from asymcir_common.arguments import MAX_REPEATS, ArgumentParser, whole_number
from asymcir_server.encode.bundle import ServerBundle
from asymcir_server.encode.targets import TargetEncoder
from asymcir_server.encode.visual import VisualEncoder
from asymcir_server.gallery import build_gallery, open_source
from asymcir_server.gallery.sources import EncodedPictures, Wanted, decode_batches
from numpy.typing import NDArray
from PIL import Image

from asymcir_benchmarks.results import write_result

MODEL = "ViT-B-32"
SIZES = ((640, 480), (640, 480), (640, 480), (1600, 1200))
"""Width and height; the list is gone through again and again."""

_BATCH = 32
_SMOOTHNESS = 16  # pixels of a picture between two random colours, so that the JPEGs are of a photograph's size
_LOG = logging.getLogger(__name__)


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_benchmarks.costs.gallery_build", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="keeps the bundle and the pictures")
    parser.add_argument("--count", type=whole_number(1, 10**6), default=512, help="pictures (default: 512)")
    parser.add_argument("--rounds", type=whole_number(1, MAX_REPEATS), default=3, help="(default: 3)")
    parser.add_argument("--threads", type=whole_number(0, 256), default=0, help="of ONNX Runtime (default: its choice)")
    parser.add_argument("--separate", action="store_true", help="the encoder has a processor of its own")
    parser.add_argument("--out", type=Path, required=True)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write the bundle and the pictures where they are not there yet, measure, and write the figures."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    _LOG.setLevel(logging.INFO)
    try:
        pictures = write_pictures(args.work / f"pictures-{args.count}", args.count)
        folder = args.work / MODEL
        if not folder.is_dir():
            write_bundle(folder, pictures)
        bundle = ServerBundle.load(folder, threads=args.threads)
        figures = measure(bundle, pictures, rounds=args.rounds, separate=args.separate)
    except AsymcirError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    write_result(args.out, figures=figures, command="make bench-gallery-build")
    return 0


def write_pictures(folder: Path, count: int) -> Path:
    """Write JPEGs of SIZES; a folder that is there is taken as it is."""
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for number in range(count):
        generator = np.random.default_rng(number)
        width, height = SIZES[number % len(SIZES)]
        cells = generator.integers(0, 256, (height // _SMOOTHNESS, width // _SMOOTHNESS, 3), dtype=np.uint8)
        image = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
        image.save(partial / f"{number:06}.jpg", quality=90)
    partial.rename(folder)
    return folder


def write_bundle(folder: Path, pictures: Path) -> None:
    """Write the server bundle of MODEL with random weights."""
    from asymcir_export.bundles.server import export_server_bundle

    from asymcir_benchmarks.costs.server_bundles import build_random

    with tempfile.TemporaryDirectory() as few:
        for path in sorted(pictures.iterdir())[:4]:
            shutil.copy(path, few)
        export_server_bundle(*build_random(MODEL), folder, pictures=Path(few))


def measure(bundle: ServerBundle, pictures: Path, *, rounds: int, separate: bool = False) -> dict[str, float]:
    """Measure the build and what it is compared with, in turn.

    Args:
        bundle: makes the vectors.
        pictures: a folder.
        rounds: how often; one more picture batch warms the encoder up before.
        separate: whether decoding and encoding have processors of their own.

    Returns:
        Flat figures; rates in pictures/s.
    """
    visual, targets = VisualEncoder(bundle), TargetEncoder(bundle)
    squares = [square for square, _ in _decode(bundle, pictures)]

    def encode(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return targets.compute_targets(visual.encode_image(pixels))

    def encode_all() -> None:
        for start in range(0, len(squares), _BATCH):
            encode(np.stack(squares[start : start + _BATCH]))

    def usual_way() -> None:
        paths, rows = sorted(pictures.iterdir()), []
        for start in range(0, len(paths), _BATCH):
            batch = [
                preprocess(decode_image(path.read_bytes()), bundle.preprocessing)
                for path in paths[start : start + _BATCH]
            ]
            rows.append(encode(np.stack(batch)))
        with tempfile.TemporaryFile() as stream:
            np.save(stream, np.concatenate(rows))

    encode(np.stack(squares[:_BATCH]))
    with tempfile.TemporaryDirectory(dir=pictures.parent) as name:
        gallery = Path(name) / "gallery"

        def build() -> None:
            shutil.rmtree(gallery, ignore_errors=True)
            build_gallery(pictures, bundle, gallery)

        ways: dict[str, Callable[[], object]] = {
            "decoding alone": lambda: sum(1 for _ in _decode(bundle, pictures)),
            "encoding alone": encode_all,
            "build": build,
            "build with nothing new": lambda: build_gallery(pictures, bundle, gallery),
            "one process, decode and encode in turn": usual_way,
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds):
            for way, run in ways.items():
                started_s = time.perf_counter()
                run()
                times[way].append(time.perf_counter() - started_s)
                _LOG.info("round %d, %s: %.2f s", number + 1, way, times[way][-1])
    allowed_s = [
        max(pair) if separate else sum(pair)
        for pair in zip(times["decoding alone"], times["encoding alone"], strict=True)
    ]
    shares = [allowed / taken for allowed, taken in zip(allowed_s, times["build"], strict=True)]
    figures = {f"{way}, pictures/s": round(len(squares) / statistics.median(took), 2) for way, took in times.items()}
    figures["decoding and encoding allow, pictures/s"] = round(len(squares) / statistics.median(allowed_s), 2)
    figures["build, share of what decoding and encoding allow"] = round(statistics.median(shares), 4)
    return figures | {"pictures": float(len(squares)), "rounds": float(rounds)}


def _decode(bundle: ServerBundle, pictures: Path) -> list[tuple[NDArray[np.uint8], bytes]]:
    """Read and prepare every picture with the threads of a build."""
    wanted = Wanted(encoder="", width=bundle.text.embedding_width)
    found = []
    with closing(EncodedPictures(pictures / "nowhere", wanted)) as nothing:
        for batch, _ in decode_batches(open_source(pictures), bundle.preprocessing, nothing, wanted, batch_size=_BATCH):
            found += [(picture.pixels, picture.digest) for picture in batch if picture.pixels is not None]
    return found


if __name__ == "__main__":
    sys.exit(main())
