"""A saved Core ML package, read as what was saved: its ML Program's operations in order, with weights and types.

The protobuf is read as it stands and every constant is taken from it or from the weight file, so nothing of the
converter's own graph, inference or folding comes between the file and the check.

Notation: S side of the square that the network sees.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from asymcir_export.errors import ExportError, NotVerifiedError

Constant: TypeAlias = NDArray[Any] | str
"""The value of a constant: an array in the type it is saved in (sub-byte integers one to a byte), or a word."""

MAIN_FUNCTION = "main"

_NUMPY_TYPES: Mapping[str, Any] = {
    "BOOL": np.bool_,
    "FLOAT16": np.float16,
    "FLOAT32": np.float32,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
}
_SUB_BYTE_BITS: Mapping[str, int] = {"INT4": 4, "UINT1": 1, "UINT2": 2, "UINT3": 3, "UINT4": 4, "UINT6": 6}
_READERS: Mapping[str, str] = {  # weight file type -> method of coremltools' reader
    "FLOAT16": "read_fp16_data",
    "FLOAT32": "read_float_data",
    **{name: f"read_{name.lower()}_data" for name in ("INT8", "INT16", "INT32", "UINT8", "UINT16", "UINT32")},
    **{name: f"read_{name.lower()}_data" for name in _SUB_BYTE_BITS},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class MilType:
    """What the program says of a tensor: protobuf's name of its element type ("FLOAT16"), and its shape."""

    element: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class MilOutput:
    """A value that an operation gives: its name and its declared type."""

    name: str
    type: MilType


