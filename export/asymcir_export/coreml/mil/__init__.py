"""Core ML's model intermediate language (MIL): a saved program, read and evaluated in numpy in fp16."""

from asymcir_export.coreml.mil.evaluator import MilEvaluator
from asymcir_export.coreml.mil.program import (
    ImageInput,
    MilOperation,
    MilProgram,
    load_spec,
    quiet_coremltools,
    read_program,
)

__all__ = [
    "ImageInput",
    "MilEvaluator",
    "MilOperation",
    "MilProgram",
    "load_spec",
    "quiet_coremltools",
    "read_program",
]
