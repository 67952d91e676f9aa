"""Runs an ML Program operation by operation on the CPU, as Core ML is meant to.

A tensor that the program types fp16 is rounded to fp16 after the operation that gives it; inside an operation sums are
kept in float32, as the CPU and GPU backends keep them. The Neural Engine may accumulate in fp16, which nothing here
imitates. Every result is held against the type and the shape that the program declares for it.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from asymcir_export.coreml.mil.arguments import Arguments, Value, to_value
from asymcir_export.coreml.mil.operators import OPERATORS
from asymcir_export.coreml.mil.program import MilOperation, MilOutput, MilProgram
from asymcir_export.errors import ExportError, NotVerifiedError

_FLOATS = ("FLOAT16", "FLOAT32")
_INTEGERS = ("INT8", "UINT8", "INT16", "UINT16", "INT32")

Observer = Callable[[str, Tensor], None]
"""Called with every value's name and content as it is computed."""


class MilEvaluator:
    """A program, ready to run; weights are decompressed once.

    Args:
        program: as `read_program` gives it.

    Raises:
        NotVerifiedError: an operator that `OPERATORS` does not hold.
        ExportError: a decompressed weight is not of the declared type.
    """

    def __init__(self, program: MilProgram) -> None:
        unknown = sorted({operation.kind for operation in program.operations} - set(OPERATORS))
        if unknown:
            raise NotVerifiedError(", ".join(unknown))
        self.program = program
        self._constants: dict[str, Value] = {name: to_value(value) for name, value in program.constants.items()}
        live: list[MilOperation] = []
        with torch.inference_mode():
            for operation in program.operations:
                names = {name for names in operation.inputs.values() if isinstance(names, tuple) for name in names}
                if names <= self._constants.keys():
                    self._run(operation, self._constants)
                else:
                    live.append(operation)
        self._operations = tuple(live)

    def run(self, inputs: Mapping[str, Tensor], *, observe: Observer | None = None) -> dict[str, Tensor]:
        """Run the program once.

        Args:
            inputs: input name -> float32 tensor of the declared shape.
            observe: sees every value that is computed.

        Returns:
            Output name -> tensor, float32.

        Raises:
            NotVerifiedError: a parameter that the operator's implementation does not know.
            ExportError: a result that is not of the declared type or shape, or an operation that cannot be computed.
        """
        values: dict[str, Value] = {**self._constants}
        with torch.inference_mode():
            for name, tensor in inputs.items():
                values[name] = tensor
            for operation in self._operations:
                self._run(operation, values, observe=observe)
        outputs = {name: values[name] for name in self.program.outputs}
        return {name: value for name, value in outputs.items() if isinstance(value, Tensor)}

    def _run(self, operation: MilOperation, values: dict[str, Value], *, observe: Observer | None = None) -> None:
        given = {name: _look_up(source, values) for name, source in operation.inputs.items()}
        arguments = Arguments(operation.kind, given)
        try:
            found = OPERATORS[operation.kind](arguments)
        except (RuntimeError, IndexError, TypeError, ValueError, KeyError) as exc:
            detail = (str(exc).splitlines() or [type(exc).__name__])[0]
            raise ExportError(f"the Core ML package's {operation.kind} {operation.name} cannot run: {detail}") from exc
        arguments.refuse_unread()
        results = found if isinstance(found, tuple) else (found,)
        if len(results) != len(operation.outputs):
            raise ExportError(
                f"the Core ML package's {operation.kind} {operation.name} declares {len(operation.outputs)} outputs, "
                f"it gives {len(results)}"
            )
        for result, output in zip(results, operation.outputs, strict=True):
            values[output.name] = value = _settle(operation, output, result)
            if observe is not None:
                observe(output.name, value)


def _look_up(given: "tuple[str, ...] | np.ndarray | str", values: Mapping[str, Value]) -> tuple[Value, ...]:
    if not isinstance(given, tuple):
        return (to_value(given),)
    missing = [name for name in given if name not in values]
    if missing:
        raise ExportError(f"the Core ML package uses {missing[0]} before it is computed")
    return tuple(values[name] for name in given)


def _settle(operation: MilOperation, output: MilOutput, result: Tensor) -> Tensor:
    """Round a result to its declared type, and refuse one of another type or shape."""
    element = output.type.element
    if element in _FLOATS:
        fits = result.is_floating_point()
    elif element in _INTEGERS:
        fits = result.dtype == torch.int64
    elif element == "BOOL":
        fits = result.dtype == torch.bool
    else:
        raise NotVerifiedError(f"{operation.kind} (a result of type {element})")
    if not fits or tuple(result.shape) != output.type.shape:
        raise ExportError(
            f"the Core ML package's {operation.kind} {operation.name} gives {result.dtype} {list(result.shape)}, its "
            f"program declares {element} {list(output.type.shape)}"
        )
    return result.half().float() if element == "FLOAT16" else result
