"""The host side of the ARM benchmark, behind an emulator that is a script; and the real plugin, where QEMU is there."""

import json
import platform
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from asymcir_benchmarks.device.arm_count import (
    Subject,
    check_agreement,
    compare_outputs,
    count_all,
    main,
    ratios_to_peer,
    read_counted,
)
from asymcir_benchmarks.device.arm_machine import ArmMachine, cost_per_query, read_json
from asymcir_benchmarks.device.arm_subjects import (
    ENCODER_FILES,
    NETWORK_FILES,
    PICTURES,
    PREPROCESSING,
    PREPROCESSING_FILE,
    open_backbones,
    open_model,
)
from asymcir_benchmarks.device.timing import PEER, PEER_FILES
from asymcir_benchmarks.errors import BenchmarkError
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tiny_device_bundle import write_device_bundle

ARM = Path(__file__).resolve().parents[3] / "benchmarks" / "arm"
START, QUERY = 10_000_000, 2_500_000  # instructions that the script says it has executed

# What stands for qemu-aarch64: it runs the Python of this machine, and counts by what it is asked to do.
EMULATOR = """#!/usr/bin/env bash
set -euo pipefail
out=/dev/null queries=0 words=("$@")
for i in "${{!words[@]}}"; do
  case "${{words[$i]}}" in
    *,out=*) out=${{words[$i]#*,out=}} ;;
    --queries) queries=${{words[$((i + 1))]}} ;;
  esac
done
while [ "${{1##*/}}" != python3.11 ]; do shift; done
shift
{python} "$@"
echo $(({start} + queries * {query})) >"$out"
"""


