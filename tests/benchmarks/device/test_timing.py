import json
from pathlib import Path

import numpy as np
import pytest
from asymcir_benchmarks.device.timing import LARGE, PEER, PEER_FILES, REASONS, main, measure, read_reasons, time_in_turn
from asymcir_benchmarks.device.write_backbones import FACTS_FILE, write_int8_product
from asymcir_benchmarks.errors import BenchmarkError
from asymcir_benchmarks.pages.device_tables import lay_out_arm, lay_out_backbones, lay_out_goals, lay_out_selftest
from onnx import ModelProto, TensorProto, helper, numpy_helper, save_model

SOURCE = {"command": "c", "date": "d", "machine": "m"}


def write_model(path: Path, shape: list[int | str], dtype: int, channels: int) -> None:
    """A 1x1 convolution (as a product over the last axis) of one input."""
    weight = numpy_helper.from_array(np.ones((channels, 4), dtype=np.float32), "weight")
    nodes = [
        helper.make_node("Cast", ["pixels"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "weight"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("pixels", dtype, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    save_model(model, path)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in PEER_FILES.values():
        write_model(tmp_path / name, [1, 3, 64, 64], TensorProto.FLOAT, 64)
    write_int8_product(tmp_path / "int8-product.onnx")
    (tmp_path / "small").mkdir()
    for name in ("encoder.onnx", "encoder.int8.onnx"):
        write_model(tmp_path / "small" / name, ["height", "width", 3], TensorProto.UINT8, 3)
    facts = {
        "parameters": 2_500_000,
        "macs": 8 * 8 * 3 * 4,
        "size": 8,
        "onnx": {"verified": True, "size_mb": 10.0},
        "int8": {"size_mb": 3.0},
        "coreml": {"verified": False, "reason": "x"},
    }
    (tmp_path / "small" / FACTS_FILE).write_text(json.dumps(facts))
    return tmp_path


def test_every_model_is_timed_in_turn() -> None:
    calls: list[str] = []
    times = time_in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "b"] * (len(calls) // 2) and len(calls) > 6
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


def test_figures_are_ratios_to_the_faster_peer(models: Path) -> None:
    large = models / PEER_FILES["fp32"]
    figures = measure(models, large, rounds=5)
    peer_ms = min(figures[f"{PEER}, {precision}, ms"] for precision in PEER_FILES)
    expected = peer_ms / figures["small, int8, ms"]
    assert figures["small, int8, times faster than the peer"] == pytest.approx(expected, rel=0.05)
    assert figures[f"small, fp32, times faster than {LARGE}"] > 0
    assert figures["small, GMACs"] == pytest.approx(8 * 8 * 3 * 4 / 1e9, abs=1e-4)
    assert figures["int8 peak of one thread, GOP/s"] > 1
    assert 0 < figures["small, int8, memory over the bare interpreter with numpy, MB"] < 500
    assert 4_608 < figures["query on the wire, bytes"] < 5_000  # 6 x 768 int8 values, scales, change, space
    page = lay_out_backbones({"figures": figures, **SOURCE})
    assert "Not verified" not in page
    reasons = read_reasons(models)
    assert reasons == {"small, coreml": "x"}
    page = lay_out_backbones({"figures": figures, "details": {REASONS: reasons}, **SOURCE})
    assert "Not verified:\n\n- small, Core ML fp16: x\n" in page
    assert "| small | 2.5 |" in page and page.count("| yes | **no** |") == 1 and PEER in page and LARGE in page


def test_what_is_missing_is_named(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / PEER_FILES["int8"]).unlink()
    with pytest.raises(
        BenchmarkError, match=r"mobileclip-s0\.int8\.onnx: run `python -m asymcir_benchmarks\.device\.write_backbones`"
    ):
        measure(models, None, rounds=1)
    assert main(["--models", str(tmp_path / "none"), "--out", str(tmp_path / "o.json")]) == 1
    assert "run `python -m asymcir_benchmarks.device.write_backbones` first" in capsys.readouterr().err


def test_the_command_writes_figures_and_reasons(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "device.json"
    assert main(["--models", str(models), "--rounds", "2", "--out", str(out)]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["details"] == {REASONS: {"small, coreml": "x"}}
    assert record["figures"]["small, coreml, verified"] == 0.0


def test_goals_and_arm_tables() -> None:
    key = "mobilenetv4_conv_small_050, int8"
    figures = {f"{key}, times faster than the peer": 19.9, f"{key}, MB": 4.5, "query on the wire, bytes": 4800.0}
    page = lay_out_goals({"figures": figures, **SOURCE})
    assert "| 19.9 | at least 20 | **no** |" in page and "| 4.5 | at most 5 | yes |" in page
    counted = {
        f"{PEER}, int8, M instructions": 1600.0,
        "demo, int8, M instructions": 40.0,
        "demo, int8, from 640 x 480, M instructions": 60.0,
        "demo, int8, instructions / peer, int8": 0.025,
        "demo, int8, ARM to x86, min cosine": 0.9991,
        "demo, network alone, int8, M instructions": 32.0,
        "demo, network alone, int8, instructions / peer, int8": 0.02,
        "demo, network alone, int8, ARM to x86, min cosine": 0.9985,
        "picture preparation alone, fp32, M instructions": 8.0,
        "picture preparation alone, fp32, instructions / peer, int8": 0.005,
    }
    rows = lay_out_arm({"figures": counted, **SOURCE}).splitlines()
    assert rows[2:6] == [
        f"| {PEER}, int8 | - | - | 1,600.0 | - | - |",
        "| demo, int8 | 40.0 | 40.0 | 32.0 | 50.0 | 0.99850 |",
        "| demo, int8, from 640 x 480 | 60.0 | - | - | - | - |",
        "| picture preparation alone, fp32 | 8.0 | - | - | - | - |",
    ]
    spoilt = lay_out_arm({"figures": counted | {"demo, int8, ARM to x86, min cosine": -0.05}, **SOURCE})
    assert "| demo, int8 | 40.0 | 40.0 | 32.0 | 50.0 | **-0.05000, failed** |" in spoilt


def test_the_selftest_table_shows_failures() -> None:
    encoder = {"precision": "fp16", "file": "a.onnx", "cosine_min": 0.5, "cosine_mean": 0.75, "error_to_spread": 1.0}
    report = {
        "encoders": [{**encoder, "passed": False}],
        "machine": {"architecture": "aarch64", "emulated": True, "python": "3.11"},
        "onnxruntime": "1.26.0",
    }
    page = lay_out_selftest(report)
    assert "| fp16 (`a.onnx`) | 0.50000 | 0.75000 | 1.00000 | **no** |" in page and "aarch64, emulated" in page
