from pathlib import Path

import numpy as np
import pytest
from asymcir_export import ExportError
from asymcir_export.coreml.mil.program import MilProgram, load_spec, read_program, unpack_bits
from asymcir_training import LightEncoder
from coremltools.converters.mil.frontend.milproto.load import load
from coremltools.optimize._utils import pack_elements_into_bits


@pytest.fixture(scope="module")
def program(coreml_package: Path) -> MilProgram:
    return read_program(coreml_package)


def test_the_interface_is_read(program: MilProgram) -> None:
    assert program.opset == "CoreML6"
    assert program.outputs == ("sentence_tokens",)
    assert (program.image.name, program.image.width, program.image.height) == ("pixels", 64, 64)
    assert program.image.channels == "RGB"
    assert (program.image.type.element, program.image.type.shape) == ("FLOAT32", (1, 3, 64, 64))


def test_operations_come_in_order_with_their_types(program: MilProgram) -> None:
    known = {program.image.name, *program.constants}
    for operation in program.operations:
        used = {name for names in operation.inputs.values() if isinstance(names, tuple) for name in names}
        assert used <= known, operation
        known |= {output.name for output in operation.outputs}
    last = program.operations[-1].outputs[0]
    assert (last.name, last.type.element, last.type.shape) == ("sentence_tokens", "FLOAT16", (6, 48))


def test_weights_are_the_encoders_rounded_to_fp16(program: MilProgram, light_encoder: LightEncoder) -> None:
    weight = light_encoder.token_learner.project.weight.detach().numpy().astype(np.float16)
    (reader,) = [
        operation
        for operation in program.operations
        if operation.kind == "conv"
        and operation.outputs[0].type.shape[1] == 64
        and weight.shape[1] == 288
        and program.constants[operation.inputs["weight"][0]].shape == weight.shape
    ]
    assert np.array_equal(program.constants[reader.inputs["weight"][0]], weight)


def test_constants_are_those_that_coremltools_reads(program: MilProgram, coreml_package: Path) -> None:
    spec, weights = load_spec(coreml_package)
    main = load(spec, spec.specificationVersion, str(weights)).functions["main"]
    values = {operation.outputs[0].name: operation.outputs[0].val for operation in main.operations}
    arrays = 0
    for name, found in program.constants.items():
        if name in values and values[name] is not None:
            assert np.array_equal(np.asarray(values[name]), np.asarray(found)), name
            arrays += isinstance(found, np.ndarray) and found.size > 1
    assert arrays > 50


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_packed_integers(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 1 << bits, 37).astype(np.uint8)
    assert np.array_equal(unpack_bits(pack_elements_into_bits(values, bits), bits, 37), values)


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected a Core ML package"):
        read_program(tmp_path / "none.mlpackage")
    (tmp_path / "empty.mlpackage").mkdir()
    with pytest.raises(ExportError, match="is damaged"):
        read_program(tmp_path / "empty.mlpackage")
