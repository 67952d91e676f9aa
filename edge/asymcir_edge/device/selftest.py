"""The self-test of a device bundle: every encoder against the golden tokens, and timed, on the machine at hand.

A phone, a board or a new runtime release may compute otherwise than the machine that exported. The bundle carries
pictures that trip re-implemented preprocessing (not square, turned by EXIF, transparent, 16-bit, ...) and the tokens
that PyTorch gave for them; this runs the bundle's files here and says whether they still agree.

Notation: n golden pictures, L sentence tokens, D word-embedding width, S side of the square that the network sees.
"""

import importlib.metadata
import logging
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_common import AsymcirError, ImageError, preprocess, read_image
from numpy.typing import NDArray

from asymcir_edge.device.bundle import DeviceBundle
from asymcir_edge.device.encoder import QueryEncoder
from asymcir_edge.device.golden import (
    PACKAGE_SUFFIX,
    GoldenPicture,
    GoldenSet,
    Thresholds,
    compare_tokens,
    find_thresholds,
    read_golden,
    token_cosines,
)
from asymcir_edge.device.machine import describe_machine, peak_rss_mb
from asymcir_edge.device.verdicts import EncoderReport, Latency, PictureVerdict, SelfTestReport
from asymcir_edge.errors import EncoderError

PREDICTOR_GROUP = "asymcir.predictors"
"""Entry points that open a model file with a runtime that this package does not know: path -> `Predictor`.

Core ML is one of them: coremltools belongs to the export, and the device runtime does not import it.
"""

DEFAULT_REPEATS, WARMUP = 30, 5

