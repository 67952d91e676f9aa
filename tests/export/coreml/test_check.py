"""The Core ML check must pass a sound package, and none of those with a fault planted in what was saved."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asymcir_common import preprocess
from asymcir_export import ExportError, NotVerifiedError, ParityError, check_coreml, evaluate_coreml
from asymcir_export.checks.parity import load_pictures
from asymcir_export.coreml.mil.program import load_spec, read_program
from asymcir_training import LightEncoder, normalise_pixels
from coremltools.models.utils import save_spec
from numpy.typing import NDArray

Fault = Callable[[Any], None]
"""Changes a package's protobuf."""


@pytest.fixture(scope="module")
def squares(pictures: Path, light_encoder: LightEncoder) -> list[NDArray[np.uint8]]:
    return [preprocess(picture, light_encoder.preprocessing) for picture in load_pictures(pictures)]


def plant(package: Path, out: Path, fault: Fault) -> Path:
    spec, weights = load_spec(package)
    fault(spec)
    save_spec(spec, str(out), weights_dir=str(weights))
    return out


def operations(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def of_kind(spec: Any, kind: str) -> list[Any]:
    return [operation for operation in operations(spec) if operation.type == kind]


def constant(spec: Any, name: str) -> Any:
    """The value of a constant, to be changed."""
    (operation,) = [part for part in operations(spec) if part.type == "const" and part.outputs[0].name == name]
    return operation.attributes["val"]


def argument(operation: Any, parameter: str) -> str:
    return str(operation.inputs[parameter].arguments[0].name)


def tensor_shape(operation: Any) -> list[int]:
    return [dimension.constant.size for dimension in operation.outputs[0].type.tensorType.dimensions]


def swap_weights(spec: Any) -> None:
    """Let two convolutions of the same shape use each other's weights."""
    weights: dict[tuple[int, ...], Any] = {}
    for operation in of_kind(spec, "conv"):
        name = argument(operation, "weight")
        shape = tuple(dimension.constant.size for dimension in constant(spec, name).type.tensorType.dimensions)
        if shape in weights and constant(spec, name).WhichOneof("value") == "blobFileValue":
            other, mine = constant(spec, weights[shape]).blobFileValue, constant(spec, name).blobFileValue
            other.offset, mine.offset = mine.offset, other.offset
            return
        weights[shape] = name
    raise AssertionError("no two convolutions of one shape")


def widen_epsilon(spec: Any) -> None:
    value = constant(spec, argument(of_kind(spec, "layer_norm")[0], "epsilon"))
    value.immediateValue.tensor.bytes.values = np.float16(1e-3).tobytes()


def permute_transpose(spec: Any) -> None:
    """Swap two axes of a transpose that are of one size, so that no shape gives it away.

    The last one, of what attention gives: in an untrained encoder attention is the same everywhere, whatever happens to
    its queries.
    """
    for operation in reversed(of_kind(spec, "transpose")):
        shape = tensor_shape(operation)
        for i in range(len(shape)):
            for j in range(i):
                if shape[i] == shape[j] > 1:
                    values = constant(spec, argument(operation, "perm")).immediateValue.tensor.ints.values
                    values[i], values[j] = values[j], values[i]
                    return
    raise AssertionError("no transpose with two axes of one size")


def drop_transpose(spec: Any) -> None:
    """Replace a transpose by a reshape to the same shape: every shape is right, every value is elsewhere."""
    for operation in reversed(of_kind(spec, "transpose")):
        shape = tensor_shape(operation)
        values = constant(spec, argument(operation, "perm")).immediateValue.tensor.ints.values
        moved = [axis % len(shape) for axis, size in zip(values, shape, strict=True) if size > 1]
        if moved != sorted(moved):  # else it is a reshape
            values[:] = shape
            operation.type = "reshape"
            operation.inputs["shape"].CopyFrom(operation.inputs["perm"])
            del operation.inputs["perm"]
            return
    raise AssertionError("no transpose of two axes")


def remove_transpose(spec: Any) -> None:
    """Take a transpose out: what comes after gets its input."""
    victim = of_kind(spec, "transpose")[0]
    source, name = argument(victim, "x"), victim.outputs[0].name
    operations(spec).remove(victim)
    for operation in operations(spec):
        for given in operation.inputs.values():
            for binding in given.arguments:
                if binding.name == name:
                    binding.name = source


def change_scale(spec: Any) -> None:
    value = constant(spec, "pixels__scaled___y_0").immediateValue.tensor.floats.values
    assert value[0] == pytest.approx(1 / 255)
    value[0] = 1 / 127.5


def change_strength(spec: Any) -> None:
    """Scale one small multiplication of the network by a tenth."""
    for operation in of_kind(spec, "sigmoid_hard"):
        value = constant(spec, argument(operation, "alpha")).immediateValue.tensor
        (found,) = np.frombuffer(value.bytes.values, dtype=np.float16)
        value.bytes.values = np.float16(found * 1.1).tobytes()
        return
    raise AssertionError("no sigmoid_hard")


def swap_channels(spec: Any) -> None:
    image = spec.description.input[0].type.imageType
    image.colorSpace = image.BGR


def shift_stride(spec: Any) -> None:
    """Let a strided convolution start one pixel later."""
    for operation in of_kind(spec, "conv"):
        strides = constant(spec, argument(operation, "strides")).immediateValue.tensor.ints.values
        pad = constant(spec, argument(operation, "pad")).immediateValue.tensor.ints.values
        if strides[0] == 2 and pad[0] == 1:
            pad[0], pad[1] = 0, 2
            return
    raise AssertionError("no strided convolution")


@pytest.mark.parametrize(
    "fault",
    [
        swap_weights,
        widen_epsilon,
        permute_transpose,
        drop_transpose,
        remove_transpose,
        change_scale,
        change_strength,
        swap_channels,
        shift_stride,
    ],
)
def test_a_planted_fault_is_caught(
    fault: Fault, coreml_package: Path, light_encoder: LightEncoder, squares: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    sound = plant(coreml_package, tmp_path / "sound.mlpackage", lambda _: None)
    check_coreml(sound, light_encoder, light_encoder.preprocessing, squares)  # saved the same way, it passes
    faulty = plant(coreml_package, tmp_path / "faulty.mlpackage", fault)
    with pytest.raises(ExportError) as caught:
        check_coreml(faulty, light_encoder, light_encoder.preprocessing, squares)
    expected = ExportError if fault is remove_transpose else ParityError  # there the shapes give it away
    assert type(caught.value) is expected, caught.value


def test_a_changed_weight_file_is_caught(
    coreml_package: Path, light_encoder: LightEncoder, squares: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    program = read_program(coreml_package)
    name = next(part for part in program.operations if part.kind == "linear").inputs["weight"][0]
    weight = program.constants[name]
    faulty = tmp_path / "faulty.mlpackage"
    shutil.copytree(coreml_package, faulty)
    (file,) = faulty.rglob("weight.bin")
    content = file.read_bytes()
    assert content.count(weight.tobytes()) == 1
    file.write_bytes(content.replace(weight.tobytes(), weight[::-1].tobytes()))
    with pytest.raises(ParityError, match="coreml: the exported model differs"):
        check_coreml(faulty, light_encoder, light_encoder.preprocessing, squares)


def test_what_the_check_does_not_know_does_not_pass(
    coreml_package: Path, light_encoder: LightEncoder, squares: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    def rename(spec: Any) -> None:
        of_kind(spec, "softmax")[0].type = "softmax_of_tomorrow"

    def add_parameter(spec: Any) -> None:
        operation = of_kind(spec, "softmax")[0]
        operation.inputs["temperature"].CopyFrom(operation.inputs["axis"])

    def nest(spec: Any) -> None:
        of_kind(spec, "softmax")[0].blocks.add()

    for number, (fault, message) in enumerate(
        [
            (rename, "not verified: softmax_of_tomorrow"),
            (add_parameter, r"not verified: softmax \(parameter temperature\)"),
            (nest, r"not verified: softmax \(control flow\)"),
        ]
    ):
        faulty = plant(coreml_package, tmp_path / f"{number}.mlpackage", fault)
        with pytest.raises(NotVerifiedError, match=message):
            check_coreml(faulty, light_encoder, light_encoder.preprocessing, squares)


def test_the_sound_package_is_near(
    coreml_package: Path, light_encoder: LightEncoder, squares: list[NDArray[np.uint8]]
) -> None:
    record = check_coreml(coreml_package, light_encoder, light_encoder.preprocessing, squares)
    assert record["precision"] == "fp16"
    assert record["vectors"] == 6 * len(squares)
    assert record["operators"] > 50
    assert record["thresholds"] == [0.999, 0.9995, 0.1]
    found = np.stack(evaluate_coreml(coreml_package, squares))
    with torch.inference_mode():
        expected = light_encoder(normalise_pixels(torch.tensor(np.stack(squares)), light_encoder.preprocessing)).numpy()
    assert np.abs(found - expected).max() == pytest.approx(record["max_abs_difference"], rel=0.05)
    assert np.array_equal(found, found.astype(np.float16))  # the program says that its output is fp16
    assert not np.array_equal(expected, expected.astype(np.float16))


def test_pictures_of_another_size_are_refused(coreml_package: Path) -> None:
    with pytest.raises(ExportError, match="expected pictures of 64 x 64"):
        evaluate_coreml(coreml_package, [np.zeros((32, 64, 3), dtype=np.uint8)])
