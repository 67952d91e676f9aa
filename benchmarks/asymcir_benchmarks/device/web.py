"""What a query costs in a browser: the page in a headless Chromium, beside native ONNX Runtime and a CLIP tower.

    python -m asymcir_benchmarks.device.web --gallery FOLDER --work FOLDER --out benchmarks/results/web.json

The encoder's graph runs natively and in onnxruntime-web by turns, on one thread each and the same pixels, so that
whatever else the machine does meets both. The tower is what a page would run that sends CLIP embeddings of its own:
ViT-B/32's image tower of random weights, in the runtime that transformers.js uses. It gets a picture of its own size;
the encoder is compared with it at its own size too, and timed once more with the resizing of a camera's picture.
"""

import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from asymcir_common import AsymcirError
from asymcir_common.arguments import MAX_REPEATS, ArgumentParser, whole_number
from asymcir_edge import DeviceBundle
from asymcir_edge.device.encoder import INPUT_NAME, OUTPUT_NAME, open_session

from asymcir_benchmarks.device.timing import TOWER
from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.results import write_result

ASSETS = Path("demo/assets")
DRIVER = Path("edge/web/browser/bench.mjs")
VIT_SIDE = 224
_SIDES = [480, 640]
"""Of a camera's picture: height and width."""

_TOWER_FILE = "vit-b32.onnx"
_PICTURE = "grinning-cat.webp"
_RUNS = 5
_WARM_UP = 3
_SHOTS = 15
_VISITS = 3


class Browser:
    """The driver in Node, spoken to by lines of JSON."""

    def __init__(self, environment: dict[str, str]) -> None:
        """Start it; it opens a server and a browser."""
        self._process = subprocess.Popen(
            ["node", str(DRIVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def ask(self, **order: Any) -> Any:
        """Send an order and wait for its answer.

        Raises:
            BenchmarkError: the driver ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise BenchmarkError("the browser's driver ended: see what it printed") from None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(f"the browser's driver ended at {order}: see what it printed")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()


def build_parser() -> ArgumentParser:
    """Build the parser of this command."""
    parser = ArgumentParser(prog="python -m asymcir_benchmarks.device.web", description=__doc__)
    parser.add_argument("--gallery", type=Path, required=True, help="a gallery of the demo's pictures, with thumbnails")
    parser.add_argument("--work", type=Path, required=True, help="folder for the tower, 350 MB; kept")
    parser.add_argument("--rounds", type=whole_number(1, MAX_REPEATS), default=12)
    parser.add_argument("--out", type=Path, required=True)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the figures."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        figures = measure(args.gallery.resolve(), args.work, rounds=args.rounds)
    except AsymcirError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    write_result(args.out, figures=figures, command="make bench-web")
    return 0


def measure(gallery: Path, work: Path, *, rounds: int) -> dict[str, float]:
    """Measure the encoder, the tower and the page.

    Returns:
        Flat figures.

    Raises:
        BenchmarkError: the driver or the browser failed.
    """
    work.mkdir(parents=True, exist_ok=True)
    tower = work / _TOWER_FILE
    if not tower.is_file():
        from asymcir_benchmarks.device.write_peers import VIT_B32, write_peer  # torch, for this alone

        write_peer(VIT_B32, work)
    bundle = DeviceBundle.load(ASSETS / "device")
    path = bundle.encoder_path()
    floats = bundle.default_encoder == "fp32" and bundle.weight_storage == "int8"
    session = open_session(path, threads=1, float_compute=floats)
    pixels = ((np.arange(3 * _SIDES[0] * _SIDES[1]) * 7) % 256).astype(np.uint8).reshape(*_SIDES, 3)

    def run_native(repeats: int) -> list[float]:
        times = []
        for _ in range(repeats):
            start_s = time.perf_counter()
            session.run([OUTPUT_NAME], {INPUT_NAME: pixels})
            times.append((time.perf_counter() - start_s) * 1000.0)
        return times

    figures: dict[str, float] = {"rounds": float(rounds), "load average before": round(os.getloadavg()[0], 2)}
    with (
        tempfile.TemporaryDirectory(prefix="asymcir-bench-") as folder,
        zipfile.ZipFile(ASSETS / "queries.zip") as zipped,
    ):
        picture = Path(zipped.extract(_PICTURE, folder))
        browser = Browser(
            {
                "GALLERY": str(gallery),
                "ENCODER": str(path.resolve()),
                "FLOAT": "1" if floats else "0",
                "TOWER": str(tower.resolve()),
                "PICTURE": str(picture),
            }
        )
        try:
            encode = {"do": "run", "model": "encoder", "sides": _SIDES}
            encode_prepared = encode | {"sides": [bundle.preprocessing.size] * 2}
            embed = {"do": "run", "model": "tower", "sides": [VIT_SIDE] * 2}
            native, web, prepared, towers = list[float](), list[float](), list[float](), list[float]()
            slower, larger = list[float](), list[float]()
            run_native(_WARM_UP)
            for order in (encode, encode_prepared, embed):
                browser.ask(**order, repeats=_WARM_UP)
            for _ in range(rounds):
                natively = run_native(_RUNS)
                in_browser = browser.ask(**encode, repeats=_RUNS)
                small = browser.ask(**encode_prepared, repeats=_RUNS)
                of_tower = browser.ask(**embed, repeats=1)
                native, web, prepared, towers = native + natively, web + in_browser, prepared + small, towers + of_tower
                slower.append(statistics.median(in_browser) / statistics.median(natively))
                larger.append(statistics.median(of_tower) / statistics.median(small))
            figures |= _spread("picture to tokens, native, one thread", native, "ms")
            figures |= _spread("picture to tokens, WASM, one thread", web, "ms")
            figures |= _spread("prepared picture to tokens, WASM, one thread", prepared, "ms")
            figures |= _spread(f"{TOWER}, WASM, one thread", towers, "ms")
            figures["picture to tokens, WASM over native"] = round(statistics.median(slower), 2)
            figures[f"{TOWER} over the encoder, each at its own size, WASM"] = round(statistics.median(larger), 1)
            browser.ask(do="shutter", repeats=_WARM_UP)
            shots = browser.ask(do="shutter", repeats=_SHOTS)
            figures |= _spread("shutter to answers, warm", shots["times"][1:], "ms")
            figures["query on the wire, bytes"] = shots["sentBytes"]
            figures["JPEG of the camera's picture, bytes"] = shots["pictureBytes"]
            visits = [browser.ask(do="visit") for _ in range(_VISITS)]
            for name, key in (("first", "firstS"), ("second", "secondS")):
                figures |= _spread(f"{name} visit to first answer at 4G", [visit[key] for visit in visits], "s")
            figures["first visit, bytes received"] = statistics.median(visit["firstBytes"] for visit in visits)
        finally:
            browser.close()
    figures["load average after"] = round(os.getloadavg()[0], 2)
    return figures


def _spread(name: str, values: Sequence[float], unit: str) -> dict[str, float]:
    return {
        f"{name}, {unit}": round(float(np.median(values)), 3),
        f"{name}, p95, {unit}": round(float(np.quantile(values, 0.95)), 3),
    }


if __name__ == "__main__":
    sys.exit(main())