Predictor = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""[h, w, 3] uint8 -> sentence tokens [L, D]; of a Core ML package, [S, S, 3]."""

_logger = logging.getLogger(__name__)


def run_selftest(
    bundle: DeviceBundle,
    precisions: Sequence[str] | None = None,
    threads: int = 1,
    repeats: int = DEFAULT_REPEATS,
    coreml: bool = True,
) -> SelfTestReport:
    """Run every encoder of a bundle on its golden pictures, and time it.

    Args:
        bundle: verified.
        precisions: which of `bundle.encoders`; None for all.
        threads: that one picture is encoded with.
        repeats: timed runs of the square golden picture, after WARMUP others.
        coreml: run the Core ML package too, where Core ML runs.

    Raises:
        BundleError: no golden part, no encoder of a precision asked for.
        EncoderError: threads or repeats below 1.
    """
    if min(threads, repeats) < 1:
        raise EncoderError(f"expected 1 or more threads and repeats, got {threads} and {repeats}")
    golden = read_golden(bundle)
    chosen = list(bundle.encoders) if precisions is None else list(dict.fromkeys(precisions))
    paths = {precision: bundle.encoder_path(precision) for precision in chosen}
    import onnxruntime  # before the loads that are timed
    import PIL

    trial = _Trial(bundle=bundle, golden=golden, repeats=repeats)
    reports: list[EncoderReport] = []
    for precision, path in paths.items():
        _logger.info("testing %s", path.name)

        def open_onnx(precision: str = precision) -> tuple[Predictor, str]:
            encoder = QueryEncoder(bundle, precision=precision, threads=threads)
            return encoder.encode_image, encoder.provider

        reports.append(trial.run(precision, path, open_onnx, threads=threads))
    return SelfTestReport(
        bundle=bundle.folder.resolve().name,
        word_space=bundle.word_space,
        foundation=str(bundle.manifest.properties.get("foundation", "")),
        onnxruntime=onnxruntime.__version__,
        pillow=PIL.__version__,
        machine=describe_machine(),
        encoders=tuple(reports),
        coreml=_run_coreml(trial) if coreml else "not run: not asked for",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trial:
    """What is the same for every encoder of one self-test."""

    bundle: DeviceBundle
    golden: GoldenSet
    repeats: int

    def run(
        self,
        precision: str,
        path: Path,
        open_predictor: Callable[[], tuple[Predictor, str]],
        *,
        threads: int | None,
        square: bool = False,
    ) -> EncoderReport:
        """Open a file, compare and time it.

        Args:
            precision: key of its thresholds.
            path: of the file or package.
            open_predictor: returns the predictor and its provider's name; may raise EncoderError.
            threads: for the report.
            square: the predictor takes prepared pictures [S, S, 3].
        """
        thresholds = find_thresholds(self.bundle, self.golden, precision)
        about: dict[str, Any] = {
            "precision": precision,
            "file": path.relative_to(self.bundle.folder).as_posix(),
            "size_bytes": _size_bytes(path),
            "threads": threads,
            "thresholds": thresholds,
        }
        start_s = time.perf_counter()
        try:
            predict, provider = open_predictor()
        except AsymcirError as exc:
            return EncoderReport(**about, provider="", problem=str(exc))
        load_ms = (time.perf_counter() - start_s) * 1000.0
        verdicts: list[PictureVerdict] = []
        found: list[NDArray[np.float32]] = []
        for picture, expected in zip(self.golden.pictures, self.golden.tokens, strict=True):
            try:
                tokens = predict(self._read(picture, square=square))
                if tokens.shape != expected.shape or not np.isfinite(tokens).all():
                    raise EncoderError(f"expected finite tokens {list(expected.shape)}, got {list(tokens.shape)}")
            except (ImageError, EncoderError) as exc:
                verdicts.append(PictureVerdict(picture=picture.name, problem=str(exc)))
                continue
            found.append(tokens)
            verdicts.append(_judge(picture.name, expected, tokens, thresholds))
        return EncoderReport(
            **about,
            **self._compare(found, thresholds),
            provider=provider,
            pictures=tuple(verdicts),
            latency=self._time(predict, square=square),
            load_ms=load_ms,
            peak_rss_mb=peak_rss_mb(),
        )

    def _read(self, picture: GoldenPicture, *, square: bool) -> NDArray[np.uint8]:
        pixels = read_image(picture.path)
        height, width = pixels.shape[:2]
        if (width, height) != (picture.width, picture.height):
            raise ImageError(
                f"decoded to {width}x{height}, expected {picture.width}x{picture.height}: this machine's decoder "
                "does not turn or read it as the exporting one did"
            )
        return preprocess(pixels, self.bundle.preprocessing) if square else pixels

    def _compare(self, found: Sequence[NDArray[np.float32]], thresholds: Thresholds) -> dict[str, Any]:
        """Compare the tokens of all pictures [n, L, D] with the golden ones; nothing where one is lacking."""
        expected = self.golden.tokens
        if len(found) != len(expected):
            return {}
        agreement = compare_tokens(expected, np.stack(found))
        limit = thresholds.error_to_spread_max
        problem = ""
        if limit is not None and not agreement.error_to_spread <= limit:
            problem = (
                f"error to spread {agreement.error_to_spread:.3f}, expected at most {limit:g}: "
                "this is another encoder, or one that computes otherwise here"
            )
        return {**asdict(agreement), "problem": problem}

    def _time(self, predict: Predictor, *, square: bool) -> Latency | None:
        picture = self.golden.pictures[self.golden.latency_picture]
        try:
            pixels = self._read(picture, square=square)
            for _ in range(WARMUP):
                predict(pixels)
            times_ms: list[float] = []
            for _ in range(self.repeats):
                start_s = time.perf_counter()
                predict(pixels)
                times_ms.append((time.perf_counter() - start_s) * 1000.0)
        except (ImageError, EncoderError):
            return None  # its verdict says why
        return Latency(
            picture=picture.name,
            median_ms=float(np.median(times_ms)),
            p95_ms=float(np.percentile(times_ms, 95)),
            repeats=self.repeats,
            warmup=WARMUP,
        )


def _judge(
    name: str, expected: NDArray[np.float32], found: NDArray[np.float32], thresholds: Thresholds
) -> PictureVerdict:
    """Compare one picture's tokens [L, D]."""
    cosines = token_cosines(expected, found)
    problem = ""
    if not cosines.min() >= thresholds.cosine_min:
        problem = f"cosine {cosines.min():.5f}, expected at least {thresholds.cosine_min:g}"
    return PictureVerdict(
        picture=name,
        cosine_min=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
        max_abs_difference=float(np.abs(found - expected).max()),
        problem=problem,
    )


def _run_coreml(trial: _Trial) -> tuple[EncoderReport, ...] | str:
    """Run the Core ML packages where that is possible, and say why where it is not."""
    bundle = trial.bundle
    tops = [name.partition("/")[0] for name in bundle.manifest.files]
    packages = [name for name in dict.fromkeys(tops) if name.endswith(PACKAGE_SUFFIX)]
    if not packages:
        return "not run: the bundle has no Core ML package"
    system = platform.system()
    if system != "Darwin":
        return f"not run: Core ML does not predict on {system}"
    entries = importlib.metadata.entry_points(group=PREDICTOR_GROUP, name="coreml")
    if not entries:
        return "not run: asymcir is only importable here: install it, and coremltools"
    try:
        open_package: Callable[[Path], Predictor] = next(iter(entries)).load()
    except ModuleNotFoundError as exc:
        return f"not run: {exc.name} is not installed: pip install coremltools"
    reports: list[EncoderReport] = []
    for name in packages:
        _logger.info("testing %s", name)

        def open_coreml(path: Path = bundle.folder / name) -> tuple[Predictor, str]:
            return open_package(path), "Core ML"

        reports.append(trial.run(name, bundle.folder / name, open_coreml, threads=None, square=True))
    return tuple(reports)


def _size_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
