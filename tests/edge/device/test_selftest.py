"""The self-test on tiny bundles: what passes and every fault that has to be found; the command as a user meets it."""

import json
import platform
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_device_bundle as tiny
from asymcir_common import BundleError, read_image, write_manifest
from asymcir_common.manifest import DEVICE_BUNDLE, read_manifest
from asymcir_edge import DeviceBundle, commands
from asymcir_edge.device.selftest import PREDICTOR_GROUP, run_selftest
from asymcir_edge.device.verdicts import SelfTestReport
from numpy.typing import NDArray
from PIL import Image

SIZES = {"square.png": (32, 32), "wide.png": (48, 20), "pixel.png": (1, 1)}


def make_bundle(folder: Path, models: Any = None, *, coreml: bool = False, **record: Any) -> Path:
    """Write a bundle with golden tokens that were computed naively, without its encoder."""
    tiny.write_device_bundle(folder, models)
    golden = folder / "golden"
    (golden / "pictures").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(golden / "pictures" / name)
    tokens = [tiny.encode_naively(read_image(golden / "pictures" / name)) for name in SIZES]
    np.save(golden / "tokens.npy", np.stack(tokens))
    content = {
        "tokens": "tokens.npy",
        "latency_picture": "square.png",
        "pictures": [{"file": name, "width": width, "height": height} for name, (width, height) in SIZES.items()],
        "thresholds": {"fp32": {"cosine_min": 0.999, "error_to_spread_max": 0.1}},
        **record,
    }
    (golden / "golden.json").write_text(json.dumps(content))
    if coreml:
        (folder / "encoder.mlpackage").mkdir()
        (folder / "encoder.mlpackage" / "Manifest.json").write_text("{}")
    return sign(folder, golden={"file": "golden/golden.json"})


def sign(folder: Path, *, drop: str = "", **properties: Any) -> Path:
    """Write the manifest anew, as if the bundle had been exported as it lies there."""
    record = json.loads((folder / "manifest.json").read_text())["properties"] | properties
    record.pop(drop, None)
    write_manifest(folder, format=DEVICE_BUNDLE, properties=record)
    return folder


def check(folder: Path, **options: Any) -> SelfTestReport:
    return run_selftest(DeviceBundle.load(folder), **{"repeats": 3, **options})