@pytest.fixture
def emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "bin" / "qemu-aarch64"
    path.parent.mkdir()
    monkeypatch.setenv("PATH", str(path.parent), prepend=":")
    path.write_text(EMULATOR.format(python=sys.executable, start=START, query=QUERY), encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with the files of an assembled machine."""
    folder = tmp_path / "work"
    for name in ("root/usr/bin/python3.11", "insn_count.so"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "root" / "site").mkdir()
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(PICTURES):
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def _peer(path: Path) -> Path:
    """Pixels [1, 3, 8, 8] -> their means [1, 3]."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["means"]),
        helper.make_node("Flatten", ["means"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "peer",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """What the writer of the backbones leaves: the peer, the preprocessing, and a backbone."""
    folder = tmp_path / "models"
    (folder / "small").mkdir(parents=True)
    for name in PEER_FILES.values():
        _peer(folder / name)
    _picture_model(folder / PREPROCESSING_FILE)
    _picture_model(folder / "small" / ENCODER_FILES["int8"])
    _peer(folder / "small" / NETWORK_FILES["int8"])
    (folder / "small" / "backbones.json").write_text("{}", encoding="utf-8")
    return folder


def _picture_model(path: Path) -> Path:
    """Picture [height, width, 3] -> its first pixel [1, 3]."""
    initializers = [
        numpy_helper.from_array(np.array(value, dtype=np.int64), name)
        for name, value in (("starts", [0, 0]), ("ends", [1, 1]), ("axes", [0, 1]), ("shape", [1, 3]))
    ]
    nodes = [
        helper.make_node("Slice", ["pixels", "starts", "ends", "axes"], ["corner"]),
        helper.make_node("Reshape", ["corner", "shape"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["embedding"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "picture",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["height", "width", 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 3])],
        initializers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_a_query_is_half_of_the_difference_of_three_and_one() -> None:
    assert cost_per_query(START + QUERY, START + 3 * QUERY) == QUERY
    with pytest.raises(BenchmarkError, match="took 5 instructions, 1 took 5"):
        cost_per_query(5, 5)


def test_outputs_are_compared_by_their_worst_row() -> None:
    here = np.array([[[1.0, 0.0], [0.0, 2.0]]], dtype=np.float32)
    there = np.array([[[1.0, 0.0], [0.5, 2.0]]], dtype=np.float32)
    found = compare_outputs(here, there)
    assert found.max_abs_difference == 0.5
    assert found.min_cosine == pytest.approx(2 / np.hypot(0.5, 2))
    with pytest.raises(BenchmarkError, match="one shape"):
        compare_outputs(here, there[:, :1])
    with pytest.raises(BenchmarkError, match="finite"):
        compare_outputs(here, np.full_like(here, np.nan))


def test_ratios_are_to_the_faster_precision_of_the_peer() -> None:
    figures = {f"{PEER}, fp32, M instructions": 1000.0, f"{PEER}, int8, M instructions": 800.0}
    figures |= {"ours, fp32, M instructions": 200.0, "ours, fp32, from 640 x 480, M instructions": 400.0}
    figures |= {"ours, fp32, ARM to x86, min cosine": 1.0}
    assert ratios_to_peer(figures) == {
        f"ours, fp32, instructions / {PEER}, int8": 0.25,
        f"ours, fp32, from 640 x 480, instructions / {PEER}, int8": 0.5,
    }
    with pytest.raises(BenchmarkError, match="nothing to compare with"):
        ratios_to_peer({"ours, fp32, M instructions": 200.0})


def test_tokens_that_differ_on_arm_are_an_error() -> None:
    subjects = [
        Subject(
            name="ours",
            precision=precision,
            file=Path("encoder.onnx"),
            arguments=(),
            inputs=np.zeros((1, 4, 4, 3), dtype=np.uint8),
        )
        for precision in ("fp32", "int8-ort")
    ]
    figures = {f"{subject.key}, ARM to x86, min cosine": 0.9999 for subject in subjects}
    check_agreement(subjects, figures)
    with pytest.raises(BenchmarkError, match=r"ours, int8-ort: a token on ARM has cosine 0\.98000"):
        check_agreement(subjects, figures | {"ours, int8-ort, ARM to x86, min cosine": 0.98})
    with pytest.raises(BenchmarkError, match=r"ours, fp32: .* 0\.99000"):
        check_agreement(subjects, figures | {"ours, fp32, ARM to x86, min cosine": 0.99})


def test_the_command_counts_compares_and_writes(
    tmp_path: Path, work: Path, pictures: Path, models: Path, emulator: Path
) -> None:
    bundle = write_device_bundle(tmp_path / "bundle")
    out = tmp_path / "arm.json"
    arguments = ["--root", str(work), "--device-bundle", str(bundle), "--name", "ours", "--pictures", str(pictures)]
    arguments += ["--models", str(models), "--out", str(out)]
    assert main(arguments) == 0
    figures = json.loads(out.read_text(encoding="utf-8"))["figures"]
    assert figures[f"{PEER}, fp32, M instructions"] == QUERY / 1e6
    assert figures["ours, fp32, M instructions"] == figures["ours, fp32, from 640 x 480, M instructions"] == QUERY / 1e6
    assert figures[f"{PREPROCESSING}, fp32, from 640 x 480, M instructions"] == QUERY / 1e6
    for key in ("ours, fp32", "small, int8", "small, network alone, int8"):
        assert figures[f"{key}, instructions / {PEER}, fp32"] == 1.0
        assert figures[f"{key}, ARM to x86, max abs difference"] == 0.0
    assert figures["ours, fp32, ARM to x86, min cosine"] == pytest.approx(1.0)
    assert main([*arguments, "--selftest", str(tmp_path / "selftest.json")]) == 1  # the tiny bundle has no golden part


def test_only_what_has_changed_is_counted_again(tmp_path: Path, work: Path, models: Path, emulator: Path) -> None:
    machine = ArmMachine(work=work)
    picture = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    out = tmp_path / "arm.json"

    def count() -> dict[str, float]:
        peers = [open_model(PEER, precision, models / file, [picture]) for precision, file in PEER_FILES.items()]
        return count_all([*peers, *open_backbones(models, [picture])], machine, out)

    first = count()
    assert read_counted(out)[0] == {key: value for key, value in first.items() if "instructions /" not in key}
    emulator.write_text(emulator.read_text(encoding="utf-8").replace(f"* {QUERY}", f"* {2 * QUERY}"), encoding="utf-8")
    assert count() == first  # nothing has changed, so nothing was run
    path = models / "small" / ENCODER_FILES["int8"]
    changed = onnx.load(path)
    changed.doc_string = "another graph"
    onnx.save(changed, path)
    second = count()
    found = {key for key in first if second[key] != first[key]}
    assert found == {"small, int8, M instructions", f"small, int8, instructions / {PEER}, fp32"}
    assert second["small, int8, M instructions"] == 2 * QUERY / 1e6
    shutil.rmtree(models / "small")
    with pytest.raises(
        BenchmarkError, match=r"found no backbone .* run `python -m asymcir_benchmarks\.device\.write_backbones` first"
    ):
        count()


def test_what_was_counted_before_a_failure_is_kept(tmp_path: Path, work: Path, models: Path, emulator: Path) -> None:
    machine = ArmMachine(work=work)
    picture = np.zeros((9, 12, 3), dtype=np.uint8)
    out = tmp_path / "arm.json"
    peer = open_model(PEER, "fp32", models / PEER_FILES["fp32"], [picture])
    broken = Subject(name="x", precision="fp32", file=peer.file, arguments=("--model", "none"), inputs=peer.inputs)
    with pytest.raises(BenchmarkError, match="exit code 1"):
        count_all([peer, broken], machine, out)
    figures, digests = read_counted(out)
    assert list(digests) == [peer.key] and figures[f"{PEER}, fp32, M instructions"] == QUERY / 1e6


def test_the_files_are_those_that_the_writer_of_the_backbones_names() -> None:
    backbones = pytest.importorskip("asymcir_benchmarks.device.write_backbones")
    assert (ENCODER_FILES, NETWORK_FILES) == (backbones.ENCODER_FILES, backbones.NETWORK_FILES)
    assert PREPROCESSING_FILE == backbones.PREPROCESSING_FILE


def test_a_run_that_fails_says_what_it_said(work: Path, emulator: Path, tmp_path: Path) -> None:
    machine = ArmMachine(work=work)
    assert machine.count(["-c", "print('{}')", "--queries", "2"]) == START + 2 * QUERY
    with pytest.raises(BenchmarkError, match="exit code 1: ValueError: no kernel"):
        machine.count(["-c", "raise ValueError('no kernel')"])
    with pytest.raises(BenchmarkError, match="expected a line of JSON"):
        machine.run_json(["-c", "print('tokens')"])
    with pytest.raises(BenchmarkError, match="expected a JSON object"):
        machine.run_json(["-c", "print(3)"])
    emulator.write_text("#!/bin/sh\necho '{}'\n", encoding="utf-8")  # runs, and loads no plugin
    with pytest.raises(BenchmarkError, match="counted nothing"):
        machine.count(["-c", "print('{}')"])


def test_the_machine_sees_its_own_wheels_before_anything_of_this_one(work: Path, emulator: Path) -> None:
    machine = ArmMachine(work=work)
    script = "import json, os; print(json.dumps(dict(os.environ)))"
    found = machine.run_json(["-c", script])
    first, *others = found["PYTHONPATH"].split(":")
    assert first == str(work / "root" / "site")
    packages = zip(others, ("asymcir_common", "asymcir_protos", "asymcir_edge"), strict=True)
    assert all((Path(folder) / name).is_dir() for folder, name in packages)
    assert "HOME" not in found


def test_what_is_missing_is_named(work: Path, emulator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "insn_count.so").unlink()
    with pytest.raises(BenchmarkError, match=r"insn_count\.so is missing: run benchmarks/arm/assemble"):
        ArmMachine(work=work)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchmarkError, match="apt-get install qemu-user"):
        ArmMachine(work=work)


def test_models_that_cannot_be_run_are_refused(tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("a", "b")]
    output = helper.make_tensor_value_info("c", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["c"])], "two", inputs, [output])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "two.onnx"
    )
    for file, message in (("nothing.onnx", "cannot open the model"), ("two.onnx", "expected one input")):
        with pytest.raises(BenchmarkError, match=message):
            open_model("ours", "fp32", tmp_path / file, [np.zeros((4, 4, 3), dtype=np.uint8)])


def test_a_process_that_printed_json_after_other_lines_is_read() -> None:
    done = subprocess.CompletedProcess(["python"], 0, stdout='warning\n{"queries": 3}\n', stderr="")
    assert read_json(done, "here") == {"queries": 3}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    path = tmp_path_factory.mktemp("plugin") / "insn_count.so"
    command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden"]
    subprocess.run([*command, "-o", str(path), str(ARM / "insn_count.c")], check=True)
    return path


def test_the_plugin_counts_a_loop_of_known_length(plugin: Path, tmp_path: Path) -> None:
    qemu = shutil.which("qemu-x86_64")
    if qemu is None or platform.machine() != "x86_64":
        pytest.skip("qemu-user is not installed, or this machine is not x86-64")
    if "-plugin" not in subprocess.run([qemu, "-h"], capture_output=True, text=True, check=False).stdout:
        pytest.skip("this qemu-user takes no plugins")
    source = tmp_path / "loop.c"
    source.write_text(
        "#include <stdlib.h>\n"
        "int main(int argc, char **argv) {\n"
        "  long n = atol(argv[argc - 1]);\n"
        '  __asm__ volatile("1: dec %0\\n jnz 1b" : "+r"(n));\n'  # two instructions a turn
        "  return 0;\n"
        "}\n",
        encoding="utf-8",
    )
    program = tmp_path / "loop"
    subprocess.run(["gcc", "-O1", "-o", str(program), str(source)], check=True)

    def count(turns: int) -> int:
        out = tmp_path / "instructions"
        subprocess.run([qemu, "-plugin", f"{plugin},out={out}", str(program), str(turns)], check=True)
        return int(out.read_text(encoding="ascii"))

    assert count(2_000_000) - count(1_000_000) == pytest.approx(2_000_000, abs=200)
    refused = subprocess.run(
        [qemu, "-plugin", f"{plugin},file=x", str(program), "1"], capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0 and "expected one argument, out=FILE" in refused.stderr