@dataclass(frozen=True, kw_only=True, slots=True)
class MilOperation:
    """One operation: parameter -> names of values, or values that stand in the operation itself."""

    kind: str
    name: str
    inputs: Mapping[str, tuple[str, ...] | Constant]
    outputs: tuple[MilOutput, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInput:
    """The picture that the package takes: `channels` is "RGB" or "BGR"; `type` as the program sees it, [1, 3, S, S]."""

    name: str
    width: int
    height: int
    channels: str
    type: MilType


@dataclass(frozen=True, kw_only=True, slots=True)
class MilProgram:
    """A program of one picture: constants by name, operations in the order that they run, names of the outputs."""

    image: ImageInput
    opset: str
    constants: Mapping[str, Constant]
    operations: tuple[MilOperation, ...]
    outputs: tuple[str, ...]


def read_program(path: Path) -> MilProgram:
    """Read a saved `.mlpackage`.

    Args:
        path: of one function that takes one picture.

    Raises:
        ExportError: no such package, or another kind of model.
        NotVerifiedError: something that this reader does not know (control flow, state, flexible shapes).
    """
    spec, weights = load_spec(path)
    if spec.WhichOneof("Type") != "mlProgram":
        raise ExportError(f"expected an ML Program at {path}, got a Core ML model of kind {spec.WhichOneof('Type')}")
    functions = spec.mlProgram.functions
    if list(functions) != [MAIN_FUNCTION]:
        raise NotVerifiedError(f"functions {sorted(functions)}, expected {MAIN_FUNCTION} alone")
    function = functions[MAIN_FUNCTION]
    image = _read_image(spec, function)
    values = _Values(weights)
    constants: dict[str, Constant] = {}
    operations: list[MilOperation] = []
    block = function.block_specializations[function.opset]
    for operation in block.operations:
        if operation.type == "const":
            constants[operation.outputs[0].name] = values.read(operation.attributes["val"])
        else:
            operations.append(_read_operation(operation, values))
    return MilProgram(
        image=image,
        opset=function.opset,
        constants=constants,
        operations=tuple(operations),
        outputs=tuple(block.outputs),
    )


def load_spec(path: Path) -> tuple[Any, Path]:
    """Load a package's protobuf and find its weights, without compiling it.

    Returns:
        coremltools' `Model` message, and the folder of the weight files.

    Raises:
        ExportError: no package at `path`, or a damaged one.
    """
    if not path.is_dir():
        raise ExportError(f"expected a Core ML package at {path}, found none")
    with quiet_coremltools():
        from coremltools.models import MLModel

        try:
            model = MLModel(str(path), skip_model_load=True)
            return model.get_spec(), Path(model.weights_dir or path)
        except Exception as exc:  # coremltools' errors share no base
            raise ExportError(f"the Core ML package at {path} is damaged ({type(exc).__name__}: {exc})") from exc


@contextmanager
def quiet_coremltools() -> Iterator[None]:
    """Keep coremltools' progress bars and version hints from the command's output."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _read_image(spec: Any, function: Any) -> ImageInput:
    inputs = list(spec.description.input)
    if len(inputs) != 1 or inputs[0].type.WhichOneof("Type") != "imageType" or len(function.inputs) != 1:
        raise NotVerifiedError("inputs other than one picture")
    image = inputs[0].type.imageType
    channels = image.ColorSpace.Name(image.colorSpace)
    kind = _read_type(function.inputs[0].type)
    if channels not in ("RGB", "BGR") or image.WhichOneof("SizeFlexibility") is not None:
        raise NotVerifiedError(f"a {channels} picture, or one of flexible size")
    if kind.shape != (1, 3, image.height, image.width) or function.inputs[0].name != inputs[0].name:
        raise ExportError(
            f"the Core ML package takes {inputs[0].name}, {image.height} x {image.width}, but its program takes "
            f"{function.inputs[0].name} {list(kind.shape)}"
        )
    return ImageInput(name=inputs[0].name, width=image.width, height=image.height, channels=channels, type=kind)


def _read_operation(operation: Any, values: "_Values") -> MilOperation:
    if operation.blocks:
        raise NotVerifiedError(f"{operation.type} (control flow)")
    inputs: dict[str, tuple[str, ...] | Constant] = {}
    for parameter, argument in operation.inputs.items():
        bindings = [binding.WhichOneof("binding") for binding in argument.arguments]
        if all(binding == "name" for binding in bindings):
            inputs[parameter] = tuple(binding.name for binding in argument.arguments)
        elif bindings == ["value"]:
            inputs[parameter] = values.read(argument.arguments[0].value)
        else:
            raise NotVerifiedError(f"{operation.type} (parameter {parameter} that mixes names and values)")
    name = ""
    for parameter, value in operation.attributes.items():  # the first decompression operators keep theirs here
        if parameter == "name":
            name = str(values.read(value))
        else:
            inputs[parameter] = values.read(value)
    outputs = tuple(MilOutput(name=output.name, type=_read_type(output.type)) for output in operation.outputs)
    return MilOperation(kind=operation.type, name=name, inputs=inputs, outputs=outputs)


def _read_type(value_type: Any) -> MilType:
    kind = value_type.WhichOneof("type")
    if kind != "tensorType":
        raise NotVerifiedError(f"a value of {kind}")
    tensor = value_type.tensorType
    if any(dimension.WhichOneof("dimension") != "constant" for dimension in tensor.dimensions):
        raise NotVerifiedError("a tensor of unknown shape")
    shape = tuple(int(dimension.constant.size) for dimension in tensor.dimensions)
    return MilType(element=_element_name(tensor.dataType), shape=shape)


def _element_name(number: int) -> str:
    from coremltools.proto.MIL_pb2 import DataType

    return str(DataType.Name(number))


class _Values:
    """Reads constants from the protobuf and from the weight files beside it."""

    def __init__(self, weights: Path) -> None:
        self._weights = weights
        self._readers: dict[str, Any] = {}

    def read(self, value: Any) -> Constant:
        """Read one value.

        Raises:
            NotVerifiedError: a type that this reader does not know.
            ExportError: another number of elements than its type says.
        """
        kind = _read_type(value.type)
        if value.WhichOneof("value") == "blobFileValue":
            array = self._read_file(value.blobFileValue, kind)
        else:
            if value.immediateValue.WhichOneof("value") != "tensor":
                raise NotVerifiedError(f"a constant {value.immediateValue.WhichOneof('value')}")
            tensor = value.immediateValue.tensor
            field = tensor.WhichOneof("value")
            raw = getattr(tensor, field).values
            if kind.element == "STRING":
                return str(raw[0])
            array = _unpack(raw, kind) if field == "bytes" else np.array(raw, dtype=_numpy_type(kind))
        if array.size != int(np.prod(kind.shape)):
            raise ExportError(f"a constant of the Core ML package has {array.size} elements, expected {kind.shape}")
        return array.reshape(kind.shape)

    def _read_file(self, value: Any, kind: MilType) -> NDArray[Any]:
        from coremltools.libmilstoragepython import _BlobStorageReader

        if kind.element not in _READERS:
            raise NotVerifiedError(f"weights of type {kind.element}")
        name = value.fileName.rsplit("/", 1)[-1]
        if name not in self._readers:
            self._readers[name] = _BlobStorageReader(str(self._weights / name))
        try:
            raw = np.asarray(getattr(self._readers[name], _READERS[kind.element])(value.offset))
        except (RuntimeError, IndexError) as exc:
            raise ExportError(f"the Core ML package's {name} is damaged at {value.offset}: {exc}") from exc
        return raw.view(np.float16) if kind.element == "FLOAT16" else raw


def _numpy_type(kind: MilType) -> Any:
    if kind.element not in _NUMPY_TYPES:
        raise NotVerifiedError(f"a constant of type {kind.element}")
    return _NUMPY_TYPES[kind.element]


def _unpack(raw: bytes, kind: MilType) -> NDArray[Any]:
    bits = _SUB_BYTE_BITS.get(kind.element)
    if bits is None:
        return np.frombuffer(raw, dtype=_numpy_type(kind))
    values = unpack_bits(np.frombuffer(raw, dtype=np.uint8), bits, int(np.prod(kind.shape)))
    if kind.element.startswith("INT"):
        return np.where(values >= 1 << (bits - 1), values.astype(np.int16) - (1 << bits), values).astype(np.int8)
    return values


def unpack_bits(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Unpack `count` integers of 1 to 8 bits, packed without gaps from the least significant bit on."""
    stream = np.unpackbits(packed, bitorder="little")[: count * bits].reshape(count, bits)
    return (stream << np.arange(bits, dtype=np.uint8)).sum(axis=1).astype(np.uint8)