def change_tokens(folder: Path, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
    path = folder / "golden" / "tokens.npy"
    np.save(path, change(np.load(path)))
    sign(folder)


def test_a_sound_bundle_passes(tmp_path: Path) -> None:
    report = check(make_bundle(tmp_path / "b"), threads=2)
    (encoder,) = report.encoders
    assert report.passed and encoder.passed
    assert encoder.provider == "CPUExecutionProvider" and encoder.threads == 2
    assert encoder.cosine_min is not None and encoder.cosine_min > 0.99999
    assert encoder.max_abs_difference is not None and encoder.max_abs_difference < 1e-4
    assert [verdict.picture for verdict in encoder.pictures] == list(SIZES)
    latency = encoder.latency
    assert latency is not None and latency.picture == "square.png" and latency.repeats == 3
    assert 0 < latency.median_ms <= latency.p95_ms
    assert encoder.load_ms is not None and encoder.load_ms > 0
    assert encoder.peak_rss_mb is not None and 10 < encoder.peak_rss_mb < 100_000
    assert encoder.size_bytes == (tmp_path / "b" / "encoder.onnx").stat().st_size
    assert report.machine.cores >= report.machine.usable_cores >= 1
    assert report.machine.architecture == platform.machine()
    assert report.coreml == "not run: the bundle has no Core ML package"
    record = json.loads(json.dumps(report.to_json()))
    assert record["passed"] is True and record["encoders"][0]["passed"] is True
    assert record["encoders"][0]["thresholds"] == {"cosine_min": 0.999, "error_to_spread_max": 0.1}


def test_every_encoder_is_tested_and_one_fault_fails_the_bundle(tmp_path: Path) -> None:
    models = {"fp32": tiny.make_encoder(), "int8": tiny.make_encoder(seed=1)}
    folder = make_bundle(tmp_path / "b", models)
    report = check(folder)
    assert [(encoder.precision, encoder.passed) for encoder in report.encoders] == [("fp32", True), ("int8", False)]
    assert not report.passed
    assert check(folder, precisions=["fp32"]).passed
    with pytest.raises(BundleError, match="'int4'"):
        check(folder, precisions=["int4"])


def test_a_replaced_encoder_fails(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    (folder / "encoder.onnx").write_bytes(tiny.make_encoder(seed=1).SerializeToString())
    (encoder,) = check(sign(folder)).encoders
    assert not encoder.passed
    assert "another encoder" in encoder.problem
    assert all("expected at least 0.999" in verdict.problem for verdict in encoder.pictures)


def test_what_all_tokens_have_in_common_does_not_hide_another_encoder(tmp_path: Path) -> None:
    # Tokens far from the origin have a cosine near 1 whatever the picture: only the spread shows that they are wrong.
    folder = make_bundle(tmp_path / "b", thresholds={"fp32": {"cosine_min": -1.0, "error_to_spread_max": 0.1}})
    change_tokens(folder, lambda tokens: tokens + np.float32(0.05))
    report = check(folder)
    assert not report.passed
    assert not any(verdict.problem for verdict in report.encoders[0].pictures)
    assert "error to spread" in report.encoders[0].problem


def test_changed_golden_tokens_of_one_picture_fail_that_picture(tmp_path: Path) -> None:
    def swap(tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        tokens[1] = tokens[1][::-1]
        return tokens

    folder = make_bundle(tmp_path / "b")
    change_tokens(folder, swap)
    verdicts = check(folder).encoders[0].pictures
    assert [bool(verdict.problem) for verdict in verdicts] == [False, True, False]


def test_golden_tokens_changed_behind_the_manifest_do_not_load(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    np.save(folder / "golden" / "tokens.npy", np.zeros((3, 4, 8), np.float32))
    with pytest.raises(BundleError, match="not the file its manifest describes"):
        check(folder)


def test_pictures_that_decode_otherwise_fail(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    pictures = folder / "golden" / "pictures"
    with Image.open(pictures / "wide.png") as image:
        image.transpose(Image.Transpose.ROTATE_90).save(pictures / "wide.png")
    (pictures / "pixel.png").write_bytes(b"no picture")
    (encoder,) = check(sign(folder)).encoders
    assert not encoder.passed and encoder.cosine_min is None
    assert [verdict.problem.partition(":")[0] for verdict in encoder.pictures][:2] == [
        "",
        "decoded to 20x48, expected 48x20",
    ]
    assert "cannot decode" in encoder.pictures[2].problem
    assert encoder.latency is not None  # the square one can still be timed


def test_an_encoder_that_does_not_open_or_run_is_reported_beside_the_others(tmp_path: Path) -> None:
    models = {"fp32": tiny.make_encoder(), "old": b"no graph", "nan": tiny.make_encoder(divide_by_zero=True)}
    fp32, old, nan = check(make_bundle(tmp_path / "b", models)).encoders
    assert fp32.passed and not old.passed and not nan.passed
    assert "cannot open" in old.problem and old.latency is None
    assert all("finite" in verdict.problem for verdict in nan.pictures) and nan.latency is None


@pytest.mark.parametrize(
    ("properties", "precision", "expected"),
    [
        ({}, "fp32", 0.999),
        ({}, "fp16", 0.999),
        ({}, "int8", 0.98),
        ({"variants": {"int8": {"cosine_min": 0.97}}}, "int8", 0.97),
        ({"variants": {"int8": {"size_bytes": 5}}}, "int8", 0.98),
    ],
)
def test_thresholds_where_the_golden_part_says_none(
    tmp_path: Path, properties: dict[str, Any], precision: str, expected: float
) -> None:
    folder = make_bundle(tmp_path / "b", {precision: tiny.make_encoder()}, thresholds={})
    report = check(sign(folder, **properties))
    assert report.passed
    assert report.encoders[0].thresholds.cosine_min == expected


def test_a_bundle_without_golden_tokens_says_what_to_do(tmp_path: Path) -> None:
    folder = tiny.write_device_bundle(tmp_path / "b")
    with pytest.raises(BundleError, match=r"no golden pictures.*export the bundle again"):
        check(folder)
    assert "export the bundle again" in command(folder, code=1).stderr


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"pictures": [{"file": "other.png", "width": 1, "height": 1}]}, "does not list golden/pictures/other.png"),
        ({"pictures": [{"file": "../../encoder.onnx", "width": 1, "height": 1}]}, "does not list"),
        ({"pictures": [{"file": "square.png", "width": 32, "height": 32}]}, r"\[1, 4, 8\]"),
        ({"latency_picture": "other.png"}, "not readable"),
        ({"thresholds": {"fp32": {}}}, "not readable"),
        ({"tokens": "pictures/square.png"}, "not readable"),
    ],
)
def test_a_damaged_golden_part(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        check(make_bundle(tmp_path / "b", **record))


def test_coreml_is_not_run_where_it_does_not_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_bundle(tmp_path / "b", coreml=True)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    report = check(folder)
    assert report.passed and report.coreml == "not run: Core ML does not predict on Linux"


PREDICTOR = """
import numpy as np, tiny_device_bundle as tiny
from asymcir_edge import EncoderError

def open_sound(path):
    assert path.is_dir()
    def predict(pixels):
        assert pixels.shape == (4, 4, 3)  # prepared as an app would
        return tiny.encode_naively(pixels)
    return predict

def open_wrong(path):
    return lambda pixels: np.full((4, 8), np.nan, np.float32)

def open_refused(path):
    raise EncoderError("Core ML cannot load it")
"""


@pytest.mark.parametrize(
    ("target", "passed", "words"),
    [
        ("sound", True, ""),
        ("wrong", False, "finite"),
        ("refused", False, "cannot load"),
        ("missing:open_coreml", True, "not run: runtime_that_is_not_here is not installed"),
        (None, True, "not run: asymcir is only importable"),
    ],
)
def test_coreml_through_the_predictor_of_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str | None, passed: bool, words: str
) -> None:
    """On a Mac; here with a predictor that a distribution of the test's own brings."""
    site = tmp_path / "site"
    (site / "predictors-1.dist-info").mkdir(parents=True)
    (site / "test_predictor.py").write_text(PREDICTOR)
    (site / "missing.py").write_text("import runtime_that_is_not_here")
    entry = f"coreml = {target if ':' in target else f'test_predictor:open_{target}'}\n" if target else ""
    (site / "predictors-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: predictors\nVersion: 1\n")
    (site / "predictors-1.dist-info" / "entry_points.txt").write_text(f"[{PREDICTOR_GROUP}]\n{entry}")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    kept = [path for path in sys.path if not list(Path(path).glob("asymcir-*.dist-info"))]
    monkeypatch.setattr(sys, "path", [str(site), *kept])
    squash = DeviceBundle.load(tiny.write_device_bundle(tmp_path / "plain")).preprocessing.to_json()
    squash["resize"] = "squash"  # which is what the tiny encoder does
    report = check(sign(make_bundle(tmp_path / "b", coreml=True), preprocessing=squash))
    assert report.passed is passed, report.coreml
    if isinstance(report.coreml, str):
        assert words in report.coreml
        return
    (package,) = report.coreml
    assert package.file == "encoder.mlpackage" and package.threads is None
    assert words in package.problem or all(words in verdict.problem for verdict in package.pictures)
    assert package.passed is passed and report.encoders[0].passed


def command(*words: object, code: int) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "asymcir_edge", "selftest", "--device-bundle", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done


def test_the_command(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    done = command(folder, "--repeats", 2, code=0)
    assert json.loads(done.stdout)["encoders"][0]["latency"]["repeats"] == 2
    assert "fp32: passed" in done.stderr and done.stderr.endswith("\npassed\n")
    assert command(folder, "--repeats", 2, "--json-only", code=0).stderr == ""
    change_tokens(folder, lambda tokens: -tokens)
    done = command(folder, "--precision", "fp32", "--threads", 1, code=1)
    assert json.loads(done.stdout)["passed"] is False
    assert "square.png: cosine -1.0" in done.stderr and done.stderr.endswith("\nFAILED\n")


def test_the_command_needs_no_installation(tmp_path: Path) -> None:
    """As on a board or under an emulator: the packages are importable, and no metadata of asymcir is anywhere."""
    code = (
        "import importlib.metadata as metadata, sys\n"
        "found = metadata.distribution\n"
        "def distribution(name):\n"
        "    if name == 'asymcir': raise metadata.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "metadata.distribution = distribution\n"
        "from asymcir_edge.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", code, *map(str, words)]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    done = run("selftest", "--device-bundle", make_bundle(tmp_path / "b"), "--repeats", 2)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"] is True
    assert run("--version").stdout == "asymcir (not installed)\n"
    assert all(f"\n    {name} " in run("--help").stdout for name in ("encode", "query", "describe", "selftest"))
    refused = run("serve")
    assert refused.returncode == 1 and "only importable" in refused.stderr


def test_the_runtime_imports_no_model_tools(tmp_path: Path) -> None:
    code = (
        "import sys; from asymcir_edge.cli import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'coremltools', 'onnx', 'asymcir_export', 'grpc'} & set(sys.modules); sys.exit(code)"
    )
    bundle = make_bundle(tmp_path / "b", coreml=True)
    line = [sys.executable, "-c", code, "selftest", "--device-bundle", str(bundle), "--repeats", "2"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_manifest_still_reads_as_any_other(tmp_path: Path) -> None:
    manifest = read_manifest(make_bundle(tmp_path / "b"), format=DEVICE_BUNDLE)
    assert {name for name in manifest.files if name.startswith("golden/")} == {
        "golden/golden.json",
        "golden/tokens.npy",
        *(f"golden/pictures/{name}" for name in SIZES),
    }


def test_every_command_of_the_device_is_an_entry_point() -> None:
    """An installed `asymcir` finds commands in `pyproject.toml`, an importable one in the module: the same ones."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        target for target in project["entry-points"]["asymcir.commands"].values() if target.startswith("asymcir_edge.")
    }
    assert declared == {f"asymcir_edge.commands:{name}" for name in vars(commands) if name.startswith("register_")}
    (predictor,) = project["entry-points"][PREDICTOR_GROUP].items()
    assert predictor == ("coreml", "asymcir_export.coreml.predictor:open_coreml")
